"""Masks of objects in pixels of the picture: from polygons, and from what a segmenter gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobkit.model_spec import Preprocessing, resized
from nightshift_common.boxes import Size

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mask:
    """A mask by the window that holds it: `pixels` bool [h, w], whose first pixel is (`left`, `top`) of the picture."""

    left: int
    top: int
    pixels: NDArray[np.bool_]

    @property
    def area(self) -> float:
        """How many pixels it covers."""
        return float(self.pixels.sum())

    def shared(self, other: Mask) -> float:
        """How many pixels both cover."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right = min(self.left + self.pixels.shape[1], other.left + other.pixels.shape[1])
        bottom = min(self.top + self.pixels.shape[0], other.top + other.pixels.shape[0])
        if right <= left or bottom <= top:
            return 0.0
        windows = [
            mask.pixels[top - mask.top : bottom - mask.top, left - mask.left : right - mask.left]
            for mask in (self, other)
        ]
        return float((windows[0] & windows[1]).sum())


def of_box(box: Floats, size: Size) -> Mask:
    """Return the pixels whose centers lie in a box, x_min, y_min, x_max, y_max in pixels of a picture of `size`."""
    low = np.clip(np.ceil(box[:2] - 0.5), 0, (size[1], size[0])).astype(int)
    high = np.clip(np.ceil(box[2:] - 0.5), low, (size[1], size[0])).astype(int)
    return Mask(int(low[0]), int(low[1]), np.ones((high[1] - low[1], high[0] - low[0]), bool))


def of_polygons(polygons: Sequence[Sequence[float]], size: Size) -> Mask:
    """Return the pixels whose centers lie in one of the polygons, x, y, x, y, ... in pixels of a picture of `size`.

    A line of pixels enters and leaves a polygon where it crosses its edges (the even-odd rule).
    """
    outlines = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    points = np.concatenate(outlines)
    window = of_box(np.concatenate([np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))]), size)
    height, width = window.pixels.shape
    covered = np.zeros((height, width), bool)
    centers = window.top + np.arange(height) + 0.5
    for outline in outlines:
        start, end = outline, np.roll(outline, -1, axis=0)
        crossings = np.zeros((height, width + 1), np.int64)
        for (x1, y1), (x2, y2) in zip(start, end, strict=True):
            rows = np.flatnonzero((np.minimum(y1, y2) <= centers) & (centers < np.maximum(y1, y2)))
            if len(rows):
                x = x1 + (centers[rows] - y1) * (x2 - x1) / (y2 - y1)
                columns = np.clip(np.ceil(x - 0.5) - window.left, 0, width).astype(int)
                np.add.at(crossings, (rows, columns), 1)
        covered |= (np.cumsum(crossings, axis=1)[:, :width] % 2).astype(bool)
    return Mask(window.left, window.top, covered)


def of_prototypes(
    coefficients: NDArray[np.float32], prototypes: NDArray[np.float32], boxes: Floats, size: Size, how: Preprocessing
) -> list[Mask]:
    """Return the masks of k objects, at the resolution of the picture: where they are likelier there than not.

    Args:
        coefficients: [k, 32].
        prototypes: [32, h, w], of the whole input.
        boxes: [k, 4], x_min, y_min, x_max, y_max in pixels of the picture; a mask ends where its box does.
        size: of the picture, height and width.
        how: how it was prepared.
    """
    import cv2

    fitted, room = resized(*size, how), (how.height, how.width)
    planes = np.tensordot(coefficients, prototypes, 1)
    masks = []
    for plane, box in zip(planes, boxes, strict=True):
        window = of_box(box, size)
        height, width = window.pixels.shape
        if not height or not width:
            masks.append(window)
            continue
        places = []  # of the window's rows and columns among the prototypes' pixels
        for axis, (first, count) in enumerate(((window.top, height), (window.left, width))):
            centers = (first + np.arange(count) + 0.5) * fitted[axis] / size[axis] + (room[axis] - fitted[axis]) // 2
            places.append((centers * plane.shape[axis] / room[axis] - 0.5).astype(np.float32))
        rows, columns = np.meshgrid(*places, indexing="ij")
        logits = cv2.remap(plane, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        masks.append(Mask(window.left, window.top, np.asarray(logits > 0)))
    return masks


def overlap(masks: Sequence[Mask], objects: Sequence[Mask], ignored: NDArray[np.bool_]) -> Floats:
    """Return the overlap of k predicted masks with those of g objects, [k, g], as in `matching.Compared`."""
    found = np.zeros((len(masks), len(objects)))
    areas = [mask.area for mask in objects]
    for row, mask in zip(found, masks, strict=True):
        area = mask.area
        for index, other in enumerate(objects):
            shared = mask.shared(other)
            if shared:
                row[index] = shared / (area if ignored[index] else area + areas[index] - shared)
    return found
