"""What a detector found: its boxes after non-maximum suppression, and how far two detectors agree on them.

`raw` outputs are float32 [N, 4 + classes, anchors]: center x, center y, width, height in pixels of the input, then a
score in 0..1 per class. `detections` are float32 [N, K, 6]: x_min, y_min, x_max, y_max in pixels, score, class, the
best first; rows that nothing fills are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.verification.checks import Verdict
from jobkit.model_spec import Preprocessing, resized

Array = NDArray[np.float32]
SCORE = 0.25  # what users see by default; for a picture with fewer boxes its best candidates are compared
CANDIDATES = 50
IOU = 0.7
SAME_IOU = 0.9  # two boxes are the same from here on: at 0.9 their sides differ by some 5 %
MASK_THRESHOLD = 0.0  # of a mask's logits: probability 0.5


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


def overlaps(a: Array, b: Array) -> Array:
    """Return the intersection over union of boxes [n, 4] with boxes [m, 4], as [n, m]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def detections(raw: Array, score: float, iou: float, most: int) -> Array:
    """Return raw outputs [N, 4 + classes, anchors] as detections [N, most, 6]."""
    found = np.zeros((len(raw), most, 6), np.float32)
    for row, one in zip(found, raw, strict=True):
        boxes = suppressed(one, score, iou, most).boxes
        row[: len(boxes)] = boxes
    return found


def pairs(a: Array, b: Array, score_tolerance: float) -> list[tuple[int, int]]:
    """Return which boxes [n, 6] and [m, 6] are the same: class, place (IoU) and score; each is used once."""
    same = (overlaps(a, b) >= SAME_IOU) & (a[:, None, 5] == b[None, :, 5])
    same &= np.abs(a[:, None, 4] - b[None, :, 4]) <= score_tolerance
    found = []
    for index in range(len(a)):
        choices = np.flatnonzero(same[index])
        if len(choices):
            nearest = int(choices[np.abs(b[choices, 4] - a[index, 4]).argmin()])
            found.append((index, nearest))
            same[:, nearest] = False
    return found


def seen(output: Array, threshold: float) -> Found:
    """Return what one output, raw or detections, shows with a score above `threshold`."""
    if output.shape[1] != 6:
        return suppressed(output, threshold, IOU, CANDIDATES)
    rows = np.flatnonzero(output[:, 4] > max(threshold, 0))
    return Found(output[rows], rows)


def counterparts(found: Found, output: Array) -> Array:
    """Return the boxes that another model's output has in the places of those found.

    Of a raw output the same anchors and classes: two boxes whose scores are nearly equal suppress each other the one
    way or the other, and both are right. Of detections, which have no anchors, all.
    """
    if output.shape[1] == 6:
        return seen(output, 0.0).boxes
    labels = found.boxes[:, 5].astype(np.int64)
    center, size = output[:2, found.anchors].T, output[2:4, found.anchors].T
    scores = output[4:][labels, found.anchors]
    return np.column_stack([center - size / 2, center + size / 2, scores, labels]).astype(np.float32)


def threshold_of(output: Array) -> float:
    """Return the score from which the boxes of a picture are compared: 0.25, or lower where little reaches that."""
    if output.shape[1] == 6:
        return 0.0
    scores = output[4:].max(axis=0)
    return float(min(SCORE, np.partition(scores, -CANDIDATES)[-CANDIDATES] if len(scores) > CANDIDATES else 0.0))


@dataclass(frozen=True)
class BoxAgreement:
    """The share of boxes that both models see, at least `minimum`: 2 x same boxes / boxes of both, of all pictures."""

    minimum: float
    score_tolerance: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Compare outputs [n, ...], both raw or both detections."""
        shares, same, count = [], 0, 0
        for a, b in zip(source, converted, strict=True):
            threshold, finite = threshold_of(a), np.nan_to_num(b)
            matched = both = 0
            for one, other in ((a, finite), (finite, a)):
                wanted = seen(one, threshold)
                there = counterparts(wanted, other)
                matched += len(pairs(wanted.boxes, there, self.score_tolerance))
                both += len(wanted.boxes)
            same, count = same + matched, count + both
            shares.append(matched / both if both else 1.0)
        if not count:
            sentence = "no picture shows anything that either model finds: choose pictures with objects"
            return Verdict(name="box_agreement", passed=False, value=0, limit=self.minimum, sentence=sentence)
        value, worst = same / count, int(np.argmin(shares))
        sentence = (
            f"{value:.1%} of {count} boxes of both models are the same (class, IoU {SAME_IOU:g}, score within "
            f"{self.score_tolerance:g}), at least {self.minimum:.0%} is asked"
        )
        return Verdict(
            name="box_agreement", passed=value >= self.minimum, value=value, limit=self.minimum, sentence=sentence,
            worst_picture=pictures[worst],
        )  # fmt: skip


def in_picture(corners: Array, height: int, width: int, how: Preprocessing) -> NDArray[np.int64]:
    """Return corners [k, 4] in pixels of the model's input as whole pixels of the picture that was prepared.

    Args:
        corners: x_min, y_min, x_max, y_max.
        height: of the picture, pixels.
        width: of the picture, pixels.
        how: how it was prepared: letterboxed or stretched, as in `jobkit.model_spec.fit`.
    """
    sizes = reversed(resized(height, width, how))
    moved = corners.astype(np.float64)
    for axis, (size, side, room) in enumerate(zip(sizes, (width, height), (how.width, how.height), strict=True)):
        moved[:, axis::2] = np.clip((moved[:, axis::2] - (room - size) // 2) * side / size, 0, side)
    return np.rint(moved).astype(np.int64)


def mask_agreement(
    source: Sequence[Array], converted: Sequence[Array], pictures: Sequence[str], minimum: float
) -> Verdict:
    """Return whether the masks of the boxes that both models see overlap: their lowest IoU, at least `minimum`.

    Args:
        source: first output [n, ...], mask coefficients ([n, 32, anchors], or [n, K, 32] of detections), prototypes
            [n, 32, h, w].
        converted: the same of the converted model.
        pictures: their names.
        minimum: lowest IoU of two masks that still counts as the same.
    """
    lowest, worst, count = 1.0, None, 0
    for number, picture in enumerate(pictures):
        threshold = threshold_of(source[0][number])
        sides = [_masks([output[number] for output in side], threshold) for side in (source, converted)]
        for a, b in pairs(sides[0][0], sides[1][0], 1.0):
            left, right = sides[0][1][a], sides[1][1][b]
            union = np.logical_or(left, right).sum()
            overlap = float(np.logical_and(left, right).sum() / union) if union else 1.0
            count += 1
            if overlap < lowest:
                lowest, worst = overlap, picture
    sentence = f"the masks of {count} boxes overlap by an IoU of {lowest:.4f} or more, at least {minimum:g} is asked"
    return Verdict(
        name="mask_agreement", passed=count > 0 and lowest >= minimum, value=lowest, limit=minimum, sentence=sentence,
        worst_picture=worst,
    )  # fmt: skip


def _masks(outputs: Sequence[Array], threshold: float) -> tuple[Array, NDArray[np.bool_]]:
    """Return boxes [k, 6] and their masks [k, h x w] of one picture's outputs."""
    first, coefficients, protos = outputs
    found = seen(first, threshold)
    chosen = coefficients[found.anchors] if first.shape[1] == 6 else coefficients[:, found.anchors].T
    return found.boxes, chosen @ protos.reshape(len(protos), -1) > MASK_THRESHOLD
