"""Average precision as COCO defines it: the mean precision at 101 recalls, per class and overlap, then over classes.

Kept here, beside the libraries for it, because the uncertainty of a difference takes it a few hundred times on the same
matching with other weights of the pictures, which a library would match anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training_jobs.scoring.matching import IGNORED, Compared, Floats, Ints

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class _Class:
    """The predictions of one class, the surest first, and its objects: what they are, and in which picture."""

    right: NDArray[np.bool_]  # [T, d]
    counted: NDArray[np.bool_]  # [T, d]: not in a crowd
    pictures: Ints  # [d]
    true_pictures: Ints  # [g]


class Ranking:
    """All predictions of a model, ranked once; `average_precision` then takes any weights of the pictures."""

    def __init__(self, pictures: Sequence[Compared], taken: Sequence[Ints], classes: int) -> None:
        """Rank.

        Args:
            pictures: predictions and objects.
            taken: of each what `match` returned, int [T, k].
            classes: their number; a class without an object has no average precision.
        """
        numbers = np.concatenate([np.full(len(p.scores), i) for i, p in enumerate(pictures)])
        scores, labels = (np.concatenate([getattr(p, name) for p in pictures]) for name in ("scores", "labels"))
        matched = np.concatenate(taken, axis=1)
        true_labels = np.concatenate([np.where(p.ignored, -1, p.true_labels) for p in pictures])
        true_numbers = np.concatenate([np.full(len(p.true_labels), i) for i, p in enumerate(pictures)])
        order = np.argsort(-scores, kind="stable")
        self._classes: list[_Class] = []
        for label in range(classes):
            mine = order[labels[order] == label]
            objects = true_numbers[true_labels == label]
            if len(objects):
                found = matched[:, mine]
                self._classes.append(_Class(found >= 0, found != IGNORED, numbers[mine], objects))
        self._count, self._thresholds = len(pictures), len(taken[0])

    def average_precision(self, weights: NDArray[np.float64] | None = None) -> Floats:
        """Return the mean over the classes with objects, [T]; `weights` [n]: how often each picture counts."""
        weights = np.ones(self._count) if weights is None else weights
        total, count = np.zeros(self._thresholds), 0
        for one in self._classes:
            objects = weights[one.true_pictures].sum()
            if not objects:  # the class is in no picture that counts
                continue
            count += 1
            weight = weights[one.pictures]
            right = np.cumsum(one.right * weight, axis=1)
            shown = np.cumsum(one.counted * weight, axis=1)
            precision = np.divide(right, shown, out=np.zeros_like(right), where=shown > 0)
            best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for row, (recall, best) in enumerate(zip(right / objects, best_from_here, strict=True)):
                places = np.searchsorted(recall, RECALLS, side="left")
                reached = places < len(best)
                total[row] += best[places[reached]].sum() / len(RECALLS)
        return total / max(count, 1)
