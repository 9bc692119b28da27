"""Metrics of a classifier whose pictures have several labels, and the uncertainty of the difference between two."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from nightshift_common.options.gate import MultiLabelMetric
from nightshift_common.picture_preparation import SHOWN
from training_jobs.scoring.evaluation import Comparison, Gain, Scores
from training_jobs.scoring.metrics import RESAMPLES, SEED, ClassSlice, mcnemar
from training_jobs.scoring.paired import Entries, f1_gains, mean_gain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS: tuple[MultiLabelMetric, ...] = get_args(MultiLabelMetric)
DRAWS_AT_ONCE = 100  # of the bootstrap: with 10,000 pictures an array of 8 MB for each step


class LabelSlice(ClassSlice):
    """Scores of one class, and how well its probability ranks the pictures."""

    average_precision: float


class MultiLabelScores(Scores):
    """Scores of a classifier of several labels: accuracy (of a picture all labels, and no other), macro_f1, and map,
    the mean of the classes' average precision; slices `class/<label>`. A class is shown from a probability of 0.5."""

    slices: dict[str, LabelSlice]  # type: ignore[assignment] # pydantic reads and writes each field by its own type


def score(
    version: str, labels: list[str], truth: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> MultiLabelScores:
    """Score predictions.

    Args:
        version: what the model is called in the report.
        labels: the K classes of the golden set.
        truth: 0 or 1, int [N, K].
        probabilities: float [N, K + 1]; the last column is the largest of the classes that are not in `labels`.
    """
    import numpy as np

    shown = probabilities[:, :-1] >= SHOWN
    hits, answered, support = (truth * shown).sum(0), shown.sum(0), truth.sum(0)
    precision, recall = hits / np.maximum(answered, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(answered + support, 1)
    ranked = average_precisions(truth, probabilities[:, :-1])
    return MultiLabelScores(
        version=version,
        metrics={
            "accuracy": float(all_right(truth, probabilities).mean()),
            "macro_f1": float(f1.mean()),
            "map": float(ranked.mean()),
        },
        slices={
            f"class/{label}": LabelSlice(
                support=int(support[i]), score=float(f1[i]), precision=float(precision[i]), recall=float(recall[i]),
                f1=float(f1[i]), average_precision=float(ranked[i]),
            )
            for i, label in enumerate(labels)
        },
    )  # fmt: skip


def part(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> LabelSlice:
    """Return the micro-averaged scores of some pictures together, and the mean of their average precisions.

    Args:
        truth: 0 or 1, int [N, K].
        probabilities: float [N, K + 1].
    """
    shown, ranked = probabilities[:, :-1] >= SHOWN, average_precisions(truth, probabilities[:, :-1])
    hits, answered, support = int((truth * shown).sum()), int(shown.sum()), int(truth.sum())
    f1 = 2 * hits / max(answered + support, 1)
    known = truth.any(0)
    return LabelSlice(
        support=len(truth), score=f1, precision=hits / max(answered, 1), recall=hits / max(support, 1), f1=f1,
        average_precision=float(ranked[known].mean()) if known.any() else 0.0,
    )  # fmt: skip


def part_gain(
    truth: NDArray[np.int64], candidate: NDArray[np.float64], champion: NDArray[np.float64], groups: NDArray[np.int64]
) -> Gain:
    """Return the gain in what `part` scores; `groups` are numbered from 0."""
    import numpy as np

    ours, theirs = (
        entries._replace(column=np.zeros_like(entries.column))
        for entries in (_entries(truth, found) for found in (candidate, champion))
    )
    return f1_gains([""], ours, theirs, np.array([max(int(truth.sum()), 1)]), groups)[0]


def all_right(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each picture whether all its labels are shown and no other class is, bool [N]."""
    shown = probabilities >= SHOWN
    return (shown[:, :-1] == truth).all(axis=1) & ~shown[:, -1]  # type: ignore[no-any-return]


def average_precisions(
    truth: NDArray[np.int64], probabilities: NDArray[np.float64], counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the average precision of each class: the precision at each threshold, weighted by what recall it adds.

    It is the area under the precision-recall curve without interpolation, as scikit-learn computes it; pictures of
    one probability come at one threshold. A class without pictures has 0.

    Args:
        truth: 0 or 1, int [N, K].
        probabilities: float [N, K].
        counts: how often each picture occurs in each draw, int [draws, N]; then the result is [draws, K].
    """
    import numpy as np

    weights = np.ones((1, len(truth)), np.int64) if counts is None else counts
    found = np.zeros((len(weights), truth.shape[1]))
    for column in range(truth.shape[1]):
        order = np.argsort(-probabilities[:, column], kind="stable")
        ranked, right = probabilities[order, column], truth[order, column]
        drawn = weights[:, order]
        ends = np.searchsorted(-ranked, -ranked, side="right") - 1  # the last one of the same probability
        hits = (drawn * right).cumsum(axis=1)
        precision = hits[:, ends] / np.maximum(drawn.cumsum(axis=1)[:, ends], 1)
        found[:, column] = (drawn * right * precision).sum(axis=1) / np.maximum(hits[:, -1], 1)
    return found[0] if counts is None else found


def compare(
    labels: list[str],
    truth: NDArray[np.int64],
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> Comparison:
    """Compare two models on the same pictures.

    Args:
        labels: the K golden classes.
        truth: 0 or 1, int [N, K].
        candidate, champion: probabilities, float [N, K + 1].
        groups: the split group of each picture, int [N].
    """
    import numpy as np

    candidate_right, champion_right = all_right(truth, candidate), all_right(truth, champion)
    only_candidate = int((candidate_right & ~champion_right).sum())
    only_champion = int((champion_right & ~candidate_right).sum())
    ours, theirs = _entries(truth, candidate), _entries(truth, champion)
    macro, by_class = f1_gains(labels, ours, theirs, truth.sum(0), groups)
    right = candidate_right.astype(np.float64) - champion_right
    return Comparison(
        pictures=len(truth), only_candidate_right=only_candidate, only_champion_right=only_champion,
        p_value=mcnemar(only_candidate, only_champion),
        gains={
            "accuracy": mean_gain(right, groups),
            "macro_f1": macro,
            "map": _ranking_gain(truth, candidate, champion, groups),
        },
        slices={f"class/{label}": gain for label, gain in by_class.items()},
    )  # fmt: skip


def _entries(truth: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Entries:
    """Return what a model adds to each class: the pictures that have it, or are said to have it."""
    import numpy as np

    shown = probabilities[:, :-1] >= SHOWN
    picture, column = np.nonzero(truth.astype(bool) | shown)
    there, said = truth[picture, column].astype(np.float64), shown[picture, column].astype(np.float64)
    return Entries(picture, column, hits=2 * there * said, both=there + said)


def _ranking_gain(
    truth: NDArray[np.int64],
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> Gain:
    """Return the gain in `map`, its standard error by a bootstrap of the split groups."""
    import numpy as np

    def gain(counts: NDArray[np.int64] | None) -> NDArray[np.float64]:
        ours, theirs = (average_precisions(truth, found[:, :-1], counts) for found in (candidate, champion))
        return (ours - theirs).mean(axis=-1)  # type: ignore[no-any-return]

    rng, number = np.random.default_rng(SEED), int(groups.max()) + 1
    even = np.full(number, 1 / number)
    draws = [
        gain(rng.multinomial(number, even, size=DRAWS_AT_ONCE)[:, groups]) for _ in range(RESAMPLES // DRAWS_AT_ONCE)
    ]
    error = float(np.concatenate(draws).std())
    return Gain(value=float(gain(None)), standard_error=error, groups=number, effective=float(number))
