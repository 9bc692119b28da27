"""What every pull does beside listing and selecting: arguments, quarantine, the check for news, tracking."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from pydantic import Field

from jobkit import database, job, settings
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.paths import SnapshotPaths
from jobkit.snapshot import Refused, Summary, mark_as_last, read_summary

logger = logging.getLogger("training_jobs.pull")


class PullArguments(job.Arguments):
    """Which run of which pipeline pulls, and when it may end early."""

    pipeline: str = Field(description="name of the pipeline whose run this is")
    snapshot_id: str | None = Field(None, description="use this snapshot and pull nothing")
    force: bool = Field(False, description="go on even if a run with the same data and fingerprint is completed")
    fingerprint: str = Field(
        "", description="stands for the configuration: the same data with another fingerprint is new"
    )


class Result(job.Result):
    """The snapshot, and what it took to make it."""

    snapshot_id: str
    group: str
    labels: list[str]
    pictures: int
    counts: dict[str, dict[str, int]] = Field(description="split -> label -> pictures, or objects where they have any")
    refused: dict[str, int] = Field(description="reason -> pictures, or objects where they have any")
    left_out: str = Field("", description="what was listed and is not in the snapshot, and why: a sentence for people")
    transferred: int = Field(description="files fetched in this run")
    is_new: bool = Field(description="whether this run made the snapshot")


def pinned(arguments: PullArguments, group: str, context: job.Context) -> Result | None:
    """Return the snapshot that the arguments name; None where they name none."""
    if not arguments.snapshot_id:
        return None
    summary = read_summary(context.bottle, group, arguments.snapshot_id)
    logger.info("snapshot %s is pinned: nothing is pulled", summary.snapshot_id)
    return _result(summary, transferred=0, is_new=False)


def finish(
    arguments: PullArguments, context: job.Context, summary: Summary, transferred: int, is_new: bool,
    metrics: Mapping[str, float], left_out: str,
) -> Result:  # fmt: skip
    """Return the result, with `stop_here` where there is nothing new; otherwise tell MLflow, `metrics` too."""
    mark_as_last(context.bottle, summary)
    result = _result(summary, transferred, is_new)
    result.left_out = left_out
    if not arguments.force:
        result.stop_here = _nothing_new(arguments, summary)
    if result.stop_here is None:
        _track(context, result, metrics)
    return result


def write_quarantine(bottle: Bottle, group: str, refused: list[Refused]) -> str:
    """Write what is refused today to `meta/<group>/refused.jsonl`; return that key."""
    lines = [r.model_dump_json() + "\n" for r in refused]
    key = f"meta/{group}/refused.jsonl"
    if lines or bottle.exists(key):
        bottle.write(key, "".join(lines))
    return key


def left_out(key: str, refused: list[Refused], listed: int, what: str, bad: list[Refused]) -> str:
    """Return a sentence about what is `refused` of the `listed` things, with an example; nothing where nothing is.

    Args:
        key: where all of it stands in the bottle.
        refused: everything that was refused.
        listed: how much there was.
        what: pictures, say.
        bad: the part of `refused` that something is wrong with, from which an example is more telling.
    """
    if not refused:
        return ""
    example = [*bad, *refused][0]
    return (
        f"{len(refused)} of {listed} {what} were left out: {_counted(refused)}. For example {example.source}: "
        f"{example.reason}: {example.detail}. All of them: {key} in the bottle."
    )


def _counted(refused: list[Refused]) -> str:
    counts = Counter(str(r.reason) for r in refused)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def check_share(
    bottle: Bottle, key: str, group: str, bad: list[Refused], listed: int, what: str, most: float, fault: str = "bad"
) -> None:
    """See that at most the share `most` of the `listed` pictures or objects (`what`) is refused for a `fault`.

    Raises:
        DataValidationError: more is; the message has counts, examples and `key`, which lists all.
    """
    for refused in bad[:5]:
        logger.warning("refused %s: %s: %s", refused.source, refused.reason, refused.detail)
    if len(bad) <= most * listed:
        return
    examples = "; ".join(f"{r.source}: {r.reason}: {r.detail}" for r in bad[:3])
    raise DataValidationError(
        f"{len(bad)} of {listed} {what} of group {group} are {fault} ({_counted(bad)}), more than the share "
        f"of {most:g} that is allowed. For example {examples}. All of them: {bottle}/{key}"
    )


def _result(summary: Summary, transferred: int, is_new: bool) -> Result:
    return Result(
        snapshot_id=summary.snapshot_id,
        group=summary.group,
        labels=summary.labels,
        pictures=summary.pictures,
        counts=summary.counts,
        refused=summary.refused,
        transferred=transferred,
        is_new=is_new,
    )


def _nothing_new(arguments: PullArguments, summary: Summary) -> job.StopHere | None:
    """Return why the run may end here: an earlier one came to its end with the same data and configuration."""
    if settings.optional(settings.DATABASE_URL) is None:
        logger.info("%s is not set: earlier runs are not known", settings.DATABASE_URL)
        return None
    earlier = database.completed_run(arguments.pipeline, summary.snapshot_id, arguments.fingerprint)
    if earlier is None:
        return None
    when = f" on {earlier.finished_at:%Y-%m-%d %H:%M} UTC" if earlier.finished_at else ""
    reason = (
        f"nothing new: the {summary.pictures} pictures of group {summary.group} are still snapshot "
        f"{summary.snapshot_id}, which run {earlier.dag_run_id} completed{when} with the same configuration "
        f"({earlier.outcome}). Use force to train on them again"
    )
    logger.info(reason)
    return job.StopHere(outcome="nothing_new", reason=reason)


def _track(context: job.Context, result: Result, metrics: Mapping[str, float]) -> None:
    """Log the snapshot to MLflow; a run that has nothing new to say starts no client."""
    if not context.is_tracked:
        return
    run = context.tracking
    run.params({"snapshot_id": result.snapshot_id, "group": result.group, "classes": len(result.labels)})
    folder = SnapshotPaths(result.group, result.snapshot_id).folder
    run.dataset(result.group, result.snapshot_id, f"{context.bottle}/{folder}", "training")
    reasons = {f"refused/{reason}": float(count) for reason, count in result.refused.items()}
    run.metrics({"pictures": result.pictures, "transferred": result.transferred, **metrics, **reasons})
    run.dictionary(result.model_dump(mode="json"), "snapshot.json")
