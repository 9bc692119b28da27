"""Whether labels and preprocessing that came with weights are right: by pictures in folders of their class.

A graph that agrees with its source says nothing about either: with the labels of another list, or the colors the other
way round, both agree and both are wrong. Where a folder's name is a class, the accuracy tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

from jobkit.model_spec import ModelSpec, Preprocessing, fit, normalize
from jobkit.snapshot import Sample
from nightshift_common.picture_preparation import decode

Array = NDArray[np.float32]
Answer = Callable[[Array], Array]
PICTURES = 64
# One chance model in a hundred passes for a good one; a model that is any good on 64 pictures is far beyond.
SIGNIFICANCE = 0.01
LOW = 0.5  # below it, and beyond chance, the other readings are tried as well
CLEAR_GAIN = 0.1  # of the pictures: another reading is named when it is right about so many more
WHAT_TO_CHECK = "check the order of the labels, mean and std, the order of the channels (RGB or BGR), and the resizing"


@dataclass(frozen=True)
class LabelCheck:
    """How many of the pictures get the class of their folder, and what speaks against labels or preprocessing."""

    pictures: int
    accuracy: float
    warnings: list[str]


def check_labels(spec: ModelSpec, files: list[tuple[Sample, Path]], answer: Answer) -> LabelCheck | None:
    """Return how often a model names the folder that a picture lies in; None where folders are no classes of it.

    Args:
        spec: labels and preprocessing, as they were given.
        files: pictures with where they lie; `Sample.label` is the folder's name.
        answer: the model, float32 [n, C, H, W] -> [n, classes].
    """
    known = sorted(((sample, path) for sample, path in files if sample.label in spec.labels), key=lambda f: f[0].label)
    if len({sample.label for sample, _ in known}) < 2:
        return None
    chosen = [
        known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(PICTURES, len(known))).round().astype(int))
    ]
    truth = np.array([spec.labels.index(sample.label) for sample, _ in chosen])
    decoded = [decode(path.read_bytes(), spec.preprocessing.channels) for _, path in chosen]
    pictures = [picture for picture in decoded if picture is not None]
    truth = truth[[picture is not None for picture in decoded]]
    told = answer(_prepared(pictures, spec.preprocessing)).argmax(1)
    accuracy, count = float((told == truth).mean()), len(truth)
    warnings = []
    chance = max(1 / len(spec.labels), float(np.bincount(truth).max()) / count)
    p_value = float(binom.sf((told == truth).sum() - 1, count, chance))
    if p_value > SIGNIFICANCE:
        warnings.append(
            f"of {count} pictures {accuracy:.1%} get the class of their folder, and guessing gets {chance:.1%} "
            f"(binomial test, p = {p_value:.2g}): are labels and preprocessing those of these weights? {WHAT_TO_CHECK}"
        )
    if (swapped := _other_order(truth, told, spec.labels)) is not None:
        warnings.append(swapped)
    if accuracy < LOW:
        found = {name: change(pictures, spec.preprocessing) for name, change in _READINGS.items()}
        scores = {name: float((answer(inputs).argmax(1) == truth).mean()) for name, inputs in found.items()}
        best = max(scores, key=lambda name: scores[name])
        if scores[best] > accuracy + CLEAR_GAIN:
            warnings.append(f"with {best} {scores[best]:.1%} would be right instead of {accuracy:.1%}")
    return LabelCheck(count, accuracy, warnings)


def _other_order(truth: NDArray[np.int64], told: NDArray[np.int64], labels: list[str]) -> str | None:
    """Return a sentence where another order of the labels fits the folders clearly better.

    The order is the one-to-one assignment of outputs to folders with the most hits (Hungarian method).
    """
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (told, truth), 1)
    outputs, classes = linear_sum_assignment(counts, maximize=True)
    better, now = int(counts[outputs, classes].sum()), int(np.trace(counts))
    moved = [(o, c) for o, c in zip(outputs, classes, strict=True) if o != c and counts[o, c] > counts[o, o]]
    if better - now < max(3, CLEAR_GAIN * len(truth)) or not moved:
        return None
    shown = ", ".join(f"what is called {labels[o]!r} lies in the folder {labels[c]!r}" for o, c in moved[:5])
    ordered = list(labels)
    for output, label in zip(outputs, classes, strict=True):
        ordered[output] = labels[label]
    sorted_too = " (which is their alphabetical order)" if ordered == sorted(labels) else ""
    return (
        f"the labels are in another order{sorted_too}: {shown}; with that order {better / len(truth):.1%} would be "
        f"right instead of {now / len(truth):.1%}"
    )


def _prepared(pictures: list[NDArray[np.uint8]], how: Preprocessing) -> Array:
    return np.stack([normalize(fit(picture, how), how) for picture in pictures])


def _changed(**changes: object) -> Callable[[list[NDArray[np.uint8]], Preprocessing], Array]:
    def prepare(pictures: list[NDArray[np.uint8]], how: Preprocessing) -> Array:
        values = {
            name: (value,) * how.channels if isinstance(value, float) else value for name, value in changes.items()
        }
        return _prepared(pictures, how.model_copy(update=values))

    return prepare


def _other_resize(pictures: list[NDArray[np.uint8]], how: Preprocessing) -> Array:
    other = "stretch" if how.resize == "letterbox" else "letterbox"
    return _prepared(pictures, how.model_copy(update={"resize": other}))


def _imagenet(pictures: list[NDArray[np.uint8]], how: Preprocessing) -> Array:
    fields = Preprocessing.model_fields
    values = {name: fields[name].default[: how.channels] for name in ("mean", "std")}
    return _prepared(pictures, how.model_copy(update=values))


_READINGS: dict[str, Callable[[list[NDArray[np.uint8]], Preprocessing], Array]] = {
    "the channels the other way round (BGR)": lambda pictures, how: np.ascontiguousarray(
        _prepared([picture[..., ::-1] if picture.ndim == 3 else picture for picture in pictures], how)
    ),
    "values of 0 to 1 as they are (mean 0, std 1)": _changed(mean=0.0, std=1.0),
    "values of -1 to 1 (mean 0.5, std 0.5)": _changed(mean=0.5, std=0.5),
    "values of 0 to 255 as they are (mean 0, std 1/255)": _changed(mean=0.0, std=1 / 255),
    "ImageNet's mean and std": _imagenet,
    "the other way to resize": _other_resize,
}
