"""Judges a canary by what was counted of it and of the champion; asks and changes nothing by itself."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.model_storage.production.always_valid import (
    ODDS_RATIOS,
    Trials,
    beyond,
    excess,
    excess_below,
    log_mean,
    upper_bound,
)

CriterionName = Literal["errors", "failed", "late", "disagreeing", "slow_rounds"]
"""By Triton: requests that it counts as failed, rounds with a mean over the limit. By reports: the others."""
Outcome = Literal["promote", "abort", "undecided", "widen"]
Share = Annotated[float, Field(ge=1e-6, le=0.5)]

STEPS: tuple[float, ...] = (0.05, 0.2, 0.5)
ABORT_ALPHA = 0.01
"""The probability with which a canary that is as good as the champion is ever aborted is at most this."""
PROMOTE_ALPHA = 0.05
"""The probability with which a canary that is worse by the margin or more is ever promoted is at most this."""
DOUBT = 10.0  # evidence from which on a canary is not widened or promoted: "strong" on Jeffreys' scale
TABLE_REQUESTS = 20  # a table of N requests loses about 1/N of what they tell, so that smaller ones are put together
LARGEST = 1e300  # JSON has no infinity


class Rules(BaseModel):
    """What a canary has to show, and how fast it gets its share of the requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: Annotated[tuple[Share, ...], Field(min_length=1, max_length=10)] = STEPS
    """the shares of the requests, one after another"""
    step_requests: int = Field(25, ge=1, le=10**9)
    """answers of the canary after which it gets the next share, unless there is doubt"""
    min_requests: int = Field(100, ge=1, le=10**9)
    """answers of the canary at the last share before it is promoted"""
    max_requests: int = Field(100_000, ge=1, le=10**12)
    """answers of the canary at the last share after which it ends undecided"""
    margin: float = Field(0.02, gt=0, lt=1)
    """a canary is promoted once its rates are shown to be less than this above the champion's"""
    late_ms: float = Field(2000.0, gt=0)
    """milliseconds from which on an answer is late"""
    expected_disagreement: float | None = Field(None, ge=0.001, le=0.5)
    """The share of examples on which evaluation says that the two versions differ. None: `ASSUMED_DISAGREEMENT`, and
    the canary may be promoted without a single comparison."""

    @model_validator(mode="after")
    def _rise(self) -> Rules:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps are shares that rise: {list(self.steps)}")
        return self


ASSUMED_DISAGREEMENT = 0.05
"""What is expected where nobody says: two trainings of one architecture differ on some percent of their test pictures
(3 to 7 % on CIFAR-10 and ImageNet: Milani Fard et al., "Launch and iterate: reducing prediction churn", 2016)."""


class Criterion(BaseModel):
    """What was counted for one criterion. Of disagreeing answers there is the canary's side alone."""

    champion: Trials = Trials()
    canary: Trials = Trials()
    champion_at_step: Trials = Trials()
    canary_at_step: Trials = Trials()
    log_e: list[float] = [0.0] * len(ODDS_RATIOS)
    """of the tables so far, by odds ratio"""
    waiting: tuple[Trials, Trials] = (Trials(), Trials())
    """champion's and canary's, too few yet for a table"""

    def add(self, champion: Trials, canary: Trials) -> None:
        """Count what is new of both; whether it becomes a table depends on the counts alone, not on what was bad."""
        self._count(champion, canary)
        waiting = (self.waiting[0] + champion, self.waiting[1] + canary)
        if min(side.count for side in waiting) and sum(side.count for side in waiting) >= TABLE_REQUESTS:
            self._wager(excess(*waiting))
            waiting = (Trials(), Trials())
        self.waiting = waiting

    def add_pair(self, champion_is_bad: bool, canary_is_bad: bool) -> None:
        """Count one trial of each: a table as it is."""
        champion, canary = Trials(count=1, bad=champion_is_bad), Trials(count=1, bad=canary_is_bad)
        self._count(champion, canary)
        self._wager(excess(champion, canary))

    def add_beyond(self, rate: float, seen: Trials) -> None:
        """Count trials of the canary whose rate of bad ones should be at most `rate`."""
        self._count(Trials(), seen)
        self._wager(beyond(rate, seen))

    def start_step(self) -> None:
        """Begin to count anew what the bounds are of: requests of one share, so that both have seen the same hours."""
        self.champion_at_step, self.canary_at_step = Trials(), Trials()

    def _count(self, champion: Trials, canary: Trials) -> None:
        self.champion, self.canary = self.champion + champion, self.canary + canary
        self.champion_at_step, self.canary_at_step = self.champion_at_step + champion, self.canary_at_step + canary

    def _wager(self, log_ratios: list[float]) -> None:
        self.log_e = [have + new for have, new in zip(self.log_e, log_ratios, strict=True)]


class Answers(BaseModel):
    """What clients saw of one version since they last told: answers, and those that were late and that were errors."""

    count: int = 0
    late: int = 0
    failed: int = 0

    def of(self, bad: int) -> Trials:
        """Return them as trials of which `bad` were bad."""
        return Trials(count=self.count, bad=bad)


class Finding(BaseModel):
    """What is known of one criterion, in numbers."""

    criterion: CriterionName
    champion: Trials
    canary: Trials
    excess: float | None
    """rate of the canary less the champion's, or less the expected disagreement"""
    excess_below: float | None
    """what that is below by the requests at this share, at all times but for a probability of 5 %"""
    e_value: float
    """evidence that the canary is worse: the odds at which a wager on it has paid so far"""


class Evidence(BaseModel):
    """What a canary has shown, as the history and the page tell it."""

    share: float
    step: int
    steps: list[float]
    margin: float
    late_ms: float
    expected_disagreement: float
    requests_at_share: int
    """answers of the canary at this share"""
    champion_ms: float | None
    canary_ms: float | None
    """means of what Triton took for its answers"""
    e_value: float
    """of all criteria together; aborted at 1 / 0.01"""
    findings: list[Finding]
    says: str
    """where it stands, or why it ended, in a sentence"""


class Judging(BaseModel):
    """A canary under way and all that was counted of it."""

    version: str
    champion: str
    rules: Rules
    step: int = 0
    errors: Criterion = Criterion()
    failed: Criterion = Criterion()
    late: Criterion = Criterion()
    disagreeing: Criterion = Criterion()
    slow_rounds: Criterion = Criterion()
    counters: dict[str, dict[str, tuple[int, int, int]]] = {}
    """Triton's counters when they were last read: by server and by "champion", "canary": answered, failed, ns"""
    nanoseconds: dict[str, tuple[int, int]] = {}
    """answers and the nanoseconds that Triton took for them: "champion", "canary" """
    trouble: str | None = None
    """why it is not promoted although it has shown all that it should"""

    @property
    def share(self) -> float:
        """The share of the requests that the canary gets."""
        return self.rules.steps[self.step]

    @property
    def expected_disagreement(self) -> float:
        """The share of examples on which the versions are expected to differ."""
        return self.rules.expected_disagreement or ASSUMED_DISAGREEMENT

    def criteria(self) -> dict[CriterionName, Criterion]:
        """The criteria by their names."""
        return {
            "errors": self.errors, "failed": self.failed, "late": self.late, "disagreeing": self.disagreeing,
            "slow_rounds": self.slow_rounds,
        }  # fmt: skip

    def read(self, counters: dict[str, dict[str, tuple[int, int, int]]]) -> None:
        """Count what Triton has answered since its counters were last read, by server and by arm.

        A counter that fell is that of a model that was loaded again: it began at 0. A server that is not named did not
        answer: its counters are kept. What a server has at its first reading is not counted.
        """
        new = {"champion": (0, 0, 0), "canary": (0, 0, 0)}
        for server, arms in counters.items():
            before = self.counters.get(server, {})
            for arm, now in arms.items():
                last = before.get(arm, now)
                if any(a < b for a, b in zip(now, last, strict=True)):
                    last = (0, 0, 0)
                new[arm] = tuple(n + a - b for n, a, b in zip(new[arm], now, last, strict=True))  # type: ignore[assignment]
        self.counters = self.counters | {
            server: self.counters.get(server, {}) | arms for server, arms in counters.items()
        }
        champion, canary = new["champion"], new["canary"]
        self.errors.add(*(Trials(count=done + failed, bad=failed) for done, failed, _ in (champion, canary)))
        for arm, (done, _, took) in new.items():
            have = self.nanoseconds.get(arm, (0, 0))
            self.nanoseconds[arm] = (have[0] + done, have[1] + took)
        if (
            canary[0] >= champion[0] > 0
        ):  # fewer requests have a mean that varies more, and is over the limit more often
            limit = self.rules.late_ms * 1e6
            self.slow_rounds.add_pair(champion[2] > limit * champion[0], canary[2] > limit * canary[0])

    def report(self, champion: Answers, canary: Answers, compared: Trials) -> None:
        """Count what clients saw: answers of both, and examples that both answered, in disagreement or not."""
        self.failed.add(champion.of(champion.failed), canary.of(canary.failed))
        self.late.add(champion.of(champion.late), canary.of(canary.late))
        if compared.count:
            self.disagreeing.add_beyond(self.expected_disagreement, compared)

    def verdict(self) -> tuple[Outcome | None, str]:
        """Return what is to be done now, None for nothing, and why."""
        log_e = self._log_e()
        worst = max(self.criteria(), key=lambda name: log_mean(self.criteria()[name].log_e))
        if log_e >= math.log(1 / ABORT_ALPHA):
            return "abort", f"{_WORSE[worst]}: {self._rates(worst)}, evidence {_number(log_e)}"
        done = self._done()
        last = self.step == len(self.rules.steps) - 1
        if last and done >= self.rules.max_requests:
            return "undecided", f"neither worse nor shown to be as good after {done} answers at its last share"
        if log_e >= math.log(DOUBT):
            return None, f"doubt: {_WORSE[worst]}: {self._rates(worst)}, evidence {_number(log_e)}"
        if not last:
            if done >= self.rules.step_requests:
                return "widen", f"{done} answers at a share of {self.share:g} gave no cause for doubt"
            return None, f"{done} of {self.rules.step_requests} answers at a share of {self.share:g}"
        if done < self.rules.min_requests:
            return None, f"{done} of {self.rules.min_requests} answers at its last share"
        below = {name: self._below(name) or 0.0 for name in self._wanted()}
        bounds = ", ".join(f"{_NAMES[name]} below {bound:+.2%}" for name, bound in below.items())
        if max(below.values()) >= self.rules.margin:
            return None, f"not yet shown to be within +{self.rules.margin:.2%} of the champion: {bounds}"
        left = [_NAMES[name] for name in ("failed", "late", "disagreeing") if name not in below]
        without = f"; nothing was reported of {', '.join(left)}" if left else ""
        return "promote", f"shown to be within +{self.rules.margin:.2%} of the champion: {bounds}{without}"

    def widen(self) -> None:
        """Go to the next share."""
        self.step += 1
        for criterion in self.criteria().values():
            criterion.start_step()

    def evidence(self, says: str) -> Evidence:
        """Return what has been shown so far."""
        return Evidence(
            share=self.share,
            step=self.step + 1,
            steps=list(self.rules.steps),
            margin=self.rules.margin,
            late_ms=self.rules.late_ms,
            expected_disagreement=self.expected_disagreement,
            requests_at_share=self._done(),
            champion_ms=self._mean_ms("champion"),
            canary_ms=self._mean_ms("canary"),
            e_value=_number(self._log_e()),
            findings=[self._finding(name) for name in self.criteria()],
            says=says,
        )

    def _done(self) -> int:
        """Return the canary's answers at this share, as far as Triton has counted them."""
        return self.errors.canary_at_step.count

    def _log_e(self) -> float:
        """Return the evidence of all criteria together: the mean of e-processes is an e-process."""
        return log_mean([log_mean(criterion.log_e) for criterion in self.criteria().values()])

    def _wanted(self) -> list[CriterionName]:
        """Return the criteria that have to be shown to be within the margin."""
        wanted: list[CriterionName] = ["errors"]
        if self.late.canary.count:
            wanted += ["failed", "late"]
        if self.disagreeing.canary.count or self.rules.expected_disagreement is not None:
            wanted.append("disagreeing")
        return wanted

    def _below(self, name: CriterionName) -> float | None:
        """Return what the excess is below; None for rounds, which are no requests."""
        found = self.criteria()[name]
        if name == "slow_rounds":
            return None
        if name == "disagreeing":
            return upper_bound(found.canary_at_step, PROMOTE_ALPHA) - self.expected_disagreement
        return excess_below(found.champion_at_step, found.canary_at_step, PROMOTE_ALPHA)

    def _finding(self, name: CriterionName) -> Finding:
        found = self.criteria()[name]
        rate = self.expected_disagreement if name == "disagreeing" else found.champion.rate
        return Finding(
            criterion=name,
            champion=found.champion,
            canary=found.canary,
            excess=None if found.canary.rate is None or rate is None else found.canary.rate - rate,
            excess_below=self._below(name),
            e_value=_number(log_mean(found.log_e)),
        )

    def _rates(self, name: CriterionName) -> str:
        found = self.criteria()[name]
        side = f"{found.canary.bad} of {found.canary.count} of the canary's"
        if name == "disagreeing":
            return f"{found.canary.bad} of {found.canary.count}, {self.expected_disagreement:.2%} expected"
        return f"{side}, {found.champion.bad} of {found.champion.count} of the champion's"

    def _mean_ms(self, arm: str) -> float | None:
        count, took = self.nanoseconds.get(arm, (0, 0))
        return round(took / count / 1e6, 3) if count else None


_WORSE: dict[CriterionName, str] = {
    "errors": "more errors than the champion has",
    "failed": "more failed answers than the champion has",
    "late": "more late answers than the champion has",
    "disagreeing": "more answers unlike the champion's than expected",
    "slow_rounds": "more rounds with a mean over the limit than the champion has",
}
_NAMES: dict[CriterionName, str] = {
    "errors": "errors", "failed": "failed answers", "late": "late answers", "disagreeing": "disagreeing answers",
    "slow_rounds": "slow rounds",
}  # fmt: skip


def _number(log_e: float) -> float:
    """Return an e-value of three digits, at most what JSON can write."""
    return float(f"{math.exp(min(log_e, math.log(LARGEST))):.3g}")
