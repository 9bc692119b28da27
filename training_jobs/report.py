"""Close a run of a pipeline, whatever happened: its row in PostgreSQL, its MLflow run, a summary for people."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from pydantic import Field

from jobkit import database, job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.tracking import Run
from training_jobs.scoring.evaluation import Evaluation, read_evaluation

logger = logging.getLogger("training_jobs.report")


class Arguments(job.Arguments):
    """Close a run of a pipeline. Running it again changes nothing."""

    pipeline: str = Field(description="name of the pipeline")
    fingerprint: str = Field("", description="stands for the configuration of this run")
    snapshot_id: str | None = Field(None, description="the snapshot that was used; none where pulling failed")
    outcome: str | None = Field(
        None,
        description="the outcome of the task that stopped the run: nothing_new, rejected, undecided, pinned; "
        "else: by the states",
    )
    reason: str | None = Field(None, description="the reason that came with the outcome")
    version: str | None = Field(None, description="the version that was deployed")
    report: str | None = Field(None, description="the evaluation: key in the bottle")
    metric: str | None = Field(None, description="what the gate decides by: a metric of the evaluation")
    verdict: str | None = Field(None, description="the gate's verdict in a sentence, with its interval")
    states: dict[str, str | None] = Field(
        {}, description="JSON object: the state of each task, as Airflow names it; null: not started"
    )
    started_at: datetime | None = Field(None, description="when the run started, ISO 8601")


class Result(job.Result):
    """What the run came to: promoted, rejected, undecided, pinned, nothing_new, not_published or failed."""

    outcome: str
    reason: str
    headline: str = Field(description="both in a line, with the numbers: rejected: macro_f1 0.1954 against 0.9967")
    mlflow_url: str | None = Field(description="the page of the run in MLflow; none where nothing was tracked")


def outcome_of(arguments: Arguments) -> tuple[str, str]:
    """Return what a run came to, and why.

    A failed task comes first: a run with one is not complete, and the next one has to do the work again.
    """
    failed = sorted(task for task, state in arguments.states.items() if state == "failed")
    if failed or "upstream_failed" in arguments.states.values():
        return "failed", f"failed: {', '.join(failed) or 'a task before the first one of this list'}"
    if arguments.outcome:
        return arguments.outcome, arguments.reason or arguments.outcome
    if arguments.version:
        return "promoted", f"version {arguments.version} is in production"
    return "not_published", "every task that ran succeeded, and none deployed a version"


def run(arguments: Arguments, context: job.Context) -> Result:
    """Write the row, end the MLflow run."""
    if context.task_instance is None:
        raise ConfigurationError("report closes a run of Airflow's, and NIGHTSHIFT_TASK_INSTANCE does not say which")
    outcome, reason = outcome_of(arguments)
    row = database.PipelineRun(
        pipeline=arguments.pipeline, dag_run_id=context.task_instance.run_id, outcome=outcome, reason=reason,
        snapshot_id=arguments.snapshot_id, fingerprint=arguments.fingerprint, model_version=arguments.version,
        started_at=arguments.started_at, finished_at=datetime.now(UTC),
    )  # fmt: skip
    database.record_run(row)
    if outcome == "nothing_new":  # then nothing was tracked, and an empty MLflow run a night helps no one
        logger.info("%s: %s", outcome, reason)
        return Result(outcome=outcome, reason=reason, headline=reason, mlflow_url=None)
    evaluation = _evaluation(context, arguments.report)
    line = headline(row, evaluation, arguments.metric, arguments.verdict)
    logger.info(line)
    parent = Run.parent(context.task_instance)
    parent.say_where()
    database.record_run(row.model_copy(update={"mlflow_run_id": parent.run_id}))
    _close(parent, arguments, row, line, evaluation)
    return Result(outcome=outcome, reason=reason, headline=line, mlflow_url=parent.url)


def headline(
    row: database.PipelineRun, evaluation: Evaluation | None, metric: str | None, verdict: str | None = None
) -> str:
    """Return what a run came to in a line: the candidate's and the champion's number, and the gate's verdict."""
    said = [f"version {row.model_version}"] if row.model_version else []
    if row.outcome == "failed":
        said = [(row.reason or "").removeprefix("failed: ")]
    elif evaluation is not None and metric in evaluation.candidate.metrics:
        champion = evaluation.champion
        against = f" against {champion.metrics[metric]:.4f}" if champion and metric in champion.metrics else ""
        said.append(f"{metric} {evaluation.candidate.metrics[metric]:.4f}{against}")
        if verdict and champion:
            said[-1] += f"; gate: {verdict}"
    name = row.outcome.replace("_", " ")
    return f"{name}: {', '.join(said)}" if said else f"{name}: {row.reason}"


def _evaluation(context: job.Context, key: str | None) -> Evaluation | None:
    """Return the evaluation; a run is closed without it too."""
    try:
        return read_evaluation(context.bottle, key) if key else None
    except DataValidationError as error:
        logger.warning("the summary goes without its numbers: %s", error)
        return None


def _close(
    parent: Run, arguments: Arguments, row: database.PipelineRun, line: str, evaluation: Evaluation | None
) -> None:
    """Give the DAG run's MLflow run its name, description, tags, parameters and numbers, and end it."""
    tags = {
        "outcome": row.outcome, "reason": row.reason, "pipeline": row.pipeline, "snapshot_id": row.snapshot_id,
        "fingerprint": row.fingerprint, "version": row.model_version,
    }  # fmt: skip
    parent.tags({f"nightshift.{name}": value for name, value in tags.items() if value})
    parent.params({"pipeline": row.pipeline, **({"gate_metric": arguments.metric} if arguments.metric else {})})
    if evaluation is not None:
        rivals = {"golden": evaluation.candidate, "champion": evaluation.champion}
        values = {f"{role}/{n}": v for role, scores in rivals.items() if scores for n, v in scores.metrics.items()}
        gains = evaluation.comparison.gains if evaluation.comparison else {}
        parent.metrics(values | {f"gain/{name}": gain.value for name, gain in gains.items()})
    summary = {**tags, "dag_run": row.dag_run_id, "states": arguments.states}
    text = markdown(row, line, arguments.states, evaluation)
    parent.dictionary(summary, "summary.json")
    parent.text(text, "summary.md")
    started = row.started_at or parent.started_at()
    parent.describe(text, f"{row.pipeline} {started.astimezone(UTC):%Y-%m-%d %H:%M} {row.outcome.replace('_', ' ')}")
    parent.end_children()
    parent.end(succeeded=row.outcome != "failed")


def markdown(row: database.PipelineRun, line: str, states: dict[str, str | None], evaluation: Evaluation | None) -> str:
    """Return the summary of a run for a person; `line` is its headline."""
    lines = [f"# {row.pipeline} {line}", "", row.reason or "", ""]
    lines += [f"- run: `{row.dag_run_id}`", f"- snapshot: `{row.snapshot_id or 'none'}`"]
    lines += [f"- version: {row.model_version}"] if row.model_version else []
    if evaluation is not None:
        rivals = [evaluation.candidate, *([evaluation.champion] if evaluation.champion else [])]
        lines += ["", f"| on {evaluation.pictures} golden pictures | " + " | ".join(s.version for s in rivals) + " |"]
        lines += ["|---" * (len(rivals) + 1) + "|"]
        for name in evaluation.candidate.metrics:
            lines.append(f"| {name} | " + " | ".join(f"{s.metrics[name]:.4f}" for s in rivals) + " |")
        lines += ["", evaluation.golden.sentence] if evaluation.golden else []
        lines += ["", *(note for scores in rivals for note in scores.notes)]
    if states:
        lines += [
            "",
            "| task | state |",
            "|---|---|",
            *(f"| {task} | {state or 'not started'} |" for task, state in states.items()),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    job.main(Arguments, run)
