"""What a difference on golden pictures proves: intervals, the error budget of a golden set, Holm's correction.

docs/gate.md derives each formula and names its source. Only Student's quantiles come from SciPy, loaded when a
difference is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from training_jobs.scoring.evaluation import Gain

HALF_SPENT = 90  # candidates after which half of a golden set's error budget is spent: three months of nights
SLICE_LEVEL = 0.01  # the chance of a night that any slice is said to have lost where none has


class Interval(NamedTuple):
    """Where the true difference lies."""

    lower: float
    upper: float


def spent_at(look: int, budget: float) -> float:
    """Return what the `look`-th candidate (from 1) on a golden set may spend of its budget.

    The spending sums to look / (look + HALF_SPENT) of the budget, so that it is never overdrawn, however many nights
    there are: alpha spending after Lan and DeMets (1983), as a union bound, which needs no independence.
    """
    return budget * HALF_SPENT / ((look + HALF_SPENT - 1) * (look + HALF_SPENT))


def quantile(level: float, groups: int | None) -> float:
    """Return how many standard errors a bound is away that fails with the chance `level`: Student's, by the groups."""
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

    if groups is None:
        return float(-ndtri(level))
    return float(-stdtrit(groups - 1, level)) if groups > 1 else math.inf


def interval(gain: Gain, level: float) -> Interval:
    """Return bounds of the true difference, each of which fails with the chance `level`: Tango's score interval (1998).

    A difference is inside where the measured one lies within as many standard errors of it as `level` asks for, with
    the standard error that there would be if it were the true one. So few pictures prove little even where both models
    are right on all of them; a normal approximation proves anything there.
    """
    z = quantile(level, gain.groups)
    lower = _bound(gain, z)
    upper = -_bound(gain.model_copy(update={"value": -gain.value}), z)
    return Interval(lower, upper)


def variance_if(gain: Gain, true: float) -> float:
    """Return the variance of the gain if the true one were `true`.

    The standard error stands for as many pictures, each on one side, as it takes: a share `unlike` of `effective`
    independent ones. Of the shares on which one model alone is right, whose difference is `true`, the likeliest are
    taken (the counts being Poisson's).
    """
    if gain.effective is None:  # an evaluation of before
        return gain.standard_error**2
    unlike = max(gain.standard_error**2 * gain.effective + gain.value**2, abs(gain.value))
    better, less = (unlike + math.copysign(gain.value, -gain.value * true)) / 2, abs(true)
    rest = unlike - 2 * less
    share = (rest + math.sqrt(rest * rest + 8 * max(better, 0.0) * less)) / 4
    return (2 * share + less) / gain.effective


def _bound(gain: Gain, z: float) -> float:
    """Return the lower bound, to 1e-6, by bisection."""
    outside, inside = -1.0, min(gain.value, 1.0)
    if not math.isfinite(z) or gain.value - outside < z * math.sqrt(variance_if(gain, outside)):
        return outside
    while inside - outside > 1e-6:
        middle = (outside + inside) / 2
        if gain.value - middle >= z * math.sqrt(variance_if(gain, middle)):
            outside = middle
        else:
            inside = middle
    return outside


def more_needed(gain: Gain, wanted: float, level: float, pictures: int) -> int | None:
    """Return about how many more pictures would decide whether the gain reaches `wanted`, if it stays what it is.

    None where it is so near to `wanted` that no number would (less than a tenth of its own standard error), or where
    there is one group only.
    """
    distance, z = abs(gain.value - wanted), quantile(level, gain.groups)
    if distance <= gain.standard_error / 10 or not math.isfinite(z):
        return None
    return max(math.ceil(pictures * (variance_if(gain, wanted) * z * z / distance**2 - 1)), 1)


def loss_p_value(gain: Gain) -> float:
    """Return the chance of such a loss, or a larger one, where nothing is lost: one-sided (McNemar's, for accuracy)."""
    from scipy.special import ndtr, stdtr

    if gain.value >= 0 or (gain.groups is not None and gain.groups < 2):
        return 1.0
    z = gain.value / math.sqrt(variance_if(gain, 0.0))
    return float(ndtr(z) if gain.groups is None else stdtr(gain.groups - 1, z))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values adjusted for how many there are (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(p * (len(p_values) - rank), 1.0))
        adjusted[name] = largest
    return adjusted
