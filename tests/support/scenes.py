"""Drawn scenes with objects, as `pull_annotations` leaves them: bright discs and dark boxes on gray noise."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from jobkit.bottle import Bottle
from jobkit.paths import picture
from jobkit.snapshot import AnnotatedObject, Sample, Split, write_snapshot

LABELS = ["box", "disc"]
GROUP = "shapes"
WIDTH, HEIGHT = 128, 96


def scene(random: np.random.Generator, objects: int) -> tuple[np.ndarray, list[AnnotatedObject]]:
    """Return a picture and what is in it."""
    drawn = random.integers(90, 150, (HEIGHT, WIDTH, 3), np.uint8)
    found = []
    for column in random.permutation(3)[:objects]:
        size = int(random.integers(24, 38))
        x, y = int(column) * 42 + int(random.integers(1, 42 - size)), int(random.integers(2, HEIGHT - size - 2))
        label = LABELS[int(random.integers(2))]
        if label == "disc":
            cv2.circle(drawn, (x + size // 2, y + size // 2), size // 2 - 1, (60, 220, 250), -1)
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack([np.cos(angles), np.sin(angles)], 1) * (size / 2 - 0.5) + (x + size // 2, y + size // 2)
        else:
            cv2.rectangle(drawn, (x, y), (x + size - 1, y + size - 1), (120, 20, 20), -1)
            points = np.array([(x, y), (x + size, y), (x + size, y + size), (x, y + size)], float)
        points = points.clip(0, (WIDTH, HEIGHT))
        low, high = points.min(axis=0), points.max(axis=0)
        box = (*map(float, low), *map(float, high - low))
        found.append(AnnotatedObject(label=label, box=box, polygons=(tuple(map(float, points.ravel())),)))
    return drawn, found


def write_scenes(bottle: Bottle, train: int = 96, other: int = 24) -> str:
    """Write a snapshot; every sixth picture is a background. Return its id."""
    random = np.random.default_rng(11)
    samples = []
    for number in range(train + 2 * other):
        drawn, objects = scene(random, 0 if number % 6 == 5 else 1 + number % 3)
        content = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        digest = hashlib.sha256(content).hexdigest()
        bottle.write(picture(digest, ".jpg"), content)
        split: Split = "train" if number < train else ("val", "golden")[number % 2]
        samples.append(
            Sample(
                sha256=digest, path=picture(digest, ".jpg"), label="", split=split, width=WIDTH, height=HEIGHT,
                split_group=digest, source=f"{number}.jpg", objects=tuple(objects),
            )
        )  # fmt: skip
    return write_snapshot(bottle, GROUP, samples, []).snapshot_id
