"""A small bottle as training leaves it: a snapshot of drawn pictures and an experiment with real, untrained weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.experiment import Experiment
from jobkit.model_spec import SPEC_FILE, ModelSpec, Preprocessing
from jobkit.paths import picture
from jobkit.snapshot import Sample, Split, write_snapshot

GROUP = "digits"
LABELS = ["circle", "cross", "square"]
EXPERIMENT = f"models/{GROUP}/v__0_train_test_resnet_8_0.001"
SIDE = 32


def make_bottle(root: Path, pictures: int = 30) -> tuple[FolderBottle, str]:
    """Fill the bottle at `root`; return it and the snapshot's id."""
    bottle = FolderBottle(root)
    generator = np.random.default_rng(7)
    samples = []
    for number in range(pictures):
        label = LABELS[number % len(LABELS)]
        content = cv2.imencode(".png", _draw(label, generator))[1].tobytes()
        digest = hashlib.sha256(content).hexdigest()
        key = picture(digest, ".png")
        bottle.write(key, content)
        split: Split = "golden" if number % 5 < 3 else "train"
        samples.append(
            Sample(sha256=digest, path=key, label=label, split=split, width=40, height=40, split_group=digest,
                   source=f"drawn/{label}_{number}.png")
        )  # fmt: skip
    snapshot_id = write_snapshot(bottle, GROUP, samples, []).snapshot_id
    write_experiment(bottle, EXPERIMENT, snapshot_id)
    return bottle, snapshot_id


def write_experiment(
    bottle: FolderBottle, folder: str, snapshot_id: str | None, seed: int = 3, model: nn.Module | None = None
) -> ModelSpec:
    """Write `model.json`, the checkpoint and the TorchScript model of an experiment; return its spec."""
    spec = ModelSpec(
        group=GROUP, architecture="test_resnet", labels=LABELS, snapshot_id=snapshot_id,
        preprocessing=Preprocessing(height=SIDE, width=SIDE),
    )  # fmt: skip
    model = model or make_model(spec, seed)
    paths = Experiment(folder)
    bottle.write(f"{folder}/{SPEC_FILE}", spec.model_dump_json(indent=2))
    checkpoint = bottle.path(paths.best_checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), checkpoint)
    script = bottle.path(f"{folder}/torchscripts/model.pt")
    script.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.trace(model, torch.zeros(2, 3, SIDE, SIDE), check_trace=False).save(str(script))
    bottle.write(paths.config, "model: {}\n")
    return spec


def make_model(spec: ModelSpec, seed: int) -> Classifier:
    """Return a classifier with random weights whose answers depend on the picture."""
    torch.manual_seed(seed)
    model = Classifier(spec.architecture, len(spec.labels), spec.preprocessing.channels).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: statistics that are not 0 and 1
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)  # timm starts the last one of a block at 0
        model.fc.weight.mul_(5)
    return model


def _draw(label: str, generator: np.random.Generator) -> np.ndarray:
    image = generator.integers(0, 60, (40, 40, 3), np.uint8)
    x, y, size = (int(v) for v in generator.integers(12, 28, 3))
    color = [int(v) for v in generator.integers(120, 255, 3)]
    if label == "circle":
        cv2.circle(image, (x, y), size // 2, color, 2)
    elif label == "square":
        cv2.rectangle(image, (x - size // 2, y - size // 2), (x + size // 2, y + size // 2), color, 2)
    else:
        cv2.line(image, (x - size // 2, y), (x + size // 2, y), color, 2)
        cv2.line(image, (x, y - size // 2), (x, y + size // 2), color, 2)
    return image
