"""A real detector that needs no training: it looks for colored squares in the cells of a grid.

Red squares are `ant`, green ones `bee`. Weak ones have a low score, so that thresholds matter.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from conversion_jobs.onnx.export import export
from jobkit.bottle import FolderBottle
from jobkit.detection.torchscript import preprocessing
from jobkit.model_spec import SPEC_FILE, DetectorSpec, NonMaxSuppression
from jobkit.paths import picture
from jobkit.snapshot import AnnotatedObject, Sample, Split, write_snapshot

SIDE, CELL, SQUARE = 64, 16, 12
LABELS = ["ant", "bee"]


class SmallDetector(nn.Module):
    """Raw outputs as every detector here gives them: [N, 4 + 2, 16], and for `segment` coefficients and prototypes."""

    def __init__(self, task: str = "detect", shift: float = 0.0, blind: bool = False) -> None:
        """`shift`: how far its boxes are off, pixels; `blind`: it does not see green."""
        super().__init__()
        self.task = task
        centers = torch.arange(CELL // 2, SIDE, CELL, dtype=torch.float32)
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        size = torch.full((16,), float(SQUARE))
        self.register_buffer("boxes", torch.stack([x.flatten() + shift, y.flatten(), size, size])[None])
        self.register_buffer("seen", torch.tensor([1.0, 0.0 if blind else 1.0]).view(1, 2, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        light = nn.functional.avg_pool2d(pictures[:, :2], CELL).flatten(2)  # red and green of each cell
        scores = torch.sigmoid((light * self.seen - 0.25) * 12)
        raw = torch.cat([self.boxes.expand(pictures.shape[0], -1, -1), scores], 1)
        if self.task == "detect":
            return raw
        shown = nn.functional.avg_pool2d(pictures[:, :2].amax(1, keepdim=True), 4) - 0.2
        protos = torch.cat([shown, torch.zeros_like(shown).repeat(1, 31, 1, 1)], 1)
        coefficients = torch.cat([torch.ones_like(raw[:, :1]), torch.zeros_like(raw[:, :1]).repeat(1, 31, 1)], 1)
        return raw, coefficients, protos


def spec(
    snapshot_id: str, task: str = "detect", threshold: float | None = 0.5, suppression: NonMaxSuppression | None = None
) -> DetectorSpec:
    return DetectorSpec(
        group="insects",
        architecture="small",
        labels=LABELS,
        task=task,
        preprocessing=preprocessing((SIDE, SIDE)),
        suppression=suppression,
        confidence_threshold=threshold,
        snapshot_id=snapshot_id,
    )


def write_experiment(bottle: FolderBottle, folder: str, model: SmallDetector, described: DetectorSpec) -> None:
    """Write what training leaves behind."""
    path = bottle.path(f"{folder}/torchscripts/model.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.trace(model.eval(), torch.zeros(2, 3, SIDE, SIDE), check_trace=False).save(str(path))
    bottle.write(f"{folder}/{SPEC_FILE}", described.model_dump_json())


def archive(model: SmallDetector, described: DetectorSpec, folder: Path) -> bytes:
    """Return the flat zip that the model storage keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    export(
        torch.jit.trace(model.eval(), torch.zeros(2, 3, SIDE, SIDE), check_trace=False),
        described,
        folder / "model.onnx",
        17,
        {},
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        files.write(folder / "model.onnx", "model.onnx")
        files.writestr(SPEC_FILE, described.model_dump_json())
    return buffer.getvalue()


def write_scenes(bottle: FolderBottle, count: int = 30) -> str:
    """Write a snapshot of pictures with up to four squares, twice as wide as the input; return its id."""
    generator = np.random.default_rng(3)
    samples = []
    for number in range(count):
        scene = np.zeros((SIDE * 2, SIDE * 2, 3), np.uint8)
        scene[:, :, 0] = number  # blue, which nothing looks at: no two pictures are alike
        objects = []
        for cell in generator.permutation(16)[: number % 5]:
            label = int(generator.integers(2))
            x, y = (int(v) * CELL * 2 + (CELL - SQUARE) for v in (cell % 4, cell // 4))
            color = [0, 0, 0]
            color[2 - label] = int(generator.integers(60, 255))  # BGR
            cv2.rectangle(scene, (x, y), (x + 2 * SQUARE - 1, y + 2 * SQUARE - 1), color, -1)
            right, bottom = x + 2 * SQUARE, y + 2 * SQUARE
            objects.append(
                AnnotatedObject(
                    label=LABELS[label],
                    box=(x, y, 2 * SQUARE, 2 * SQUARE),
                    polygons=((x, y, right, y, right, bottom, x, bottom),),
                )
            )
        content = cv2.imencode(".png", scene)[1].tobytes()
        digest = hashlib.sha256(content).hexdigest()
        bottle.write(picture(digest, ".png"), content)
        split: Split = ("golden", "golden", "train", "val")[number % 4]
        samples.append(
            Sample(
                sha256=digest,
                path=picture(digest, ".png"),
                label="",
                split=split,
                width=2 * SIDE,
                height=2 * SIDE,
                split_group=digest,
                source=f"{number}.png",
                objects=tuple(objects),
            )
        )
    return write_snapshot(bottle, "insects", samples, []).snapshot_id
