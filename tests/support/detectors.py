"""Detectors as Ultralytics saves them, and pictures: `python -m tests.support.detectors FOLDER` (.venv/detection).

Untrained weights whose batch norms know the pictures and whose scores are spread, so that boxes of every class exist.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

LABELS = ["boot", "clog", "shoe"]
SIDE = 128
KINDS = {"detect.pt": ("yolov8n.yaml", 1), "other.pt": ("yolov8n.yaml", 2), "segment.pt": ("yolov8n-seg.yaml", 3)}


def detector(architecture: str, seed: int, pictures: torch.Tensor) -> Any:
    """Return an Ultralytics model of three classes whose outputs depend on `pictures` float32 [N, 3, H, W]."""
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    torch.manual_seed(seed)
    kind = SegmentationModel if "seg" in architecture else DetectionModel
    model = kind(architecture, nc=len(LABELS), verbose=False)
    model.names = dict(enumerate(LABELS))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average over all that it sees
            module.weight.data.uniform_(0.5, 1.5)
    with torch.no_grad():
        model.train()(pictures)
        for branch in model.model[-1].cv3:  # the scores
            branch[-1].weight.mul_(6)
            branch[-1].bias.fill_(-2)
        for branch in model.model[-1].cv2:  # the sides of the boxes
            branch[-1].weight.mul_(4)
    return model.eval()


def write(folder: Path) -> None:
    """Write `pictures/` and the weights named in `KINDS` to `folder`."""
    (folder / "pictures").mkdir(parents=True)
    generator = np.random.default_rng(4)
    batch = []
    for number in range(6):
        drawn = cv2.resize(generator.integers(0, 255, (6, 8, 3), np.uint8), (160, 110), interpolation=cv2.INTER_NEAREST)
        drawn[:, :, 0] //= 3  # blue: little of it, so that swapped channels show
        cv2.imwrite(str(folder / "pictures" / f"{number}.png"), drawn)
        batch.append(cv2.resize(drawn, (SIDE, SIDE))[:, :, ::-1].transpose(2, 0, 1) / 255)
    pictures = torch.from_numpy(np.stack(batch).astype(np.float32))
    for name, (architecture, seed) in KINDS.items():
        torch.save({"model": detector(architecture, seed, pictures).half(), "ema": None, "epoch": -1}, folder / name)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
