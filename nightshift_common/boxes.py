"""What a detector found: its boxes after non-maximum suppression, in pixels of the input or of the picture.

`raw` outputs are float32 [N, 4 + classes, anchors]: center x, center y, width, height in pixels of the input, then a
score in 0..1 per class. `detections` are float32 [N, K, 6]: x_min, y_min, x_max, y_max in pixels, score, class, the
best first; rows that nothing fills are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Size = tuple[int, int]
"""Height and width, pixels."""
SCORE = 0.25  # from which on boxes are shown of a model that has no threshold of its own
CANDIDATES = 50  # boxes a picture that two models are compared by
IOU = 0.7


@dataclass(frozen=True)
class Found:
    """What was found in one picture: `boxes` [k, 6] as in `detections`; `anchors` [k]: where they stood."""

    boxes: Array
    anchors: NDArray[np.int64]


def suppressed(raw: Array, score: float, iou: float, most: int) -> Found:
    """Return the boxes of one raw output [4 + classes, anchors]: of each class those that no better one covers.

    A box goes if its intersection over union with a better one of its class is above `iou`, as in ONNX's
    NonMaxSuppression.
    """
    labels, anchors = np.nonzero(raw[4:] > score)
    scores = raw[4:][labels, anchors]
    order = np.argsort(-scores, kind="stable")
    labels, anchors, scores = labels[order], anchors[order], scores[order]
    center, size = raw[:2, anchors].T, raw[2:4, anchors].T
    corners = np.concatenate([center - size / 2, center + size / 2], axis=1)
    kept: list[int] = []
    alive = np.ones(len(labels), bool)
    for index in range(len(labels)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        rest = np.flatnonzero(alive[index + 1 :] & (labels[index + 1 :] == labels[index])) + index + 1
        alive[rest[overlaps(corners[index : index + 1], corners[rest])[0] > iou]] = False
    boxes = np.column_stack([corners[kept], scores[kept], labels[kept]]).astype(np.float32)
    return Found(boxes.reshape(-1, 6), anchors[kept])


def shared_areas(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the area that boxes [n, 4] and boxes [m, 4] share, as [n, m]; corners, as in `detections`."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    found: NDArray[Any] = np.clip(high - low, 0, None).prod(axis=2)
    return found


def areas(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the areas of boxes [n, 4]."""
    found: NDArray[Any] = np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(axis=1)
    return found


def overlaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the intersection over union of boxes [n, 4] with boxes [m, 4], as [n, m]; corners, as in `detections`."""
    shared = shared_areas(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    found: NDArray[Any] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def detections(raw: Array, score: float, iou: float, most: int) -> Array:
    """Return raw outputs [N, 4 + classes, anchors] as detections [N, most, 6]."""
    found = np.zeros((len(raw), most, 6), np.float32)
    for row, one in zip(found, raw, strict=True):
        boxes = suppressed(one, score, iou, most).boxes
        row[: len(boxes)] = boxes
    return found


def seen(output: Array, threshold: float) -> Found:
    """Return what one output, raw or detections, shows with a score above `threshold`."""
    if output.shape[1] != 6:
        return suppressed(output, threshold, IOU, CANDIDATES)
    rows = np.flatnonzero(output[:, 4] > max(threshold, 0))
    return Found(output[rows], rows)


def in_picture(corners: NDArray[Any], picture: Size, resized: Size, room: Size) -> NDArray[np.float64]:
    """Return corners [k, 4] in pixels of the model's input as corners in pixels of the picture, inside of it.

    Args:
        corners: x_min, y_min, x_max, y_max.
        picture: size of the picture as it was.
        resized: its size in the input, before it was padded evenly to `room`.
        room: size of the input.
    """
    moved = corners.astype(np.float64)
    for axis in (0, 1):  # x, then y
        side, size, whole = picture[1 - axis], resized[1 - axis], room[1 - axis]
        moved[:, axis::2] = np.clip((moved[:, axis::2] - (whole - size) // 2) * side / size, 0, side)
    return moved
