"""How far two detectors agree on what they found: of their boxes and masks, those that are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.verification.checks import Verdict
from nightshift_common.boxes import CANDIDATES, SCORE, Array, Found, overlaps, seen

SAME_IOU = 0.9  # two boxes are the same from here on: at 0.9 their sides differ by some 5 %
MASK_THRESHOLD = 0.0  # of a mask's logits: probability 0.5


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
