"""Weights of each family as people have them at hand: `python -m tests.support.weights_at_hand FOLDER` (.venv/jobs)."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from torch import nn

from jobkit.model_spec import ModelSpec, Preprocessing
from tests.support.trained import LABELS, make_model

SIDE = 64


def write(folder: Path) -> None:
    """Write `classifier.ckpt, vit.pth, head.pth, embeddings.npy, broken.pth` and `pictures/` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    how = Preprocessing(height=SIDE, width=SIDE)
    spec = ModelSpec(group="g", architecture="test_resnet", labels=LABELS, preprocessing=how)
    torch.save(make_model(spec, 5).state_dict(), folder / "classifier.ckpt")
    torch.save(timm.create_model("test_vit", num_classes=7, img_size=(SIDE, SIDE)).state_dict(), folder / "vit.pth")
    torch.save(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict(), folder / "head.pth")
    generator = np.random.default_rng(6)
    np.save(folder / "embeddings.npy", generator.normal(size=(12, 16)).astype(np.float32))
    (folder / "broken.pth").write_bytes(b"a page that said that the download needs a login")
    (folder / "pictures").mkdir()
    for number in range(6):
        drawn = cv2.resize(generator.integers(0, 255, (5, 8, 3), np.uint8), (80, 60))
        cv2.imwrite(str(folder / "pictures" / f"{number}.png"), drawn)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
