"""Metrics of a classifier on labeled pictures, and the uncertainty of the difference between two classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import Field

from nightshift_common.options.gate import SingleLabelMetric
from training_jobs.scoring.evaluation import Comparison, Gain, Scores, Slice

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
    classes: int, truth: NDArray[np.int64], candidate: NDArray[np.int64], champion: NDArray[np.int64]
) -> Comparison:
    """Compare two models' predictions, int [N], on the same pictures; `classes` is the number of golden classes."""
    import numpy as np

    candidate_right, champion_right = candidate == truth, champion == truth
    only_candidate = int((candidate_right & ~champion_right).sum())
    only_champion = int((champion_right & ~candidate_right).sum())
    # Pictures with the same truth and predictions are alike: what is drawn is how often each such case occurs.
    cases, counts = np.unique(np.stack([truth, candidate, champion], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(SEED).multinomial(len(truth), counts / counts.sum(), size=RESAMPLES)
    here = _metrics(classes, cases, counts[None], 1), _metrics(classes, cases, counts[None], 2)
    resampled = _metrics(classes, cases, draws, 1), _metrics(classes, cases, draws, 2)
    gains = {
        name: Gain(
            value=float(here[0][name][0] - here[1][name][0]),
            standard_error=float((resampled[0][name] - resampled[1][name]).std()),
        )
        for name in METRICS
    }
    return Comparison(
        pictures=len(truth), only_candidate_right=only_candidate, only_champion_right=only_champion,
        p_value=mcnemar(only_candidate, only_champion), gains=gains,
    )  # fmt: skip


def mcnemar(only_candidate: int, only_champion: int) -> float:
    """Return the p-value of McNemar's exact test, of how many pictures each of two models alone is right on."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    unlike = only_candidate + only_champion
    return float(binomtest(only_candidate, unlike, 0.5).pvalue) if unlike else 1.0


def _metrics(
    classes: int, cases: NDArray[np.int64], counts: NDArray[np.int64], column: int
) -> dict[str, NDArray[np.float64]]:
    """Return accuracy and macro F1, each float [draws], of the predictions in `column` of `cases` [M, 3].

    `counts`, int [draws, M], says how often each case occurs in each draw. A class that has neither pictures nor
    predictions in a draw counts as F1 = 0, as with scikit-learn's `zero_division=0`.
    """
    import numpy as np

    truth, predicted = cases[:, 0], cases[:, column]
    right = truth == predicted
    each = np.eye(classes + 1)[:, :classes]
    hits = (counts * right) @ each[truth]
    both = counts @ each[truth] + counts @ each[predicted]  # 2 TP + FP + FN
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return {"accuracy": (counts * right).sum(axis=1) / counts.sum(axis=1), "macro_f1": f1.mean(axis=1)}
