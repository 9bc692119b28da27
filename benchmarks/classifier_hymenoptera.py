"""Accuracy on real photographs (ants and bees), from scratch on the CPU: the trainer and a bare loop, three seeds each.

    python -m benchmarks.classifier_hymenoptera [--folder FOLDER --epochs 30 --size 64]

FOLDER is `hymenoptera/` in `NIGHTSHIFT_TEST_DATA` by default.

Both train the same model on the same 244 pictures with the same optimizer, schedule, batch and kinds of augmentation,
and answer the 153 golden pictures; neither chooses an epoch by them. The trainer's best epoch is not used either: what
is scored are the weights after the last epoch, as the bare loop has them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see jobkit.job.main

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from jobkit import model_spec
from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.experiment import Experiment
from tests.support.sample_data import HYMENOPTERA, MISSING
from training_jobs.classifier import training
from training_jobs.classifier.config import Config
from training_jobs.classifier.examples import Example, Examples
from training_jobs.classifier.training_callback import TrainingCallback

LABELS = ["ants", "bees"]
MODEL, BATCH, RATE, DECAY = "resnet10t", 16, 2e-3, 0.02
Pictures = list[tuple[Path, int]]


def configuration(seed: int, epochs: int, size: int) -> Config:
    """Return the trainer's configuration."""
    content = {
        "seed": seed,
        "dataset": {
            "image_size": size,
            "data_loaders": {"train_batch_size": BATCH},
            "pre_transforms": [{"type": "resize"}],
            "train_augmentations": [
                {"type": "random_resized_crop", "scale": [0.3, 1.0], "p": 1.0},
                {"type": "horizontal_flip", "p": 0.5},
                {"type": "random_brightness_contrast", "p": 1.0},
            ],
        },
        "model": {"backbone_name": MODEL},
        "optimizer": {"lr": RATE, "weight_decay": DECAY},
        "training": {"epochs": epochs, "save_metrics": False},
    }
    return Config.model_validate_json(json.dumps(content))


def trainer(train: Pictures, golden: Pictures, config: Config) -> float:
    """Return the golden accuracy of the trainer's last epoch."""
    examples = Examples(LABELS, [Example(*one) for one in train], [Example(*one) for one in train[:BATCH]], "photos")
    with tempfile.TemporaryDirectory() as folder:
        bottle, experiment = FolderBottle(Path(folder)), Experiment("models/photos/v__0")
        training.fit(config, examples, bottle, experiment, TrainingCallback(config, bottle, experiment, None))
        state = torch.load(bottle.path(experiment.last_checkpoint), weights_only=True)["state_dict"]
    model = Classifier(MODEL, 2)
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return accuracy(model, golden, config)


def bare_loop(train: Pictures, golden: Pictures, config: Config) -> float:
    """Return the golden accuracy of a loop written by hand, with torchvision's transforms on PIL pictures."""
    size, epochs = config.dataset.image_size, config.training.epochs
    torch.manual_seed(config.seed)
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loaded = [(Image.open(path).convert("RGB"), label) for path, label in train]
    model = Classifier(MODEL, 2)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY)
    steps = len(train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * steps, cycle_momentum=False)
    for _ in range(epochs):
        order = torch.randperm(len(train)).tolist()
        for start in range(0, steps * BATCH, BATCH):
            batch = [loaded[index] for index in order[start : start + BATCH]]
            pictures = torch.stack([chain(picture) for picture, _ in batch]).to(memory_format=torch.channels_last)
            loss = torch.nn.functional.cross_entropy(model(pictures), torch.tensor([label for _, label in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return accuracy(model, golden, config)


@torch.inference_mode()
def accuracy(model: Classifier, golden: Pictures, config: Config) -> float:
    """Return the share of right answers, with the pictures prepared as in serving."""
    prepared = torch.from_numpy(np.stack([model_spec.prepare(path, config.preprocessing) for path, _ in golden]))
    answers: list[int] = model.eval()(prepared).argmax(1).tolist()
    return statistics.fmean(answer == label for answer, (_, label) in zip(answers, golden, strict=True))


def main() -> None:
    """Print one line a seed, then means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HYMENOPTERA)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not (options.folder / "labels.csv").is_file():
        sys.exit(MISSING if options.folder == HYMENOPTERA else f"there is no labels.csv in {options.folder}")
    cv2.setNumThreads(0)
    with (options.folder / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    parts: dict[str, Pictures] = {"train": [], "golden": []}
    for row in rows:
        parts[row["split"]].append((options.folder / row["path"], LABELS.index(row["label"])))
    results: dict[str, list[float]] = {"trainer": [], "bare loop": []}
    for seed in range(options.seeds):
        config = configuration(seed, options.epochs, options.size)
        for name, run in (("trainer", trainer), ("bare loop", bare_loop)):
            started = time.process_time()
            results[name].append(run(parts["train"], parts["golden"], config))
            seconds = time.process_time() - started
            print(f"seed {seed}, {name}: accuracy {results[name][-1]:.4f}, {seconds:.0f} CPU seconds", flush=True)
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.4f} ± {spread:.4f} over {len(values)} seeds")


if __name__ == "__main__":
    main()
