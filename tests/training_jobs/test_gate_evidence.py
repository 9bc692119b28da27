"""What the gate takes for proven: against exact chances, resampling, published numbers and simulated nights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from nightshift_common.options.gate import GateOptions
from training_jobs.gate import Decision, decide
from training_jobs.scoring import evidence
from training_jobs.scoring.evaluation import Evaluation, Gain
from training_jobs.scoring.evidence import holm, interval, loss_p_value, more_needed, quantile, spent_at
from training_jobs.scoring.metrics import compare, score
from training_jobs.scoring.paired import group_numbers, mean_gain


def gain_of(only_candidate: int, only_champion: int, pictures: int) -> Gain:
    """Return the gain in accuracy of two models that differ so, in closed form."""
    d = (only_candidate - only_champion) / pictures
    variance = ((only_candidate + only_champion) / pictures - d * d) / (pictures - 1)
    return Gain(value=d, standard_error=max(variance, 0.0) ** 0.5, groups=pictures, effective=float(pictures))


def judged(
    classes: int, truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None = None,
    look: int = 1, **rules: object,
) -> Decision:  # fmt: skip
    labels = [f"c{i:03}" for i in range(classes)]
    sides = [
        score(name, labels, truth, np.eye(classes + 1)[predicted])
        for name, predicted in (("new", ours), ("old", theirs))
    ]
    found = Evaluation(
        group="g", snapshot_id="s", experiment="models/g/new", model_name="g", labels=labels, pictures=len(truth),
        candidate=sides[0], champion=sides[1], look=look,
        comparison=compare(labels, truth, ours, theirs, np.arange(len(truth)) if groups is None else groups),
    )  # fmt: skip
    return decide(found, GateOptions.model_validate({"metric": "accuracy", **rules}))


def pair(
    random: np.random.Generator, classes: int, each: int, lost: float, won: float, wrong: float = 0.05
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, candidate and champion: pictures that the champion alone is right on, and the candidate alone."""
    truth = np.repeat(np.arange(classes), each)
    fate = random.choice(4, len(truth), p=[1 - lost - won - wrong, lost, won, wrong])
    other = (truth + random.integers(1, classes, len(truth))) % classes
    return truth, np.where((fate == 1) | (fate == 3), other, truth), np.where(fate >= 2, other, truth)


@pytest.mark.parametrize("pictures", [40, 307])
@pytest.mark.parametrize("level", [0.05, 1.4e-4])
@pytest.mark.parametrize("margin", [0.01, 0.03])
def test_the_bound_holds_exactly_for_few_pictures(pictures: int, level: float, margin: float) -> None:
    """All tables of two models that differ by just the margin, with their exact chances: how many pass?"""
    n, limit = pictures, 24  # no table with more differences than that has a chance that counts
    ours, theirs = np.meshgrid(np.arange(limit), np.arange(limit), indexing="ij")
    tables = np.stack([ours, theirs, n - ours - theirs], axis=-1).reshape(-1, 3)
    z = quantile(level, n)
    gains = [gain_of(b, c, n) for b, c, _ in tables]
    passes = np.array([g.value + margin >= z * evidence.variance_if(g, -margin) ** 0.5 for g in gains])
    for won in (0.0, 0.002, 0.01):
        chances = [won, won + margin, 1 - 2 * won - margin]
        size = float(stats.multinomial.pmf(tables, n, chances)[passes].sum())
        assert size <= level * 1.15, f"won {won}: {size:.2g} of {level:.2g}"


@pytest.mark.parametrize(
    ("only_ours", "only_theirs", "pictures"), [(1, 12, 300), (20, 22, 1000), (0, 0, 100), (9, 2, 500)]
)
def test_the_interval_is_where_the_likelihood_score_turns(only_ours: int, only_theirs: int, pictures: int) -> None:
    """Tango's definition, with the shares found by maximizing the trinomial's likelihood instead of in closed form."""
    from scipy.optimize import minimize_scalar

    def score_of(true: float) -> float:
        def likelihood(share: float) -> float:
            other = share - true
            terms = ((only_ours, share), (only_theirs, other), (pictures - only_ours - only_theirs, 1 - share - other))
            return -sum(count * np.log(max(p, 1e-300)) for count, p in terms if count)

        bounds = max(true, 0.0), (1 + true) / 2
        share = minimize_scalar(likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        variance = (2 * share - true - true**2) / pictures
        return ((only_ours - only_theirs) / pictures - true) / variance**0.5

    z = quantile(0.025, pictures)
    lower, upper = interval(gain_of(only_ours, only_theirs, pictures), 0.025)
    assert score_of(lower) == pytest.approx(z, rel=0.04)
    assert score_of(upper) == pytest.approx(-z, rel=0.04)


def test_no_difference_at_all_proves_what_an_exact_test_says() -> None:
    """None of n pictures lost: less than 1 - level^(1/n) is, about log(1/level)/n (the rule of three and its kin)."""
    for n in (100, 1000, 10_000):
        assert -interval(gain_of(0, 0, n), 0.05).lower == pytest.approx(2.71 / n, rel=0.06)
        assert -interval(gain_of(0, 0, n), 0.001).lower > 1 - 0.001 ** (1 / n)


@given(
    value=st.floats(-0.2, 0.2), error=st.floats(0, 0.1), effective=st.floats(5, 1e5), level=st.floats(1e-5, 0.1)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_bounds_enclose_the_gain_mirror_each_other_and_tighten_with_pictures(
    value: float, error: float, effective: float, level: float
) -> None:
    gain = Gain(value=value, standard_error=error, groups=500, effective=effective)
    lower, upper = interval(gain, level)
    assert lower <= value + 1e-12
    assert upper >= value - 1e-12
    mirrored = interval(gain.model_copy(update={"value": -value}), level)
    assert (-mirrored.upper, -mirrored.lower) == pytest.approx((lower, upper))
    more = gain.model_copy(update={"standard_error": error / 2, "effective": effective * 4})
    assert interval(more, level).lower >= lower - 1e-12


def test_pictures_of_one_group_are_not_counted_as_independent_ones() -> None:
    """Of 60 picsets of ten pictures each picset flips as a whole: the error is that of resampled picsets."""
    random = np.random.default_rng(4)
    names = np.repeat([f"picset {i}" for i in range(60)], 10)
    flips = np.repeat(random.choice([-1.0, 0.0, 1.0], 60, p=[0.2, 0.6, 0.2]), 10)
    groups = group_numbers(list(names))
    found = mean_gain(flips, groups)
    sums = flips.reshape(60, 10).mean(1)
    resampled = [sums[random.integers(0, 60, 60)].mean() for _ in range(4000)]
    assert found.standard_error == pytest.approx(np.std(resampled), rel=0.05)
    assert (found.groups, found.effective) == (60, pytest.approx(60, rel=0.02))
    single = mean_gain(flips, np.arange(600))
    assert found.standard_error == pytest.approx(single.standard_error * 10**0.5, rel=0.02)


def test_the_error_of_macro_f1_and_of_each_class_is_that_of_resampled_groups() -> None:
    random = np.random.default_rng(5)
    truth, ours, theirs = pair(random, 4, 100, 0.08, 0.1)
    order = random.permutation(len(truth))
    truth, ours, theirs = truth[order], ours[order], theirs[order]
    groups = np.arange(len(truth)) // 2
    labels = list("abcd")
    found = compare(labels, truth, ours, theirs, groups)
    macro, each = [], []
    for _ in range(400):
        drawn = random.integers(0, 200, 200)
        where = np.concatenate([2 * drawn, 2 * drawn + 1])
        f1 = [f1_score(truth[where], p[where], average=None, labels=range(4)) for p in (ours, theirs)]
        each.append(f1[0] - f1[1])
        macro.append(each[-1].mean())
    assert found.gains["macro_f1"].standard_error == pytest.approx(np.std(macro), rel=0.12)
    for index, label in enumerate(labels):
        assert found.slices[f"class/{label}"].standard_error == pytest.approx(np.std(each, axis=0)[index], rel=0.15)
        whole = [f1_score(truth, p, average=None, labels=range(4))[index] for p in (ours, theirs)]
        assert found.slices[f"class/{label}"].value == pytest.approx(whole[0] - whole[1])


def test_the_budget_is_never_overdrawn_and_half_of_it_lasts_for_ninety_candidates() -> None:
    spent = [spent_at(look, 0.05) for look in range(1, 20_001)]
    assert sum(spent[:90]) == pytest.approx(0.025)
    assert sum(spent) < 0.05
    assert all(a > b for a, b in pairwise(spent))


def test_holm_is_that_of_his_paper_and_of_scipys_rule() -> None:
    given_ = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(given_) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})  # the usual worked example


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_holm_finds_what_bonferroni_finds_and_nothing_that_is_not_small(p_values: list[float]) -> None:
    adjusted = holm({str(i): p for i, p in enumerate(p_values)})
    for index, p in enumerate(p_values):
        assert p <= adjusted[str(index)] <= min(p * len(p_values), 1.0) + 1e-12


def test_students_quantile_for_few_groups_and_the_normal_one_for_many() -> None:
    assert quantile(0.025, 10) == pytest.approx(2.262, abs=1e-3)  # the printed table, 9 degrees of freedom
    assert quantile(0.025, None) == pytest.approx(1.960, abs=1e-3)


def test_a_better_a_worse_and_an_equal_candidate() -> None:
    random = np.random.default_rng(1)
    better = judged(10, *pair(random, 10, 1000, 0.01, 0.03))
    assert (better.verdict, better.decided) == ("promote", "promote")
    worse = judged(10, *pair(random, 10, 1000, 0.06, 0.01))
    assert (worse.verdict, worse.decided) == ("reject", "reject")
    assert "is shown to be missed" in worse.failed[0]
    few = judged(10, *pair(random, 10, 30, 0.02, 0.02))
    assert (few.verdict, few.decided) == ("undecided", "keep")
    assert few.sentence.startswith("undecided: the true gain in accuracy over the champion old is between -0.")
    assert few.sentence.endswith("by gate.undecided the champion stays")


def test_superiority_is_shown_where_it_is_asked_for() -> None:
    random = np.random.default_rng(2)
    equal = pair(random, 10, 1000, 0.01, 0.01)
    assert judged(10, *equal).verdict == "promote"
    assert judged(10, *equal, min_gain=0.0).verdict == "undecided"
    assert judged(10, *pair(random, 10, 1000, 0.01, 0.03), min_gain=0.005).verdict == "promote"


def test_as_many_more_pictures_as_are_said_to_be_needed_do_decide() -> None:
    for b, c, n in ((20, 22, 1000), (0, 0, 300), (5, 25, 900), (3, 1, 200)):
        few, level = gain_of(b, c, n), 1e-4
        more = more_needed(few, -0.01, level, n)
        assert more is not None
        share = (n + more) / n
        lower, upper = interval(
            Gain(
                value=few.value, standard_error=few.standard_error / share**0.5, groups=n + more,
                effective=float(n + more),
            ),
            level,
        )  # fmt: skip
        assert lower >= -0.0101 or upper <= -0.0099
        lower, upper = interval(few, level)
        assert lower < -0.01 < upper


def test_a_class_that_is_lost_vetoes_and_one_that_lost_a_picture_or_two_does_not() -> None:
    random = np.random.default_rng(3)
    truth, ours, theirs = pair(random, 50, 200, 0.01, 0.01)
    lost = np.flatnonzero(truth == 7)[:80]
    ours[lost] = 8
    spoiled = judged(50, truth, ours, theirs, min_gain=-0.05)
    assert spoiled.verdict == "reject"
    assert [reason[:10] for reason in spoiled.failed] == ["class/c007", "class/c008"], "what takes its pictures, too"
    assert "corrected for 50 slices" in spoiled.failed[0]


def test_equal_models_of_many_small_classes_are_not_rejected_and_are_without_the_correction() -> None:
    """50 classes of 40 pictures, 40 nights: the old rule on measured numbers refused nearly all of them."""
    random = np.random.default_rng(6)
    verdicts = [judged(50, *pair(random, 50, 40, 0.06, 0.06)) for _ in range(40)]
    assert sum(found.verdict == "reject" for found in verdicts) <= 1
    assert any("class/" in reason for found in verdicts for reason in found.undecided)
    assert any("more golden pictures of it would decide" in reason for found in verdicts for reason in found.undecided)


def uncorrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training_jobs.gate.holm", dict)


def test_without_holm_equal_models_would_be_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the test before: it can see the correction go."""
    random = np.random.default_rng(6)
    uncorrected(monkeypatch)
    verdicts = [judged(50, *pair(random, 50, 40, 0.06, 0.06)) for _ in range(40)]
    assert sum(found.verdict == "reject" for found in verdicts) > 4


def promoted_in(histories: int, nights: int, seed: int) -> float:
    """Return in which share of histories a candidate that is worse by just the margin is ever promoted."""
    random, n, margin, ever = np.random.default_rng(seed), 2000, 0.02, 0
    lost, won = 0.03, 0.01
    for _ in range(histories):
        draws = random.multinomial(n, [won, lost, 1 - won - lost], size=nights)
        ever += any(
            interval(gain_of(b, c, n), spent_at(look, 0.05)).lower >= -margin
            for look, (b, c, _) in enumerate(draws, start=1)
        )
    return ever / histories


def test_over_many_nights_no_candidate_that_is_worse_by_the_margin_passes_more_often_than_budgeted() -> None:
    assert promoted_in(300, 90, 7) <= 0.05


def test_without_the_budget_one_would_pass_in_most_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "spent_at", lambda look, budget: budget)
    monkeypatch.setitem(globals(), "spent_at", evidence.spent_at)
    assert promoted_in(60, 90, 7) > 0.5


def test_a_loss_is_as_probable_as_mcnemars_test_says() -> None:
    for b, c, n in ((0, 9, 100), (3, 17, 400), (10, 40, 1000)):
        exact = stats.binomtest(b, b + c, 0.5, alternative="less").pvalue
        assert loss_p_value(gain_of(b, c, n)) == pytest.approx(exact, rel=1.2, abs=2e-4)
    assert loss_p_value(gain_of(4, 4, 100)) == 1.0


def test_pictures_that_become_wrong_are_limited() -> None:
    truth, ours, theirs = pair(np.random.default_rng(8), 10, 1000, 0.01, 0.03)
    lost = int(((ours != truth) & (theirs == truth)).sum())
    assert judged(10, truth, ours, theirs, max_negative_flips=lost / 10_000).verdict == "promote"
    found = judged(10, truth, ours, theirs, max_negative_flips=(lost - 1) / 10_000)
    assert found.verdict == "reject"
    assert found.failed[0].startswith(f"{lost} golden pictures (")
