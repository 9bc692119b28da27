"""The uncertainty of a paired difference between two models, where pictures of one split group are not independent.

Linearization: each picture moves a metric by its influence; the variance is that of the sums by group (the
infinitesimal jackknife, which a bootstrap of the groups tends to; Efron 1982, Cameron and Miller 2015). It is one pass
over the pictures, so that 100,000 of them with 200 classes take a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from training_jobs.scoring.evaluation import Gain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def group_numbers(split_groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the split group of each picture as a number from 0, int [N]."""
    import numpy as np

    numbers: NDArray[np.int64] = np.unique(np.asarray(split_groups), return_inverse=True)[1].astype(np.int64)
    return numbers


class Entries(NamedTuple):
    """What pictures add to the F1 of classes, 2 TP / (2 TP + FP + FN): one row a picture, class and side.

    `hits` counts in the numerator, `both` in the denominator; all [M].
    """

    picture: NDArray[np.int64]
    column: NDArray[np.int64]
    hits: NDArray[np.float64]
    both: NDArray[np.float64]


def mean_gain(differences: NDArray[np.float64], groups: NDArray[np.int64]) -> Gain:
    """Return the gain of a mean over pictures; `differences` [N] are the candidate's value less the champion's."""
    import numpy as np

    count, value = len(differences), float(differences.mean())
    influence = (differences - value) / count
    by_group = np.bincount(groups, influence)
    number = len(by_group)
    variance = float((by_group**2).sum()) * number / max(number - 1, 1)
    single = float((influence**2).sum()) * count / max(count - 1, 1)
    return Gain(
        value=value, standard_error=variance**0.5, groups=number,
        effective=count / _design_effect(variance, single, count / number),
    )  # fmt: skip


def f1_gains(
    names: Sequence[str], candidate: Entries, champion: Entries, support: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[Gain, dict[str, Gain]]:
    """Return the gain in macro F1 (of all `names`), and the gain in F1 of each that has golden examples, by name.

    Args:
        names: the K columns.
        candidate, champion: what the pictures add to each column.
        support: golden examples of each column, int [K].
        groups: the split group of each picture, int [N].
    """
    import numpy as np

    columns = len(names)
    parts = [_linearized(entries, columns, sign) for entries, sign in ((candidate, 1.0), (champion, -1.0))]
    values = parts[0][0] - parts[1][0]
    number, count = int(groups.max()) + 1, len(groups)
    picture = np.concatenate([candidate.picture, champion.picture])
    column = np.concatenate([candidate.column, champion.column])
    influence = np.concatenate([parts[0][1], parts[1][1]])
    by_group, macro_by_group, reached = _variances(groups[picture], column, influence, columns)
    single, macro_single = by_group, macro_by_group
    if number < count:
        single, macro_single, _ = _variances(picture, column, influence, columns)
    shown = support > 0
    slices = {}
    for i in np.flatnonzero(shown).tolist():
        effect = _design_effect(float(by_group[i]), float(single[i]), count / number)
        slices[names[i]] = Gain(
            value=float(values[i]), standard_error=float(by_group[i]) ** 0.5, groups=int(reached[i]),
            effective=2 * float(support[i]) / effect,
        )  # fmt: skip
    effect = _design_effect(macro_by_group, macro_single, count / number)
    # A picture moves the F1 of its class by about 1 / (2 support), and that of the class it is taken for.
    worth = columns**2 / float((1 / support[shown]).sum()) / effect if shown.any() else 1.0
    macro = Gain(value=float(values.mean()), standard_error=macro_by_group**0.5, groups=number, effective=worth)
    return macro, slices


def _linearized(entries: Entries, columns: int, sign: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the F1 of each column, [K], and the influence of each entry on its column's F1, [M], times `sign`."""
    import numpy as np

    hits = np.bincount(entries.column, entries.hits, columns)
    both = np.bincount(entries.column, entries.both, columns)
    f1 = np.divide(hits, both, out=np.zeros(columns), where=both > 0)
    over = np.divide(sign, both, out=np.zeros(columns), where=both > 0)
    return f1, (entries.hits - f1[entries.column] * entries.both) * over[entries.column]


def _variances(
    unit: NDArray[np.int64], column: NDArray[np.int64], influence: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.float64], float, NDArray[np.int64]]:
    """Return the variance of each column's sum [K], that of the mean over the columns, and the units of each [K]."""
    import numpy as np

    number = int(unit.max()) + 1
    keys, where = np.unique(unit * columns + column, return_inverse=True)
    sums = np.bincount(where, influence)
    correction = number / max(number - 1, 1)
    each = np.asarray(np.bincount(keys % columns, sums**2, columns) * correction, np.float64)
    whole = np.bincount(unit, influence, number) / columns
    reached = np.bincount(keys % columns, minlength=columns).astype(np.int64)
    return each, float((whole**2).sum()) * correction, reached


def _design_effect(by_group: float, by_picture: float, pictures_a_group: float) -> float:
    """Return how many pictures are worth one independent picture, at least 1; where nothing differs, a whole group."""
    return max(by_group / by_picture, 1.0) if by_picture > 0 else pictures_a_group
