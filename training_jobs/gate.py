"""Decide whether the candidate may replace the champion, and say why in sentences: one job for every kind of model."""

from __future__ import annotations

import logging
from typing import Literal

from pydantic import BaseModel, Field

from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.gate import GateOptions
from training_jobs.scoring.evaluation import Evaluation, read_evaluation

logger = logging.getLogger("training_jobs.gate")

_ROUNDING = 1e-9  # so that 0.97 measured meets a floor of 0.97


class Arguments(job.Arguments, GateOptions):
    """Decide by an evaluation whether the candidate goes on to be published; a rejection is a normal outcome."""

    report: str = Field(description="the evaluation: key in the bottle")
    metric: str = Field("macro_f1", description="what is compared: a metric of the evaluation; more is better")


class Decision(BaseModel):
    """The verdict. `reasons` has a sentence a rule; `failed` those of the rules that were not met."""

    promote: bool
    reasons: list[str]
    failed: list[str]


class Result(job.Result):
    """The decision and its reasons."""

    decision: Literal["promote", "reject"]
    reasons: list[str]


def decide(evaluation: Evaluation, rules: GateOptions) -> Decision:
    """Judge a candidate by its evaluation. A pure function: the same input gives the same decision.

    Without a champion only the floor counts.

    Raises:
        ConfigurationError: the evaluation has no such metric.
    """
    if rules.metric not in evaluation.gate_metrics or rules.metric not in evaluation.candidate.metrics:
        valid = ", ".join(evaluation.gate_metrics)
        raise ConfigurationError(
            f"gate.metric is {rules.metric!r}; the evaluation has, of which more is better: {valid}"
        )
    verdicts = [_floor(evaluation, rules)]
    if evaluation.champion is None:
        verdicts.append((True, "there is no champion to compare with: the floor alone decides"))
    else:
        verdicts += [_gain(evaluation, rules), *_slices(evaluation, rules)]
    failed = [reason for met, reason in verdicts if not met]
    return Decision(promote=not failed, reasons=[reason for _, reason in verdicts], failed=failed)


def _floor(evaluation: Evaluation, rules: GateOptions) -> tuple[bool, str]:
    value = evaluation.candidate.metrics[rules.metric]
    met = value >= rules.floor - _ROUNDING
    word = "reaches" if met else "is below"
    return (
        met,
        f"{rules.metric} {value:.4f} on {evaluation.pictures} golden pictures {word} the floor of {rules.floor:g}",
    )


def _gain(evaluation: Evaluation, rules: GateOptions) -> tuple[bool, str]:
    champion, comparison = evaluation.champion, evaluation.comparison
    if champion is None or comparison is None:
        raise DataValidationError("the evaluation has a champion but no comparison with it: evaluate again")
    if rules.metric not in comparison.gains:
        known = ", ".join(sorted(comparison.gains))
        raise ConfigurationError(f"the evaluation compares no {rules.metric!r} (gate.metric); it compares {known}")
    gain = comparison.gains[rules.metric]
    met = gain.value >= rules.min_gain - _ROUNDING
    return met, (
        f"{rules.metric} {evaluation.candidate.metrics[rules.metric]:.4f} is a gain of {gain.value:+.4f} over the "
        f"champion {champion.version} ({champion.metrics[rules.metric]:.4f}); at least {rules.min_gain:+g} is wanted"
        f"{'' if met else ', so it is not enough'}. Standard error {gain.standard_error:.4f}: the candidate alone is "
        f"right on {comparison.only_candidate_right} pictures, the champion alone on "
        f"{comparison.only_champion_right} (McNemar p = {comparison.p_value:.3g})"
    )


def _slices(evaluation: Evaluation, rules: GateOptions) -> list[tuple[bool, str]]:
    """Return a verdict on each slice that loses more than the limit, or one that says that none does."""
    champion = evaluation.champion
    verdicts = []
    metric = evaluation.candidate.slice_metric
    for name, before in champion.slices.items() if champion else ():
        now = evaluation.candidate.slices.get(name)
        if now is None:
            raise DataValidationError(f"the candidate was not scored on {name}, the champion was: evaluate again")
        loss = before.score - now.score
        if loss > rules.max_slice_loss + _ROUNDING:
            counts = now.support >= rules.min_support
            judged = (
                f"more than the {rules.max_slice_loss:g} that is allowed"
                if counts
                else f"no veto, since that is fewer than {rules.min_support}"
            )
            lost = (
                f"loses {loss:.4f} of {metric} ({before.score:.4f} to {now.score:.4f}, {now.support} golden pictures)"
            )
            verdicts.append((not counts, f"{name} {lost}: {judged}"))
    return verdicts or [(True, f"no slice loses more than {rules.max_slice_loss:g} of {metric}")]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Decide, and tell the log, MLflow and the tasks that follow."""
    from training_jobs.gate_report import gate_page

    evaluation = read_evaluation(context.bottle, arguments.report)
    rules = GateOptions.model_validate(arguments.model_dump(include=set(GateOptions.model_fields)))
    decision = decide(evaluation, rules)
    result = Result(decision="promote" if decision.promote else "reject", reasons=decision.reasons)
    for reason in decision.reasons:
        logger.log(logging.WARNING if reason in decision.failed else logging.INFO, "%s: %s", result.decision, reason)
    if not decision.promote:
        rejected = f"{evaluation.candidate.version} was rejected: {'; '.join(decision.failed)}"
        result.stop_here = job.StopHere(outcome="rejected", reason=rejected)
    page, key = gate_page(evaluation, rules, decision), f"{arguments.report.removesuffix('.json')}.gate.html"
    context.bottle.write(key, page)
    logger.info("report: %s/%s", context.bottle, key)
    if context.is_tracked:
        context.tracking.text(page, "report.html")
        tags = {"nightshift.decision": result.decision, "nightshift.reasons": "; ".join(decision.reasons)}
        context.tracking.params(rules.model_dump(), "gate")
        context.tracking.tags(tags)
        if (parent := context.tracking.parent_run()) is not None:
            parent.tags(tags)
    return result


if __name__ == "__main__":
    job.main(Arguments, run)
