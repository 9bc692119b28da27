"""Scores of a detector or segmenter on annotated pictures, and the uncertainty of the difference between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from nightshift_common.options.gate import DetectorMetric
from training_jobs.scoring.average_precision import Ranking
from training_jobs.scoring.evaluation import Comparison, Evaluation, Gain, Scores, Slice
from training_jobs.scoring.matching import IGNORED, WRONG, Compared, Floats, Ints, best_threshold, counts, match
from training_jobs.scoring.metrics import mcnemar
from training_jobs.scoring.paired import Entries, f1_gains

METRICS: tuple[DetectorMetric, ...] = get_args(DetectorMetric)
COCO_OVERLAPS = np.arange(50, 100, 5) / 100
MEDIUM, LARGE = 32.0**2, 96.0**2
"""Areas from which an object is medium and large, pixels of the picture: COCO's, but each object is of one size."""
RESAMPLES = 400  # of the bootstrap: the standard error is then known to some 4 %
CURVE_POINTS = 200
_SEED = 20


class DetectorSlice(Slice):
    """Scores on a class or a size; `score` is F1. A false positive counts for the class and the size that it has."""

    precision: float
    recall: float
    f1: float


class CurvePoint(BaseModel):
    """What a model would score with another threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidence: float
    precision: float
    recall: float


class DetectorScores(Scores):
    """Scores of a detector: f1, precision and recall at its threshold; ap50 and ap (of overlaps 0.5 to 0.95)."""

    slices: dict[str, DetectorSlice]  # type: ignore[assignment] # pydantic reads and writes each field by its own type
    confidence_threshold: float = Field(description="from which on a prediction counts")
    true_positives: int
    false_positives: int
    false_negatives: int
    curve: list[CurvePoint] = Field(description="precision over recall, the surest predictions first")


class Drawn(BaseModel):
    """A box to draw: an object, or a prediction with its confidence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    box: tuple[float, float, float, float] = Field(description="x_min, y_min, x_max, y_max, pixels of the picture")
    confidence: float | None = None
    is_right: bool = Field(description="found, or a prediction that found an object")


class WorstPicture(BaseModel):
    """A golden picture that the candidate gets wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    picture: str = Field(description="key in the bottle")
    source: str
    f1: float
    false_positives: int
    false_negatives: int
    objects: list[Drawn]
    predictions: list[Drawn]


class DetectorEvaluation(Evaluation):
    """Two detectors on the golden pictures of one snapshot."""

    gate_metrics: list[str] = Field(list(METRICS))
    candidate: DetectorScores
    champion: DetectorScores | None
    iou_threshold: float
    worst: list[WorstPicture] = Field(description="the candidate's, those with the most mistakes first")
    negative_flips: list[WorstPicture] = Field([], description="those that the champion gets right")


@dataclass(frozen=True)
class Judged:
    """A model's predictions on n pictures, matched with their objects.

    `confidence`: predictions with a lower score do not count for F1, precision and recall.
    """

    pictures: Sequence[Compared]
    classes: int
    iou_threshold: float
    confidence: float

    @cached_property
    def taken(self) -> list[Ints]:
        """Of each picture what its predictions take, int [11, k]: at `iou_threshold`, then at COCO's overlaps."""
        thresholds = np.array([self.iou_threshold, *COCO_OVERLAPS])
        return [match(picture, thresholds) for picture in self.pictures]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """True positives, false positives and false negatives of each picture, int [n, 3]."""
        rows = [counts(p, t[0], self.confidence) for p, t in zip(self.pictures, self.taken, strict=True)]
        return np.array(rows, np.int64).reshape(-1, 3)

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Which pictures have an F1 of 1: all objects found, and nothing else; bool [n]."""
        found: NDArray[np.bool_] = (self.counts[:, 1] == 0) & (self.counts[:, 2] == 0)
        return found

    @cached_property
    def ranking(self) -> Ranking:
        """The predictions at COCO's overlaps."""
        return Ranking(self.pictures, [taken[1:] for taken in self.taken], self.classes)

    def metrics(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return METRICS; `weights` [n]: how often each picture counts."""
        weights = np.ones(len(self.pictures)) if weights is None else weights
        precision, recall, f1 = rates(*(weights @ self.counts))
        aps = self.ranking.average_precision(weights)
        return {"f1": f1, "precision": precision, "recall": recall, "ap50": float(aps[0]), "ap": float(aps.mean())}


def rates(right: float, wrong: float, missed: float) -> tuple[float, float, float]:
    """Return precision, recall and F1; 1 where there is nothing to be wrong about."""
    precision = right / (right + wrong) if right + wrong else float(not missed)
    recall = right / (right + missed) if right + missed else 1.0
    both = 2 * right + wrong + missed
    return float(precision), float(recall), float(2 * right / both) if both else 1.0


def frozen_threshold(pictures: Sequence[Compared], iou_threshold: float) -> tuple[float, float]:
    """Return the confidence threshold with the highest F1 on these pictures, and that F1."""
    scores, right, objects = _ranked(pictures, [match(p, np.array([iou_threshold]))[0] for p in pictures])
    return best_threshold(scores, right, objects)


def _ranked(pictures: Sequence[Compared], taken: Sequence[Ints]) -> tuple[Floats, NDArray[np.bool_], int]:
    """Return scores of the predictions that are in no crowd, whether each is right, and the number of objects."""
    matched = np.concatenate(taken)
    scores = np.concatenate([picture.scores for picture in pictures])
    kept = matched != IGNORED
    return scores[kept], matched[kept] >= 0, sum(int((~picture.ignored).sum()) for picture in pictures)


def score(version: str, labels: list[str], judged: Judged, notes: list[str]) -> DetectorScores:
    """Return the scores of a model; `labels`: the classes of the golden set, as the predictions are numbered."""
    right, wrong, missed = (int(total) for total in judged.counts.sum(axis=0))
    return DetectorScores(
        version=version, metrics=judged.metrics(), slices=slices(judged, labels), slice_metric="F1", notes=notes,
        confidence_threshold=judged.confidence, true_positives=right, false_positives=wrong, false_negatives=missed,
        curve=curve(judged),
    )  # fmt: skip


def slices(judged: Judged, labels: list[str]) -> dict[str, DetectorSlice]:
    """Return the scores of each class and size that the golden set has."""
    names = slice_names(labels)
    made = {}
    for name, row in zip(names, slice_counts(judged, len(labels)).sum(axis=0).tolist(), strict=True):
        support = row[0] + row[2]
        if support:
            precision, recall, f1 = rates(*row)
            made[name] = DetectorSlice(support=support, score=f1, precision=precision, recall=recall, f1=f1)
    return made


def slice_names(labels: list[str]) -> list[str]:
    """Return the S slices: classes, then sizes."""
    return [f"class/{label}" for label in labels] + [f"size/{name}" for name in ("small", "medium", "large")]


def slice_counts(judged: Judged, classes: int) -> NDArray[np.int64]:
    """Return true positives, false positives and false negatives of each picture in each slice, int [n, S, 3]."""
    table = np.zeros((len(judged.pictures), classes + 3, 3), np.int64)
    for row, picture, taken in zip(table, judged.pictures, judged.taken, strict=True):
        shown = picture.scores >= judged.confidence
        found = np.zeros(len(picture.true_labels), bool)
        found[taken[0][shown & (taken[0] >= 0)]] = True
        wrong = shown & (taken[0] == WRONG)
        for column, objects in ((0, found), (2, ~found & ~picture.ignored)):
            np.add.at(row[:, column], picture.true_labels[objects], 1)
            np.add.at(row[:, column], classes + size_of(picture.true_areas[objects]), 1)
        known = wrong & (picture.labels >= 0)
        np.add.at(row[:, 1], picture.labels[known], 1)
        np.add.at(row[:, 1], classes + size_of(picture.areas[wrong]), 1)
    return table


def size_of(areas: Floats) -> Ints:
    """Return 0 for small, 1 for medium, 2 for large, of areas in pixels."""
    return np.digitize(areas, (MEDIUM, LARGE)).astype(np.int64)


def curve(judged: Judged) -> list[CurvePoint]:
    """Return precision and recall at falling thresholds, at most CURVE_POINTS of them."""
    scores, right, objects = _ranked(judged.pictures, [taken[0] for taken in judged.taken])
    if not len(scores) or not objects:
        return []
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) < 0, True))
    chosen = last[np.unique(np.linspace(0, len(last) - 1, CURVE_POINTS).round().astype(int))]
    return [
        CurvePoint(confidence=scores[order[i]], precision=hits[i] / (i + 1), recall=hits[i] / objects) for i in chosen
    ]


def compare(candidate: Judged, champion: Judged, labels: list[str], groups: NDArray[np.int64]) -> Comparison:
    """Compare two models on the same pictures, of which one is right where its F1 is 1.

    `labels`: the classes of the golden set; `groups`: the split group of each picture, int [n].
    """
    only_candidate = int((candidate.right & ~champion.right).sum())
    only_champion = int((champion.right & ~candidate.right).sum())
    number = int(groups.max()) + 1
    draws = np.random.default_rng(_SEED).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    differences = np.array([_differences(candidate, champion, draw[groups].astype(np.float64)) for draw in draws])
    here = _differences(candidate, champion, None)
    ours, theirs = (slice_counts(judged, len(labels)) for judged in (candidate, champion))
    objects = ours[:, :, [0, 2]].sum(axis=(0, 2))
    _, by_slice = f1_gains(slice_names(labels), _entries(ours), _entries(theirs), objects, groups)
    return Comparison(
        pictures=len(candidate.pictures), only_candidate_right=only_candidate, only_champion_right=only_champion,
        p_value=mcnemar(only_candidate, only_champion),
        gains={
            name: Gain(value=value, standard_error=float(column.std()), groups=number, effective=float(number))
            for name, value, column in zip(METRICS, here, differences.T, strict=True)
        },
        slices=by_slice,
    )  # fmt: skip


def _entries(table: NDArray[np.int64]) -> Entries:
    """Return what a model adds to the F1 of each slice."""
    picture, column = np.nonzero(table.any(axis=2))
    right, wrong, missed = table[picture, column].T.astype(np.float64)
    return Entries(picture, column, hits=2 * right, both=2 * right + wrong + missed)


def _differences(candidate: Judged, champion: Judged, weights: Floats | None) -> list[float]:
    ours, theirs = candidate.metrics(weights), champion.metrics(weights)
    return [ours[name] - theirs[name] for name in METRICS]
