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


def table(
    labels: list[str], truth: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1 and support by class name, from int64 [N] and float32 [N, K]."""
    columns = per_class(confusion_matrix(truth, probabilities))
    return {
        label: {name: round(float(values[index]), 6) for name, values in columns.items()}
        for index, label in enumerate(labels)
    }


def confusion_matrix(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return int64 [K, K]: how many pictures of the class of the row were answered with the class of the column."""
    classes = probabilities.shape[1]
    cells = truth * classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
