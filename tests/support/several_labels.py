"""Pictures that show several colors at once, or none, as a snapshot in a bottle."""

from __future__ import annotations

from itertools import compress

import cv2
import numpy as np

from jobkit.bottle import FolderBottle
from jobkit.paths import picture
from jobkit.snapshot import Snapshot, read_snapshot, write_snapshot
from training_jobs.data.listing import Listed
from training_jobs.data.picture_inspection import Inspected, inspect
from training_jobs.data.selection import Rules, check_classes, select

GROUP = "mixed"
COLORS = ("blue", "green", "red")  # the order of the channels that cv2 writes
PLACES = ((2, 2), (2, 14), (14, 8))


def drawing(colors: tuple[str, ...], generator: np.random.Generator) -> bytes:
    """Return a picture of 24 x 24 pixels with a bright square of each color, as a PNG file."""
    image = generator.integers(0, 60, (24, 24, 3), np.uint8)
    for channel, color in enumerate(COLORS):
        if color in colors:
            top, left = PLACES[channel]
            image[top : top + 8, left : left + 8, channel] += 180
    return cv2.imencode(".png", image)[1].tobytes()


def listing(count: int, seed: int = 5) -> tuple[list[Listed], dict[str, Inspected], dict[str, bytes]]:
    """Return `count` pictures as a source lists them: one entry a label; their files by source."""
    generator = np.random.default_rng(seed)
    listed, inspected, files = [], {}, {}
    for number in range(count):
        colors = tuple(compress(COLORS, (number & 1, number & 2, number & 4)))
        source = f"{number}.png"
        files[source] = drawing(colors, generator)
        inspected[source] = inspect(source, files[source], 100)
        listed += [Listed(source=source, label=color) for color in colors or (None,)]
    return listed, inspected, files


def make_snapshot(bottle: FolderBottle, count: int = 160) -> Snapshot:
    """Write a multi-label snapshot of drawn pictures."""
    listed, inspected, files = listing(count)
    for source, content in files.items():
        bottle.write(picture(inspected[source].sha256, ".png"), content)
    selection = select(listed, inspected, Rules(8, 100, 0.2, 0.3), "off", multi_label=True)
    check_classes(selection.samples, GROUP)
    summary = write_snapshot(bottle, GROUP, selection.samples, selection.refused)
    return read_snapshot(bottle, GROUP, summary.snapshot_id)
