"""Scores of a classifier, from its confusion matrix or, of one of several labels, from counts by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the share of right answers. `confusion[t, p]` counts pictures of class t answered p, int64 [K, K]."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def per_class(confusion: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return precision, recall, f1 and support of each class, [K] each; 0 where nothing is to be divided."""
    return of_tally(tally_of(confusion))


def tally_of(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return of each class the right answers, the answers, and the pictures: int64 [3, K]."""
    return np.stack([np.diagonal(confusion), confusion.sum(axis=0), confusion.sum(axis=1)])


def of_tally(tally: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return precision, recall, f1 and support of each class, [K] each, of what `tally_of` or `tallied` counts."""
    right, answered, support = tally
    return {
        "precision": right / np.maximum(answered, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(answered + support, 1),
        "support": support,
    }


def tallied(truth: NDArray[Any], shown: NDArray[Any]) -> NDArray[np.int64]:
    """Return what `tally_of` counts for pictures of several labels: `truth` and what was answered, 0 or 1 [N, K]."""
    return np.stack([(truth.astype(bool) & shown.astype(bool)).sum(0), shown.sum(0), truth.sum(0)])


def macro_f1(tally: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that have pictures: a class without any says nothing about the model."""
    scores = of_tally(tally)
    present = scores["support"] > 0
    return float(scores["f1"][present].mean()) if present.any() else 0.0


def table(labels: list[str], tally: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1 and support by class name."""
    columns = of_tally(tally)
    return {
        label: {name: round(float(values[index]), 6) for name, values in columns.items()}
        for index, label in enumerate(labels)
    }


def confusion_matrix(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return int64 [K, K]: how many pictures of the class of the row were answered with the class of the column."""
    classes = probabilities.shape[1]
    cells = truth * classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
