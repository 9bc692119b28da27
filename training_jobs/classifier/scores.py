"""Scores of a classifier, from its confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the share of right answers. `confusion[t, p]` counts pictures of class t answered p, int64 [K, K]."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return precision, recall, f1 and support of each class, [K] each; 0 where nothing is to be divided."""
    right = np.diagonal(confusion).astype(np.float64)
    answered, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": right / np.maximum(answered, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(answered + support, 1),
        "support": support,
    }


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that have pictures: a class without any says nothing about the model."""
    scores = per_class(confusion)
    present = scores["support"] > 0
    return float(scores["f1"][present].mean()) if present.any() else 0.0
