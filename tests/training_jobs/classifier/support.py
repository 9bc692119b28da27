"""A training that takes a fraction of a second: drawn pictures of three colors and timm's smallest ResNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobkit.bottle import Bottle, FolderBottle
from jobkit.experiment import Experiment
from training_jobs.classifier import training
from training_jobs.classifier.config import Config
from training_jobs.classifier.examples import Example, Examples
from training_jobs.classifier.training_callback import TrainingCallback

LABELS = ["blue", "green", "red"]
TINY: dict[str, Any] = {
    "dataset": {"image_size": 16, "data_loaders": {"train_batch_size": 4, "val_batch_size": 4, "num_workers": 0}},
    "model": {"backbone_name": "test_resnet"},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 2},
}


def config(**values: Any) -> Config:
    """Return the tiny configuration with `values` by dotted name (written with `__`) put in."""
    content = json.loads(json.dumps(TINY))
    for name, value in values.items():
        *sections, key = name.split("__")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return Config.model_validate_json(json.dumps(content), strict=True)


def draw(folder: Path, per_class: int, height: int = 20, width: int = 24) -> list[Path]:
    """Write noisy pictures of three colors as `<folder>/<class>/<n>.png`; return them in order."""
    generator = np.random.default_rng(5)
    paths = []
    for number in range(per_class):
        for channel, label in enumerate(LABELS):  # cv2 writes blue, green, red
            picture = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
            picture[4:14, 5:20, channel] += 130
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
            paths.append(path)
    return paths


def examples(folder: Path, train: int = 12, val: int = 6) -> Examples:
    """Return a set of `train` and `val` drawn pictures below `folder`."""
    paths = draw(folder, (train + val) // 3)
    everything = [
        Example(path, LABELS.index(path.parent.name), key=f"{path.parent.name}/{path.name}") for path in paths
    ]
    return Examples(LABELS, everything[:train], everything[train:], "colors")


def fit(
    folder: Path, chosen: Config, found: Examples, name: str = "models/colors/v__0"
) -> tuple[TrainingCallback, dict[str, Any], Bottle]:
    """Train without the final report; return the journal, the content of `last.ckpt` or `best.ckpt`, and the bottle."""
    import torch

    bottle, experiment = FolderBottle(folder), Experiment(name)
    journal = TrainingCallback(chosen, bottle, experiment, None)
    training.fit(chosen, found, bottle, experiment, journal)
    content: dict[str, Any] = journal.best_weights or {}
    if bottle.exists(experiment.last_checkpoint):
        content = torch.load(bottle.path(experiment.last_checkpoint), weights_only=True)
    return journal, content, bottle
