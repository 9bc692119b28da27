"""A snapshot's pictures and objects on this host, in the layout that libraries of detectors read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from numpy.typing import NDArray

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import AnnotatedObject, Sample, Snapshot, Split
from nightshift_common.detector import PreparedDataset
from nightshift_common.options.training import DetectorTask
from training_jobs.scoring.detector_predictions import check_objects

THREADS = 8
SIDES: tuple[Split, ...] = ("train", "val")
Points = NDArray[np.float64]


def prepare_dataset(bottle: Bottle, snapshot: Snapshot, task: DetectorTask, folder: Path) -> PreparedDataset:
    """Write the pictures of both sides as links, their objects as text, and data.yaml. Crowds are left out.

    Raises:
        DataValidationError: the snapshot has no objects, for `segment` no polygons, or a side has no pictures.
    """
    labels = snapshot.summary.labels
    sides = {side: snapshot.split(side) for side in SIDES}
    if empty := [side for side, samples in sides.items() if not samples]:
        raise DataValidationError(f"snapshot {snapshot.summary.snapshot_id} has no pictures in {' and '.join(empty)}")
    for side, samples in sides.items():
        check_objects(samples, task)
        for kind in ("images", "labels"):
            (folder / kind / side).mkdir(parents=True)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="dataset") as pool:
            list(pool.map(lambda s, side=side: _write(bottle, s, labels, task, folder, side), samples))
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(labels))}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True))
    return PreparedDataset(file, labels, len(sides["train"]), len(sides["val"]))


def _write(bottle: Bottle, sample: Sample, labels: list[str], task: DetectorTask, folder: Path, side: Split) -> None:
    name = PurePosixPath(sample.path).name
    # A link: what a library "repairs" replaces the link, never the picture in the bottle.
    (folder / "images" / side / name).symlink_to(bottle.local(sample.path).absolute())
    lines = [_line(found, labels, task, sample) for found in sample.objects or () if not found.ignore]
    (folder / "labels" / side / name).with_suffix(".txt").write_text("".join(lines))


def _line(found: AnnotatedObject, labels: list[str], task: DetectorTask, sample: Sample) -> str:
    if task == "segment":
        shares = (one_outline(found.polygons) / (sample.width, sample.height)).ravel()
    else:
        x, y, width, height = found.box
        shares = np.array([x + width / 2, y + height / 2, width, height])
        shares /= (sample.width, sample.height) * 2
    values = " ".join(f"{min(max(float(share), 0.0), 1.0):.7f}" for share in shares)
    return f"{labels.index(found.label)} {values}\n"


def one_outline(polygons: Sequence[Sequence[float]]) -> Points:
    """Return the parts of an object as one outline, points [n, 2]: each part is joined at its nearest point.

    The line between two parts is gone there and back, so that it covers nothing.
    """
    outline, *parts = (np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons)
    for part in parts:
        apart = np.linalg.norm(outline[:, None] - part[None], axis=2)
        at, start = np.unravel_index(int(apart.argmin()), apart.shape)
        turned = np.roll(part, -int(start), axis=0)
        outline = np.concatenate([outline[: at + 1], turned, turned[:1], outline[at:]])
    return outline
