"""Which predictions of a detector are right: greedy matching with the objects of a picture; the threshold of best F1.

Predictions take turns by falling score; each takes the object of its class, not taken yet, that it overlaps most, if
that is at least the threshold (inclusive): one prediction an object, as COCO and PASCAL VOC evaluate. What a prediction
takes depends on surer ones only, so that a matching of all predictions holds for every confidence threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nightshift_common.boxes import SCORE, areas, overlaps, shared_areas

WRONG, IGNORED = -1, -2
"""What a prediction takes instead of an object: nothing, or a part of a crowd, where it is neither right nor wrong."""
LEAST_SCORE = 0.001  # of the predictions that are looked at: what is below moves no average precision that is seen
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """Predictions and objects of one picture, side by side.

    k predictions, the surest first: `scores` [k], `labels` [k] (index of the class; -1: a class that the golden set
    does not have), `boxes` [k, 4] (x_min, y_min, x_max, y_max in pixels of the picture), `areas` [k].
    g objects: `true_labels`, `true_boxes`, `true_areas`, and `ignored` [g]: crowds.
    `overlap` [k, g]: intersection over union; with a crowd: the share of the prediction that lies in it.
    """

    scores: Floats
    labels: Ints
    boxes: Floats
    areas: Floats
    true_labels: Ints
    true_boxes: Floats
    true_areas: Floats
    ignored: NDArray[np.bool_]
    overlap: Floats


def compared(
    scores: Floats, labels: Ints, boxes: Floats, true_labels: Ints, true_boxes: Floats, ignored: NDArray[np.bool_]
) -> Compared:
    """Return predictions and objects side by side, by their boxes; predictions in any order."""
    order = np.argsort(-scores, kind="stable")
    scores, labels, boxes = scores[order], labels[order], boxes[order]
    covered = areas(boxes)
    overlap = overlaps(boxes, true_boxes)
    if ignored.any():
        shared = shared_areas(boxes, true_boxes)
        inside = np.divide(shared, covered[:, None], out=np.zeros_like(shared), where=covered[:, None] > 0)
        overlap = np.where(ignored[None], inside, overlap)
    return Compared(scores, labels, boxes, covered, true_labels, true_boxes, areas(true_boxes), ignored, overlap)


def match(picture: Compared, thresholds: Floats) -> Ints:
    """Return what each prediction takes, int [len(thresholds), k]: an object's index, WRONG or IGNORED.

    Args:
        picture: predictions and objects.
        thresholds: overlap from which a prediction may take an object.
    """
    count, rows = len(thresholds), np.arange(len(thresholds))
    taken = np.full((count, len(picture.scores)), WRONG)
    if not len(picture.true_labels):
        return taken
    same = picture.labels[:, None] == picture.true_labels[None]
    real = np.where(same & ~picture.ignored[None], picture.overlap, -1.0)
    free = np.ones((count, len(picture.true_labels)), bool)
    for index in np.flatnonzero(real.max(axis=1) >= thresholds.min()):
        choices = np.where(free, real[index], -1.0)
        best = choices.argmax(axis=1)
        right = choices[rows, best] >= thresholds
        taken[right, index] = best[right]
        free[rows[right], best[right]] = False
    in_crowd = np.where(same & picture.ignored[None], picture.overlap, -1.0).max(axis=1)
    taken[(taken == WRONG) & (in_crowd[None] >= thresholds[:, None])] = IGNORED
    return taken


def counts(picture: Compared, taken: Ints, confidence: float) -> tuple[int, int, int]:
    """Return true positives, false positives and false negatives of one picture.

    Args:
        picture: predictions and objects.
        taken: one row of what `match` returns.
        confidence: predictions with a lower score do not count.
    """
    shown = picture.scores >= confidence
    right = int((shown & (taken >= 0)).sum())
    return right, int((shown & (taken == WRONG)).sum()), int((~picture.ignored).sum()) - right


def best_threshold(scores: Floats, right: NDArray[np.bool_], objects: int) -> tuple[float, float]:
    """Return the confidence threshold with the highest F1, and that F1: the exact maximum over all thresholds.

    It lies halfway between the lowest score that counts and the next lower one, so that a graph whose scores differ in
    the last digits counts the same predictions. Of equally good ones the highest is taken; 0.25 where nothing is right.

    Args:
        scores: [d], of all predictions, in any order.
        right: [d], whether each took an object; what is in a crowd is left out of both.
        objects: how many there are to find.
    """
    if not right.any():
        return SCORE, 0.0
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # of equal scores all count, or none
    f1 = 2 * np.cumsum(right)[last] / (last + 1 + objects)
    best = int(f1.argmax())
    below = scores[last[best] + 1] if best + 1 < len(last) else min(LEAST_SCORE, scores[-1])
    return float((scores[last[best]] + below) / 2), float(f1[best])
