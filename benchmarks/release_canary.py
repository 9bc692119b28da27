"""The judging of canaries: how soon a bad one ends, how rarely one that is as good is aborted, by its own code.

    .venv/services/bin/python -m benchmarks.release_canary              # 1,000 canaries of each kind, some minutes
    .venv/services/bin/python -m benchmarks.release_canary --canaries 100

Limits: of 1,000 equal canaries at most 1 % are aborted; one whose rate of bad answers is 3 points higher ends in a
median of under 2,000 answers of its own. The requests of both together are told, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np

from services.model_storage.production.always_valid import Trials
from services.model_storage.production.canary_judge import STEPS, Answers, Judging, Rules

ROUND = 40  # requests of both between two looks
RATES = (0.001, 0.01, 0.05)  # of the champion
WORSE = 0.03
LIMIT = 2000


@dataclass
class Ending:
    """How one canary ended."""

    outcome: str
    canary: int
    requests: int
    """of both"""


def simulate(
    rng: np.random.Generator, what: str, rate: float, more: float, rules: Rules, spikes: bool = False
) -> Ending:
    """Let one canary go its way; `what` is bad with the probability `rate` of the champion and `rate + more` of it.

    Of errors and late answers everything is counted, of all requests a tenth is compared. With `spikes` one round in
    ten has both rates ten times as high, up to 0.5.
    """
    expected = rate if what == "disagreeing" else None
    judging = Judging(version="2", champion="1", rules=rules.model_copy(update={"expected_disagreement": expected}))
    counters = np.zeros((2, 3), int)
    judging.read(_counters(counters))
    requests = 0
    while True:
        factor = 10 if spikes and rng.random() < 0.1 else 1
        rates = np.minimum(np.array([rate, rate + more]) * factor, max(0.5, rate + more))
        canary = int(rng.binomial(ROUND, judging.share))
        counts = np.array([ROUND - canary, canary])
        bad = rng.binomial(counts, rates)
        requests += ROUND
        errors = bad if what == "errors" else np.zeros(2, int)
        counters += np.stack([counts - errors, errors, counts * 10**6], axis=1)
        judging.read(_counters(counters))
        if what == "late":
            ours, its = (Answers(count=int(n), late=int(k)) for n, k in zip(counts, bad, strict=True))
            judging.report(ours, its, Trials())
        elif what == "disagreeing":
            pairs = int(rng.binomial(ROUND, 0.1))
            seen = Trials(count=pairs, bad=int(rng.binomial(pairs, rate + more)))
            judging.report(Answers(), Answers(), seen)
        outcome, _ = judging.verdict()
        if outcome == "widen":
            judging.widen()
        elif outcome is not None:
            pairs_seen = judging.disagreeing.canary.count
            own = pairs_seen if what == "disagreeing" else judging.errors.canary.count
            return Ending(outcome, own, requests)


def _counters(values: np.ndarray[tuple[int, ...], np.dtype[np.int_]]) -> dict[str, dict[str, tuple[int, int, int]]]:
    champion, canary = ((int(row[0]), int(row[1]), int(row[2])) for row in values)
    return {"triton": {"champion": champion, "canary": canary}}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canaries", type=int, default=1000)
    parser.add_argument("--steps", type=lambda text: tuple(map(float, text.split(","))), default=STEPS)
    options = parser.parse_args()
    rng = np.random.default_rng(13)
    rules = Rules(steps=options.steps)
    print(
        f"steps {rules.steps}, {options.canaries} canaries of each kind; own: its answers, of disagreeing: comparisons"
    )
    worst_median, worst_share = 0.0, 0.0
    for what in ("errors", "late", "disagreeing"):
        for rate in RATES:
            for more, spikes in ((0.0, False), (0.0, True), (WORSE, False)):
                if (spikes and (what, rate) != ("errors", 0.01)) or (what == "late" and rate != 0.01):
                    continue  # late answers are counted as errors are
                started = time.monotonic()
                ends = [simulate(rng, what, rate, more, rules, spikes) for _ in range(options.canaries)]
                aborted = sum(end.outcome == "abort" for end in ends) / len(ends)
                promoted = sum(end.outcome == "promote" for end in ends) / len(ends)
                own, both = (
                    statistics.median(end.canary for end in ends),
                    statistics.median(end.requests for end in ends),
                )
                if more:
                    worst_median = max(worst_median, own)
                else:
                    worst_share = max(worst_share, aborted)
                print(
                    f"{what:12} {rate:5.1%} {more:+5.1%} {'spikes' if spikes else '':6} aborted {aborted:6.1%} "
                    f"promoted {promoted:6.1%} median own {own:7.0f} both {both:7.0f} "
                    f"({time.monotonic() - started:.0f} s)", flush=True,
                )  # fmt: skip
    print(
        f"at most {worst_share:.1%} of equal ones aborted (limit 1 %), worst median {worst_median:.0f} (limit {LIMIT})"
    )


if __name__ == "__main__":
    main()
