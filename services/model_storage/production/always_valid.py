"""Evidence that may be looked at all the time: e-processes and confidence sequences of rates.

An e-process is a wager against a hypothesis: while the hypothesis holds it exceeds 1/alpha ever, at whatever times one
looks and whenever one stops, with a probability of at most alpha (Ville 1939; Ramdas et al., "Game-theoretic statistics
and safe anytime-valid inference", 2023). Mixing over alternatives is Robbins' method ("Statistical methods related to
the law of the iterated logarithm", 1970); Johari et al. ("Peeking at A/B tests", 2017) use it for such comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

ODDS_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
"""The alternatives that are mixed, each with the same weight: how many times the odds of the canary are higher."""
TILTS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""The exponents that are mixed for a bound of a rate: how far, in log odds, the bound is from what was seen."""
CLOSE = 1e-7  # to the logarithm of the threshold: what a bound is exact to


class Trials(BaseModel):
    """How many were looked at, and how many of them were bad."""

    count: int = 0
    bad: int = 0

    def __add__(self, other: Trials) -> Trials:
        return Trials(count=self.count + other.count, bad=self.bad + other.bad)

    @property
    def rate(self) -> float | None:
        """The share of bad ones; None of none."""
        return self.bad / self.count if self.count else None


def excess(champion: Trials, canary: Trials) -> list[float]:
    """Return the log likelihood ratios of a table against "the canary's rate is not higher", for each odds ratio.

    Given how many each had and how many were bad in all, the number of the canary's bad ones is hypergeometric where
    the rates are equal, and Fisher's noncentral hypergeometric with the odds ratio r where they are not:

        log LR = k1 ln r - ln sum_j C(n1, j) C(n0, k - j) r^j + ln sum_j C(n1, j) C(n0, k - j)

    The rates themselves, the share of the requests and how they change from table to table do not enter, so that a
    bad hour that both have is no evidence (the condition of Fisher's exact test, table by table as in that of Mantel
    and Haenszel). The ratio has the mean 1 where the rates are equal and less where the canary's is lower: products
    over tables are e-processes (Turner, Ly, Grünwald, "Generic E-variables for exact sequential k-sample tests", 2024).
    """
    bad = champion.bad + canary.bad
    low, high = max(0, bad - champion.count), min(bad, canary.count)
    log_ratios = np.log(ODDS_RATIOS)
    if low == high:
        return [0.0] * len(ODDS_RATIOS)
    j = np.arange(low, high, dtype=float)  # the weight of j + 1 by that of j
    steps = np.log((canary.count - j) * (bad - j)) - np.log((j + 1) * (champion.count - bad + j + 1))
    weights = np.concatenate([[0.0], np.cumsum(steps)])
    tilted = weights[None, :] + log_ratios[:, None] * np.arange(low, high + 1, dtype=float)
    found = canary.bad * log_ratios - _log_sum(tilted) + _log_sum(weights[None, :])
    return [float(value) for value in found]


def beyond(rate: float, seen: Trials) -> list[float]:
    """Return the log likelihood ratios against "the rate is at most `rate`" (0 to 1), for each odds ratio."""
    found = []
    for ratio in ODDS_RATIOS:
        other = rate * ratio / (1 - rate + rate * ratio)
        good = (seen.count - seen.bad) * math.log((1 - other) / (1 - rate))
        found.append(seen.bad * math.log(other / rate) + good)
    return found


def log_mean(log_values: Sequence[float]) -> float:
    """Return the logarithm of the mean of e-processes, which is one too, by their logarithms."""
    top = max(log_values)
    return top + math.log(sum(math.exp(value - top) for value in log_values) / len(log_values))


def upper_bound(seen: Trials, alpha: float) -> float:
    """Return what the rate is below, at all times together but for a probability `alpha`.

    With the tilts t < 0 the mean over t of exp(t k - n ln(1 + p (e^t - 1))) is at most an e-process where p is the mean
    of the rates so far, which may change: ln(1 + p (e^t - 1)) is concave in p (the sub-Bernoulli case of Howard et al.,
    "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021).
    """
    return 1.0 - _root(lambda q: _wager(seen, 1.0 - q, -1.0) - math.log(1 / alpha))


def lower_bound(seen: Trials, alpha: float) -> float:
    """Return what the rate is above, as `upper_bound` does for the other side."""
    return _root(lambda p: _wager(seen, p, 1.0) - math.log(1 / alpha))


def excess_below(champion: Trials, canary: Trials, alpha: float) -> float:
    """Return what the canary's rate less the champion's is below, at all times but for a probability `alpha`."""
    return upper_bound(canary, alpha / 2) - lower_bound(champion, alpha / 2)


def _wager(seen: Trials, rate: float, sign: float) -> float:
    values = [
        sign * tilt * seen.bad - (seen.count * math.log1p(rate * math.expm1(sign * tilt)) if seen.count else 0.0)
        for tilt in TILTS
    ]
    return log_mean(values)


def _root(of: Callable[[float], float]) -> float:
    """Return where a function that falls from 0 to 1 crosses zero, or 0 where it is never above (Illinois' method)."""
    low, high, at_low, at_high = 0.0, 1.0, of(0.0), of(1.0)
    if at_low <= 0:
        return 0.0
    moved = 0  # which end moved last; the one that stays for a second time counts half
    while True:
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        found = of(middle)
        if abs(found) < CLOSE or not low < middle < high:
            return middle
        if found > 0:
            low, at_low, at_high, moved = middle, found, at_high / (2 if moved > 0 else 1), 1
        else:
            high, at_high, at_low, moved = middle, found, at_low / (2 if moved < 0 else 1), -1


def _log_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of exponentials along the last axis."""
    top = values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(axis=-1)))
