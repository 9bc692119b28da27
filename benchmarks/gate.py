"""What passes the gate in simulated nights, by its real `decide()`, beside the gate that took numbers as exact.

    .venv/jobs/bin/python -m benchmarks.gate [--histories 1000] [--only leak]

A model is right on each easy golden picture and on each hard one with a chance that is its quality; hard ones are as
many as make two equal models differ on 4 % of the pictures. What counts errors (worse, best of 200, leak) leaves slices
out, which could only stop more; what counts promotions has all 50 of them, by the real `compare()`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nightshift_common.options.gate import GateOptions
from training_jobs.gate import Decision, best_now, decide
from training_jobs.scoring.evaluation import Comparison, Evaluation, Gain, Reference, Scores, Slice
from training_jobs.scoring.metrics import compare, score
from training_jobs.scoring.planning import PlanArguments, needed

MARGIN, CLASSES, NIGHTS, DISAGREEMENT = 0.01, 50, 90, 0.04
LEAK = 0.002
DIGITS, DIGITS_DISAGREEMENT = 307, 0.01
RULES = GateOptions(metric="accuracy", min_gain=-MARGIN)
Right = NDArray[np.bool_]


class Model(NamedTuple):
    """A model: how much worse than the founding champion it is in truth, and which hard pictures it is right on."""

    version: str
    lost: float
    right: Right


class Golden:
    """One golden set: draws models on it."""

    def __init__(self, random: np.random.Generator, pictures: int, disagreement: float = DISAGREEMENT) -> None:
        self.random, self.pictures, self.share = random, pictures, 2 * disagreement
        self.hard = int(random.binomial(pictures, self.share))

    def model(self, version: str, lost: float) -> Model:
        """Return a model that is `lost` worse in accuracy than one that is right on half of the hard pictures."""
        return Model(version, lost, self.random.random(self.hard) < 0.5 - lost / self.share)

    def comparison(self, ours: Model, theirs: Model) -> Comparison:
        """Compare two models, in closed form what `compare()` finds of accuracy."""
        b, c = int((ours.right & ~theirs.right).sum()), int((theirs.right & ~ours.right).sum())
        n, d = self.pictures, (b - c) / self.pictures
        error = (((b + c) / n - d * d) / (n - 1)) ** 0.5
        gain = Gain(value=d, standard_error=error, groups=n, effective=float(n))
        return Comparison(
            pictures=n, only_candidate_right=b, only_champion_right=c, p_value=1, gains={"accuracy": gain}
        )

    def scores(self, model: Model) -> Scores:
        """Return what a model scores."""
        value = (self.pictures - self.hard + int(model.right.sum())) / self.pictures
        return Scores(version=model.version, metrics={"accuracy": value})


Compare = Callable[[Model, Model], Comparison]


def evaluation(
    golden: Golden, candidate: Model, champion: Model, earlier: dict[str, Model], look: int,
    compared: Compare | None = None, slices: Callable[[Model], dict[str, Slice]] | None = None,
) -> Evaluation:  # fmt: skip
    """Return what `evaluate` would have written."""
    compared = compared or golden.comparison
    sides = [
        golden.scores(model).model_copy(update={"slices": slices(model) if slices else {}})
        for model in (candidate, champion)
    ]
    references = [
        Reference(
            role=role, version=model.version, metrics=golden.scores(model).metrics,
            candidate=compared(candidate, model), champion=compared(champion, model),
        )
        for role, model in earlier.items()
        if model.version != champion.version
    ]  # fmt: skip
    return Evaluation(
        group="g", snapshot_id="s", experiment="models/g/v", model_name="g", labels=[], pictures=golden.pictures,
        candidate=sides[0], champion=sides[1], comparison=compared(candidate, champion), references=references,
        look=look,
    )  # fmt: skip


def before(found: Evaluation, min_gain: float, max_slice_loss: float) -> bool:
    """Return whether the gate of before would have promoted: by measured numbers alone."""
    if found.champion is None or found.comparison is None:
        return True
    losses = (part.score - found.candidate.slices[name].score for name, part in found.champion.slices.items())
    gain = found.comparison.gains["accuracy"].value
    return gain >= min_gain - 1e-9 and all(loss <= max_slice_loss + 1e-9 for loss in losses)


class History:
    """Nights in a row on one golden set, under one gate."""

    def __init__(self, golden: Golden, judge: Callable[[Evaluation], Decision | bool]) -> None:
        self.golden, self.judge = golden, judge
        self.champion = self.founding = golden.model("0", 0.0)
        self.best = self.founding
        self.promoted = 0

    def night(self, look: int, candidate: Model) -> bool:
        """Judge one candidate; return whether it was promoted."""
        earlier = {"best so far": self.best, "founding champion": self.founding}
        if self.best.version == self.founding.version:
            del earlier["best so far"]
        found = evaluation(self.golden, candidate, self.champion, earlier, look)
        verdict = self.judge(found)
        passed = verdict if isinstance(verdict, bool) else verdict.promote
        if not isinstance(verdict, bool) and best_now(found, RULES):
            self.best = self.champion
        if passed:
            self.champion, self.promoted = candidate, self.promoted + 1
        return passed


def now(found: Evaluation) -> Decision:
    """Judge by the gate as it is."""
    return decide(found, RULES)


def gates() -> dict[str, Callable[[Evaluation], Decision | bool]]:
    """Return the gates to compare: the rules are the same margin."""
    return {"before": lambda found: before(found, -MARGIN, 0.05), "now": now}


def worse(pictures: int, histories: int) -> dict[str, float]:
    """Candidates that are all worse than the founding champion by just the margin: histories that promote one."""
    ever = Counter[str]()
    for name, judge in gates().items():
        for seed in range(histories):
            golden = Golden(np.random.default_rng(seed), pictures)
            history = History(golden, judge)
            ever[name] += any(history.night(look, golden.model(f"c{look}", MARGIN)) for look in range(1, NIGHTS + 1))
    return {name: ever[name] / histories for name in gates()}


def best_of_200(pictures: int, histories: int) -> dict[str, float]:
    """200 of one quality are evaluated, all worse by the margin, and the luckiest is shown to the gate."""
    passed = Counter[str]()
    for seed in range(histories):
        golden = Golden(np.random.default_rng(seed), pictures)
        founding = golden.model("0", 0.0)
        tries = [golden.model(f"c{look}", MARGIN) for look in range(1, 201)]
        look, luckiest = max(enumerate(tries, start=1), key=lambda item: int(item[1].right.sum()))
        found = evaluation(golden, luckiest, founding, {}, look)
        for name, judge in gates().items():
            verdict = judge(found)
            passed[name] += verdict if isinstance(verdict, bool) else verdict.promote
    return {name: passed[name] / histories for name in gates()}


def leak(pictures: int, histories: int) -> dict[str, float]:
    """Each candidate is 0.2 points below its champion: histories that have lost less than a point after 90 nights."""
    stopped = Counter[str]()
    for name, judge in gates().items():
        for seed in range(histories):
            golden = Golden(np.random.default_rng(seed), pictures)
            history = History(golden, judge)
            for look in range(1, NIGHTS + 1):
                history.night(look, golden.model(f"c{look}", history.champion.lost + LEAK))
                if history.champion.lost > MARGIN - 1e-9:
                    break
            stopped[name] += history.champion.lost < MARGIN - 1e-9
    return {name: stopped[name] / histories for name in gates()}


def with_classes(pictures: int, nights: int, gained: float, look: int | None = None) -> dict[str, float]:
    """Candidates of one quality against their champion, with 50 classes: verdicts, and what the gate of before did.

    Nights of one golden set follow each other; with `look`, each night has a golden set of its own and that number.
    """
    counts, labels = Counter[str](), [f"{i:02}" for i in range(CLASSES)]
    length = NIGHTS if look is None else 1
    for seed in range(-(-nights // length)):
        random = np.random.default_rng(seed)
        golden = Golden(random, pictures)
        truth = np.sort(random.integers(0, CLASSES, pictures))
        hard = np.sort(random.choice(pictures, golden.hard, replace=False))
        groups = np.arange(pictures)

        def answers(model: Model, truth=truth, hard=hard) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
            """Return what a model says: of a hard picture it is wrong about always the same."""
            said = truth.copy()
            wrong = hard[~model.right]
            said[wrong] = (truth[wrong] + 1 + wrong % (CLASSES - 1)) % CLASSES
            return said  # type: ignore[no-any-return]

        def compared(ours: Model, theirs: Model, truth=truth, groups=groups) -> Comparison:  # type: ignore[no-untyped-def]
            return compare(labels, truth, answers(ours), answers(theirs), groups)

        def slices(model: Model, truth=truth) -> dict[str, Slice]:  # type: ignore[no-untyped-def]
            said = answers(model)
            support, right = np.bincount(truth, minlength=CLASSES), np.bincount(truth[said == truth], minlength=CLASSES)
            f1 = 2 * right / (support + np.bincount(said, minlength=CLASSES))
            return {f"class/{labels[i]}": Slice(support=int(support[i]), score=float(f1[i])) for i in range(CLASSES)}

        champion = founding = best = golden.model("0", 0.0)
        for night in range(1, length + 1):
            candidate = golden.model(f"c{night}", -gained)
            earlier = {"founding champion": founding} | ({} if best is founding else {"best so far": best})
            found = evaluation(golden, candidate, champion, earlier, look or night, compared, slices)
            verdict = now(found)
            best = champion if best_now(found, RULES) else best
            counts[verdict.verdict] += 1
            counts["before"] += before(found, 0.0, 0.05)
            counts["all"] += 1
            champion = candidate if verdict.promote else champion
    return {name: counts[name] / counts["all"] for name in ("promote", "reject", "undecided", "before")}


def digits(nights: int, lost: float) -> dict[str, float]:
    """The digits' 307 golden pictures under their own rules, first night after the champion: verdicts."""
    rules = GateOptions(metric="accuracy", min_gain=-0.005, max_slice_loss=0.1)
    counts = Counter[str]()
    for seed in range(nights):
        golden = Golden(np.random.default_rng(seed), DIGITS, max(DIGITS_DISAGREEMENT, 1.2 * lost))
        found = evaluation(golden, golden.model("c", lost), golden.model("0", 0.0), {}, 1)
        counts[decide(found, rules).verdict] += 1
        counts["before"] += before(found, -0.005, 0.1)
    return {name: counts[name] / nights for name in ("promote", "reject", "undecided", "before")}


def largest() -> dict[str, float]:
    """100,000 golden pictures of 200 classes in picsets of four: seconds for the comparison, and for the decision."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 200, 100_000)
    ours, theirs = (np.where(random.random(100_000) < 0.05, (truth + 1) % 200, truth) for _ in range(2))
    labels, groups = [f"{i:03}" for i in range(200)], np.arange(100_000) // 4
    compare(labels, truth[:1000], ours[:1000], theirs[:1000], groups[:1000])  # loads what it needs
    started = time.perf_counter()
    comparison = compare(labels, truth, ours, theirs, groups)
    compared = time.perf_counter() - started
    sides = [score(name, labels, truth, np.eye(201)[said]) for name, said in (("new", ours), ("old", theirs))]
    found = Evaluation(
        group="g", snapshot_id="s", experiment="e", model_name="g", labels=labels, pictures=100_000,
        candidate=sides[0], champion=sides[1], comparison=comparison,
    )  # fmt: skip
    started = time.perf_counter()
    decide(found, RULES)
    return {"compare": compared, "decide": time.perf_counter() - started}


def main() -> None:
    """Run what is asked for, one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=540, help="with all 50 classes")
    parser.add_argument("--only", help="one of the rows")
    options = parser.parse_args()
    pictures = needed(PlanArguments(margin=MARGIN, classes=CLASSES, disagreement=DISAGREEMENT), MARGIN).pictures
    print(f"planned: {pictures} golden pictures for a margin of {MARGIN} and {CLASSES} classes", flush=True)
    rows: dict[str, Callable[[], dict[str, float]]] = {
        "worse": lambda: worse(pictures, options.histories),
        "best of 200": lambda: best_of_200(pictures, options.histories),
        "leak": lambda: leak(pictures, options.histories),
        "equal": lambda: with_classes(pictures, options.nights, 0.0),
        "equal, 40 a class": lambda: with_classes(40 * CLASSES, options.nights // 2, 0.0),
        "better": lambda: with_classes(pictures, options.nights // 2, 0.01, look=NIGHTS),
        "digits, equal": lambda: digits(options.histories, 0.0),
        "digits, a point worse": lambda: digits(options.histories, 0.01),
        "largest": largest,
    }
    for name, row in rows.items():
        if options.only in (None, name):
            started = time.perf_counter()
            print(json.dumps({"row": name, **row(), "took": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
