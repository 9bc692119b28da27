"""The gate's report: the verdict, its rules one by one, and how far from their limits the numbers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightshift_common.options.gate import GateOptions
from training_jobs.report_kit import charts
from training_jobs.report_kit.blocks import Block, Section, Table, Tone
from training_jobs.report_kit.page import page
from training_jobs.scoring.evaluation import Evaluation
from training_jobs.scoring.golden import golden_section

if TYPE_CHECKING:
    from training_jobs.gate import Decision

CHARTED_SLICES = 40


def gate_page(evaluation: Evaluation, rules: GateOptions, decision: Decision) -> str:
    """Return the report of a decision."""
    open_or_failed = {**dict.fromkeys(decision.failed, "not met"), **dict.fromkeys(decision.undecided, "undecided")}
    reasons = [(open_or_failed.get(reason, "met"), reason) for reason in decision.reasons]
    if decision.verdict == "undecided":  # the last one says what is done all the same
        reasons[-1] = ("policy", decision.reasons[-1])
    compared = [*_evidence(decision), *_gains(evaluation, rules), *_slices(evaluation, rules)]
    sections = [
        Section("Rules", [Table((), reasons)]),
        Section("Against the champion", compared),
        golden_section(evaluation.golden),
        Section("What the rules ask for", [Table.of_pairs(rules.model_dump())]),
    ]
    tone: Tone = "good" if decision.promote else "bad" if decision.decided == "reject" else "plain"
    verdict = f"{evaluation.candidate.version}: {decision.sentence}."
    return page(f"Gate of {evaluation.model_name}", verdict, sections, tone)


def _evidence(decision: Decision) -> list[Block]:
    """Return the bounds that the decision rests on: of the deciding metric, against each rival."""
    if not decision.evidence:
        return []
    rows = [
        charts.Interval(
            found.rival.removeprefix("the "), found.gain, found.lower, found.upper, found.lower >= found.wanted,
            f"{found.wanted:+g} was to be shown; each bound fails with the chance {found.level:.2g}",
        )
        for found in decision.evidence
    ]  # fmt: skip
    first = decision.evidence[0]
    title = f"What the golden pictures prove of the gain in {first.metric}"
    return [charts.intervals(title, rows, f"gain in {first.metric}", first.wanted, "to be shown")]


def _gains(evaluation: Evaluation, rules: GateOptions) -> list[Block]:
    if evaluation.comparison is None:
        return []
    rows = []
    for name, gain in evaluation.comparison.gains.items():
        met = name != rules.metric or gain.value >= rules.min_gain
        rows.append(charts.Interval.around(name, gain.value, gain.standard_error, met))
    title = "Gain over the champion in each metric, with 95 % intervals of this night alone"
    return [charts.intervals(title, rows, "gain", rules.min_gain, f"least gain of {rules.metric}")]


def _slices(evaluation: Evaluation, rules: GateOptions) -> list[Block]:
    """Return by how much each slice changes, those that lose most first."""
    if evaluation.champion is None:
        return []
    now, metric = evaluation.candidate.slices, evaluation.candidate.slice_metric
    changes = {name: now[name].score - before.score for name, before in evaluation.champion.slices.items()}
    known = evaluation.comparison.slices if evaluation.comparison else {}
    rows = [
        charts.Interval.around(
            name, change, known[name].standard_error if name in known else 0.0, change >= -rules.max_slice_loss,
            f"{now[name].support} golden examples",
        )
        for name, change in sorted(changes.items(), key=lambda item: item[1])[:CHARTED_SLICES]
    ]  # fmt: skip
    if not rows:
        return []
    title = f"Change of {metric} by class and slice, largest losses first"
    return [charts.intervals(title, rows, f"change of {metric}", -rules.max_slice_loss, "largest loss allowed")]
