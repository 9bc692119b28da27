"""The statistics of the judge against other sources: scipy's distributions, exact enumeration, Fisher's tea."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, nchypergeom_fisher

from services.model_storage.production.always_valid import (
    ODDS_RATIOS,
    Trials,
    beyond,
    excess,
    excess_below,
    log_mean,
    lower_bound,
    upper_bound,
)


def trials(count: int, bad: int) -> Trials:
    return Trials(count=count, bad=bad)


@pytest.mark.parametrize(
    ("champion", "canary"), [((38, 1), (2, 2)), ((20, 3), (20, 9)), ((5, 5), (9, 1)), ((190, 0), (10, 1))]
)
def test_a_table_weighs_what_the_noncentral_hypergeometric_distribution_of_scipy_says(
    champion: tuple[int, int], canary: tuple[int, int]
) -> None:
    total, bad = champion[0] + canary[0], champion[1] + canary[1]
    wanted = [
        math.log(
            nchypergeom_fisher.pmf(canary[1], total, bad, canary[0], ratio)
            / nchypergeom_fisher.pmf(canary[1], total, bad, canary[0], 1.0)
        )
        for ratio in ODDS_RATIOS
    ]
    assert excess(trials(*champion), trials(*canary)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_lady_who_tells_all_eight_cups_of_tea_is_one_chance_in_seventy() -> None:
    assert math.exp(excess(trials(4, 0), trials(4, 4))[-1]) == pytest.approx(70, rel=0.02)  # Fisher, 1935


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.5, 0.5), (0.3, 0.1), (0.9, 0.2)])
def test_a_wager_on_a_canary_that_is_no_worse_does_not_pay_on_average(rates: tuple[float, float]) -> None:
    mean = np.zeros(len(ODDS_RATIOS))
    for bad0, bad1 in itertools.product(range(8), range(4)):
        chance = binom.pmf(bad0, 7, rates[0]) * binom.pmf(bad1, 3, rates[1])
        mean += chance * np.exp(excess(trials(7, bad0), trials(3, bad1)))
    if rates[0] == rates[1]:
        assert mean == pytest.approx(np.ones(len(ODDS_RATIOS)), rel=1e-9)
    assert (mean <= 1 + 1e-9).all()


def test_of_one_rate_the_ratio_is_that_of_binomial_chances() -> None:
    for rate, count, bad in ((0.05, 30, 4), (0.001, 500, 2), (0.5, 6, 6)):
        others = [rate * ratio / (1 - rate + rate * ratio) for ratio in ODDS_RATIOS]
        wanted = [binom.logpmf(bad, count, other) - binom.logpmf(bad, count, rate) for other in others]
        assert beyond(rate, trials(count, bad)) == pytest.approx(wanted, rel=1e-9)


def ever(rate: float, count: int, is_out: np.ndarray) -> float:
    """Return the exact chance that a path of `count` trials is ever out: `is_out` [trials, bad ones]."""
    chances, out = np.array([1.0]), 0.0
    for trial in range(1, count + 1):
        chances = np.concatenate([chances * (1 - rate), [0.0]]) + np.concatenate([[0.0], chances * rate])
        gone = is_out[trial, : trial + 1]
        out += float(chances[gone].sum())
        chances = np.where(gone, 0.0, chances)
    return out


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.3])
def test_looked_at_after_every_trial_the_evidence_errs_no_more_often_than_it_says(rate: float) -> None:
    count, alpha = 300, 0.05
    out = np.zeros((count + 1, count + 1), bool)
    for trial in range(1, count + 1):
        for bad in range(trial + 1):
            out[trial, bad] = log_mean(beyond(rate, trials(trial, bad))) >= math.log(1 / alpha)
    assert 0 < ever(rate, count, out) <= alpha
    assert ever(min(1.0, rate * 3), count, out) > 5 * ever(rate, count, out), "it does tell a higher rate"


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_looked_at_after_every_trial_the_bounds_err_no_more_often_than_they_say(rate: float) -> None:
    count, alpha = 80, 0.1
    above, below = np.zeros((2, count + 1, count + 1), bool)
    for trial in range(1, count + 1):
        for bad in range(trial + 1):
            above[trial, bad] = upper_bound(trials(trial, bad), alpha) < rate
            below[trial, bad] = lower_bound(trials(trial, bad), alpha) > rate
    assert ever(rate, count, above) <= alpha
    assert ever(rate, count, below) <= alpha


def test_bounds_close_in_on_the_rate_and_of_nothing_say_nothing() -> None:
    assert (lower_bound(Trials(), 0.05), upper_bound(Trials(), 0.05)) == (0.0, 1.0)
    for count in (100, 10_000):
        seen = trials(count, count // 20)
        assert lower_bound(seen, 0.05) < 0.05 < upper_bound(seen, 0.05)
        width = upper_bound(seen, 0.05) - lower_bound(seen, 0.05)
        fixed = 2 * 1.96 * math.sqrt(0.05 * 0.95 / count)  # an interval that may be looked at once
        assert fixed < width < 3 * fixed
    assert excess_below(trials(5000, 50), trials(5000, 50), 0.05) < 0.02
    assert excess_below(trials(5000, 50), trials(5000, 250), 0.05) > 0.03
