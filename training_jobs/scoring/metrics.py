"""Metrics of a classifier on labeled pictures, and the uncertainty of the difference between two classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import Field

from nightshift_common.options.gate import SingleLabelMetric
from training_jobs.scoring.evaluation import Comparison, Gain, Scores, Slice
from training_jobs.scoring.paired import Entries, f1_gains, mean_gain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS: tuple[SingleLabelMetric, ...] = get_args(SingleLabelMetric)
CALIBRATION_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
RESAMPLES = 1000
SEED = 20
_LEAST_PROBABILITY = 1e-7  # what a class that a model does not know gets, so that the log loss stays finite


class ClassSlice(Slice):
    """Scores of one class; `score` is its F1, which also falls for pictures of others that are taken for this one."""

    precision: float
    recall: float
    f1: float


class ClassifierScores(Scores):
    """Scores of a classifier: accuracy, macro_f1, log_loss (nats) and ece; slices `class/<label>`."""

    slices: dict[str, ClassSlice]  # type: ignore[assignment] # pydantic reads and writes each field by its own type
    confusion: list[list[int]] = Field(
        description="row: true class, column: predicted; the last column: a class not here"
    )


def score(
    version: str, labels: list[str], truth: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> ClassifierScores:
    """Score predictions.

    Args:
        version: what the model is called in the report.
        labels: the K classes of the golden set.
        truth: int [N], indices into `labels`.
        probabilities: float [N, K + 1]; the last column is the probability of classes that are not in `labels`.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    classes = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    clipped = np.clip(probabilities, _LEAST_PROBABILITY, None)
    clipped /= clipped.sum(axis=1, keepdims=True)
    all_classes = np.arange(len(labels) + 1)
    return ClassifierScores(
        version=version,
        metrics={
            "accuracy": float((predicted == truth).mean()),
            "macro_f1": float(f1.mean()),
            "log_loss": float(log_loss(truth, clipped, labels=all_classes)),
            "ece": calibration_error(truth, probabilities),
        },
        slices={
            f"class/{label}": ClassSlice(
                support=int(support[i]),
                score=float(f1[i]),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
            )
            for i, label in enumerate(labels)
        },
        confusion=confusion_matrix(truth, predicted, labels=all_classes)[: len(labels)].tolist(),
    )


def part(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> ClassSlice:
    """Return the micro-averaged scores of some pictures together, int [N] each: of one label each all are accuracy."""
    accuracy = float((predicted == truth).mean())
    return ClassSlice(support=len(truth), score=accuracy, precision=accuracy, recall=accuracy, f1=accuracy)


def part_gain(
    truth: NDArray[np.int64], candidate: NDArray[np.int64], champion: NDArray[np.int64], groups: NDArray[np.int64]
) -> Gain:
    """Return the gain in what `part` scores; `groups` are numbered from 0."""
    import numpy as np

    return mean_gain((candidate == truth).astype(np.float64) - (champion == truth), groups)


def calibration_error(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the expected calibration error (Guo et al. 2017): the mean over equally wide bins of confidence, weighted
    by their pictures, of |accuracy - mean confidence|."""
    import numpy as np

    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def compare(
    labels: list[str],
    truth: NDArray[np.int64],
    candidate: NDArray[np.int64],
    champion: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> Comparison:
    """Compare two models' predictions on the same pictures.

    Args:
        labels: the K golden classes.
        truth: int [N], indices into `labels`.
        candidate, champion: int [N], indices into `labels`, or K: another class.
        groups: the split group of each picture, int [N].
    """
    import numpy as np

    candidate_right, champion_right = candidate == truth, champion == truth
    only_candidate = int((candidate_right & ~champion_right).sum())
    only_champion = int((champion_right & ~candidate_right).sum())
    support = np.bincount(truth, minlength=len(labels))
    ours, theirs = (_entries(len(labels), truth, predicted) for predicted in (candidate, champion))
    macro, by_class = f1_gains(labels, ours, theirs, support, groups)
    right = candidate_right.astype(np.float64) - champion_right
    return Comparison(
        pictures=len(truth), only_candidate_right=only_candidate, only_champion_right=only_champion,
        p_value=mcnemar(only_candidate, only_champion),
        gains={"accuracy": mean_gain(right, groups), "macro_f1": macro},
        slices={f"class/{label}": gain for label, gain in by_class.items()},
    )  # fmt: skip


def mcnemar(only_candidate: int, only_champion: int) -> float:
    """Return the p-value of McNemar's exact test, of how many pictures each of two models alone is right on."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    unlike = only_candidate + only_champion
    return float(binomtest(only_candidate, unlike, 0.5).pvalue) if unlike else 1.0


def _entries(classes: int, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Entries:
    """Return what the predictions add to each class: as its truth, and as what is predicted."""
    import numpy as np

    picture = np.arange(len(truth))
    known = predicted < classes
    return Entries(
        picture=np.concatenate([picture, picture[known]]),
        column=np.concatenate([truth, predicted[known]]),
        hits=np.concatenate([2.0 * (truth == predicted), np.zeros(int(known.sum()))]),
        both=np.ones(len(truth) + int(known.sum())),
    )
