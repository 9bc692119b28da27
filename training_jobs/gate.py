"""Decide whether the candidate may replace the champion, and say why in sentences: one job for every kind of model.

The candidate has to be shown to be good enough, by an interval on paired predictions; docs/gate.md has the method.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pydantic import BaseModel, Field

from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.gate import GateOptions
from training_jobs.scoring.evaluation import Comparison, Evaluation, Scores, read_evaluation
from training_jobs.scoring.evidence import (
    SLICE_LEVEL,
    holm,
    interval,
    loss_p_value,
    more_needed,
    spent_at,
)
from training_jobs.scoring.history import write_best
from training_jobs.scoring.planning import PlanArguments, plan

logger = logging.getLogger("training_jobs.gate")

_ROUNDING = 1e-9  # so that 0.97 measured meets a floor of 0.97
Verdict = Literal["promote", "reject", "undecided"]
Decided = Literal["promote", "reject", "keep"]


class Arguments(job.Arguments, GateOptions):
    """Decide by an evaluation whether the candidate goes on to be published; a rejection is a normal outcome."""

    report: str = Field(description="the evaluation: key in the bottle")
    metric: str = Field("macro_f1", description="what is compared: a metric of the evaluation; more is better")


class Evidence(BaseModel):
    """What the golden pictures prove of the gain over one rival."""

    rival: str
    metric: str
    gain: float
    lower: float = Field(description="bound of the true gain; each bound fails with the chance `level`")
    upper: float
    level: float
    wanted: float = Field(description="the gain that was to be shown")


class Finding(BaseModel):
    """What one rule says. `by_numbers`: whether it is met if the measured numbers are taken to be exact."""

    status: Literal["met", "failed", "open"]
    reason: str
    by_numbers: bool = True
    evidence: Evidence | None = None


class Decision(BaseModel):
    """The verdict by the evidence, and what is done. `reasons` has a sentence a rule; `failed` those of the rules that
    are not met, `undecided` those of which the golden pictures cannot tell."""

    verdict: Verdict
    decided: Decided
    sentence: str = Field(description="the verdict in one sentence, with the interval where there is one")
    reasons: list[str]
    failed: list[str]
    undecided: list[str]
    evidence: list[Evidence] = Field(description="the gain over the champion first")

    @property
    def promote(self) -> bool:
        """Whether the candidate goes on."""
        return self.decided == "promote"


class Result(job.Result):
    """The decision and its reasons."""

    decision: Decided = Field(description="what is done; keep: the champion stays, since nothing is proven")
    verdict: Verdict = Field(description="what the golden pictures prove")
    sentence: str
    reasons: list[str]
    evidence: list[Evidence]


def decide(evaluation: Evaluation, rules: GateOptions) -> Decision:
    """Judge a candidate by its evaluation. A pure function: the same input gives the same decision.

    Without a champion only the floor counts.

    Raises:
        ConfigurationError: the evaluation has no such metric.
        DataValidationError: the evaluation lacks its comparison with the champion.
    """
    if rules.metric not in evaluation.gate_metrics or rules.metric not in evaluation.candidate.metrics:
        valid = ", ".join(evaluation.gate_metrics)
        raise ConfigurationError(
            f"gate.metric is {rules.metric!r}; the evaluation has, of which more is better: {valid}"
        )
    champion, comparison = evaluation.champion, evaluation.comparison
    findings = [_floor(evaluation, rules)]
    if champion is None:
        findings.append(Finding(status="met", reason="there is no champion to compare with: the floor alone decides"))
    elif comparison is None:
        raise DataValidationError("the evaluation has a champion but no comparison with it: evaluate again")
    else:
        findings.append(_gain(evaluation, rules, champion.metrics, comparison, f"the champion {champion.version}"))
        findings += _references(evaluation, rules)
        findings += _slices(evaluation.candidate, champion, comparison, rules)
        findings += _flips(comparison, rules)
    return _concluded(evaluation, findings, rules)


def _concluded(evaluation: Evaluation, findings: list[Finding], rules: GateOptions) -> Decision:
    failed = [found.reason for found in findings if found.status == "failed"]
    undecided = [found.reason for found in findings if found.status == "open"]
    verdict: Verdict = "reject" if failed else "undecided" if undecided else "promote"
    decided: Decided = "promote" if verdict == "promote" else "reject"
    reasons = [found.reason for found in findings]
    if verdict == "undecided":
        decided, why = _by_policy(findings, rules)
        reasons.append(why)
    evidence = [found.evidence for found in findings if found.evidence]
    return Decision(
        verdict=verdict, decided=decided, sentence=_sentence(evaluation, findings, verdict, decided, rules),
        reasons=reasons, failed=failed, undecided=undecided, evidence=evidence,
    )  # fmt: skip


def _by_policy(findings: list[Finding], rules: GateOptions) -> tuple[Decided, str]:
    """Return what is done where the evidence does not decide, and the sentence that says so."""
    few = "the golden pictures are too few to tell"
    if rules.undecided == "reject":
        return "reject", f"{few}, and gate.undecided is reject"
    if rules.undecided == "keep":
        return "keep", f"{few}, and gate.undecided is keep: the champion stays"
    if all(found.by_numbers for found in findings):
        return "promote", f"{few}; gate.undecided is promote, and the numbers as measured meet the rules: it goes on"
    return "keep", f"{few}; gate.undecided is promote, but the numbers as measured miss the rules: the champion stays"


def _sentence(
    evaluation: Evaluation, findings: list[Finding], verdict: Verdict, decided: Decided, rules: GateOptions
) -> str:
    """Return what the verdict rests on: the rule that stands in the way, or the gain over the champion."""
    order = {"failed": 0, "open": 1, "met": 2}
    ranked = sorted(findings, key=lambda found: (order[found.status], found.evidence is None))
    shown = ranked[0].evidence
    if shown is not None:
        said = (
            f"the true gain in {rules.metric} over {shown.rival} is between {shown.lower:+.4f} and {shown.upper:+.4f} "
            f"(measured {shown.gain:+.4f}); at least {shown.wanted:+g} was to be shown"
        )
    elif verdict != "promote":
        said = ranked[0].reason
    else:
        value = evaluation.candidate.metrics[rules.metric]
        said = f"{rules.metric} {value:.4f} on {evaluation.pictures} golden pictures, and no champion to compare with"
    done = {"promote": "it goes on", "reject": "it is rejected", "keep": "the champion stays"}[decided]
    return f"{verdict}: {said}" + (f"; by gate.undecided {done}" if verdict == "undecided" else "")


def _floor(evaluation: Evaluation, rules: GateOptions) -> Finding:
    value = evaluation.candidate.metrics[rules.metric]
    met = value >= rules.floor - _ROUNDING
    word = "reaches" if met else "is below"
    return Finding(
        status="met" if met else "failed",
        reason=f"{rules.metric} {value:.4f} on {evaluation.pictures} golden pictures {word} the floor of "
        f"{rules.floor:g}",
    )


def _references(evaluation: Evaluation, rules: GateOptions) -> list[Finding]:
    """Return a finding on each earlier champion: many small losses, each within the margin, add up against them.

    Where every candidate has to be better than its champion, nothing can leak.
    """
    if rules.min_gain >= 0:
        return []
    return [
        _gain(evaluation, rules, earlier.metrics, earlier.candidate, f"the {earlier.role} {earlier.version}")
        for earlier in evaluation.references
    ]


def _gain(
    evaluation: Evaluation, rules: GateOptions, rival: dict[str, float], comparison: Comparison, name: str
) -> Finding:
    """Return whether the gain over a rival is shown to be the one that is wanted, shown not to be, or neither."""
    if rules.metric not in comparison.gains:
        known = ", ".join(sorted(comparison.gains))
        raise ConfigurationError(f"the evaluation compares no {rules.metric!r} (gate.metric); it compares {known}")
    gain, level = comparison.gains[rules.metric], spent_at(evaluation.look, rules.error_budget)
    lower, upper = interval(gain, level)
    by_numbers = gain.value >= rules.min_gain - _ROUNDING
    if lower >= rules.min_gain - _ROUNDING:
        status, judged = "met", "is shown"
    elif upper < rules.min_gain - _ROUNDING:
        status, judged = "failed", "is shown to be missed"
    else:
        status, judged = "open", "is not shown, nor that it is missed"
        if number := more_needed(gain, rules.min_gain, level, comparison.pictures):
            judged += f": about {number:,} more golden pictures would decide, if the gain stays as it is"
    return Finding(
        status=status,
        by_numbers=by_numbers,
        evidence=Evidence(
            rival=name, metric=rules.metric, gain=gain.value, lower=lower, upper=upper, level=level,
            wanted=rules.min_gain,
        ),
        reason=f"{rules.metric} {evaluation.candidate.metrics[rules.metric]:.4f} is a gain of {gain.value:+.4f} over "
        f"{name} ({rival[rules.metric]:.4f}), in truth between {lower:+.4f} and {upper:+.4f} (candidate "
        f"{evaluation.look} on this golden set; each bound fails with a chance of {level:.2g}): that it is at least "
        f"{rules.min_gain:+g} {judged}. Standard error {gain.standard_error:.4f}: the candidate alone is right on "
        f"{comparison.only_candidate_right} pictures, {name} alone on {comparison.only_champion_right} "
        f"(McNemar p = {comparison.p_value:.3g})",
    )  # fmt: skip


def _slices(candidate: Scores, champion: Scores, comparison: Comparison, rules: GateOptions) -> list[Finding]:
    """Return a finding on each slice that loses more than the limit, or one that says that none does.

    A loss vetoes where Holm's correction for all slices leaves it proven; else the pictures of the slice are too few.
    """
    judged: dict[str, float] = {}
    for name in champion.slices:
        if name not in candidate.slices:
            raise DataValidationError(f"the candidate was not scored on {name}, the champion was: evaluate again")
        if candidate.slices[name].support >= rules.min_support and name in comparison.slices:
            judged[name] = loss_p_value(comparison.slices[name])
    adjusted, findings = holm(judged), []
    for name, before in champion.slices.items():
        now = candidate.slices[name]
        loss = before.score - now.score
        if loss <= rules.max_slice_loss + _ROUNDING:
            continue
        lost = (
            f"{name} loses {loss:.4f} of {candidate.slice_metric} ({before.score:.4f} to {now.score:.4f}, "
            f"{now.support} golden pictures)"
        )
        if now.support < rules.min_support:
            findings.append(
                Finding(status="met", reason=f"{lost}: no veto, since that is fewer than {rules.min_support}")
            )
            continue
        lost += f": more than the {rules.max_slice_loss:g} that is allowed"
        if name not in adjusted:  # an evaluation without intervals of slices: the numbers alone decide, as they did
            findings.append(Finding(status="failed", reason=lost, by_numbers=False))
        elif adjusted[name] <= SLICE_LEVEL:
            proven = f"{lost}, and no chance (p = {adjusted[name]:.2g}, corrected for {len(adjusted)} slices)"
            findings.append(Finding(status="failed", reason=proven, by_numbers=False))
        else:
            chance = f"{lost}, which may be chance (p = {adjusted[name]:.2g}, corrected for {len(adjusted)} slices)"
            level = SLICE_LEVEL / len(adjusted)
            if number := more_needed(comparison.slices[name], 0.0, level, now.support):
                chance += f"; about {number:,} more golden pictures of it would decide"
            findings.append(Finding(status="open", reason=chance, by_numbers=False))
    none = f"no slice loses more than {rules.max_slice_loss:g} of {candidate.slice_metric}"
    return findings or [Finding(status="met", reason=none)]


def _flips(comparison: Comparison, rules: GateOptions) -> list[Finding]:
    if rules.max_negative_flips is None:
        return []
    share = comparison.only_champion_right / comparison.pictures
    met = share <= rules.max_negative_flips + _ROUNDING
    return [
        Finding(
            status="met" if met else "failed",
            reason=f"{comparison.only_champion_right} golden pictures ({share:.2%}) were right and become wrong; "
            f"{rules.max_negative_flips:.2%} may, {'so it is allowed' if met else 'so they are too many'}",
        )
    ]


def best_now(evaluation: Evaluation, rules: GateOptions) -> str | None:
    """Return the champion where it is shown to be better than the best version before it; None: that one stays.

    It is shown like any gain, so that a lucky night makes no best version (the Ladder of Blum and Hardt, 2015).
    """
    champion, before = evaluation.champion, {earlier.role: earlier for earlier in evaluation.references}
    best = before.get("best so far") or before.get("founding champion")
    if champion is None or best is None or rules.metric not in best.champion.gains:
        return None
    level = spent_at(evaluation.look, rules.error_budget)
    return champion.version if interval(best.champion.gains[rules.metric], level).lower > 0 else None


def run(arguments: Arguments, context: job.Context) -> Result:
    """Decide, and tell the log, MLflow and the tasks that follow."""
    from training_jobs.scoring.gate_report import gate_page

    evaluation = read_evaluation(context.bottle, arguments.report)
    rules = GateOptions.model_validate(arguments.model_dump(include=set(GateOptions.model_fields)))
    decision = decide(evaluation, rules)
    result = Result(
        decision=decision.decided, verdict=decision.verdict, sentence=decision.sentence, reasons=decision.reasons,
        evidence=decision.evidence,
    )  # fmt: skip
    logger.info(decision.sentence)
    if evaluation.golden is not None:
        logger.info(evaluation.golden.sentence)
    if (best := best_now(evaluation, rules)) is not None:
        write_best(context.bottle, evaluation.group, evaluation.model_name, best)
    against = {*decision.failed, *decision.undecided}
    for reason in decision.reasons:
        logger.log(logging.WARNING if reason in against else logging.INFO, "%s: %s", decision.verdict, reason)
    if not decision.promote:
        result.stop_here = _stop(evaluation.candidate.version, decision)
    page, key = gate_page(evaluation, rules, decision), f"{arguments.report.removesuffix('.json')}.gate.html"
    context.bottle.write(key, page)
    logger.info("report: %s/%s", context.bottle, key)
    if context.is_tracked:
        context.tracking.text(page, "report.html")
        tags = {
            "nightshift.decision": result.decision, "nightshift.verdict": result.sentence,
            "nightshift.reasons": "; ".join(decision.reasons),
        }  # fmt: skip
        context.tracking.params(rules.model_dump(), "gate")
        context.tracking.tags(tags)
        context.tracking.dictionary(decision.model_dump(mode="json"), "decision.json")
        if (parent := context.tracking.parent_run()) is not None:
            parent.tags(tags)
    return result


def _stop(version: str, decision: Decision) -> job.StopHere:
    if decision.decided == "keep":
        why = "; ".join([*decision.undecided, decision.reasons[-1]])
        return job.StopHere(outcome="undecided", reason=f"{version} is neither better nor worse for sure: {why}")
    why = "; ".join(decision.failed or [*decision.undecided, decision.reasons[-1]])
    return job.StopHere(outcome="rejected", reason=f"{version} was rejected: {why}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["plan"]:
        del sys.argv[1]
        job.main(PlanArguments, plan)
    else:
        job.main(Arguments, run)
