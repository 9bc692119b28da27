"""Make a snapshot of a group's labeled pictures: pull what is new, refuse what is damaged, split it for good."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager

from pydantic import Field

from jobkit import database, job, settings
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.paths import SnapshotPaths, checked_name
from jobkit.snapshot import Summary, read_summary, write_snapshot
from nightshift_common.options.data import LabeledPicturesOptions
from training_jobs.data.legacy_dataset_file import write_dataset
from training_jobs.data.picset_metadata import write_picsets
from training_jobs.data.selection import Rules, Selection, check_classes, select
from training_jobs.data.sources import Source, collect_source, table_source
from training_jobs.data.transfer import transfer

logger = logging.getLogger("training_jobs.pull_dataset")


class Arguments(job.Arguments, LabeledPicturesOptions):
    """Make a snapshot of labeled pictures. Only new ones are transferred; the same data gives the same snapshot."""

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
    counts: dict[str, dict[str, int]] = Field(description="split -> label -> pictures")
    refused: dict[str, int] = Field(description="reason -> pictures")
    transferred: int = Field(description="files fetched in this run")
    is_new: bool = Field(description="whether this run made the snapshot")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Pull a dataset."""
    if arguments.snapshot_id:
        summary = read_summary(context.bottle, arguments.group, arguments.snapshot_id)
        logger.info("snapshot %s is pinned: nothing is pulled", summary.snapshot_id)
        return _result(summary, transferred=0, is_new=False)
    summary, transferred, is_new = _pull(arguments, context.bottle)
    result = _result(summary, transferred, is_new)
    if not arguments.force:
        result.stop_here = _nothing_new(arguments, summary)
    if result.stop_here is None:
        _track(context, result)
    return result


def _pull(arguments: Arguments, bottle: Bottle) -> tuple[Summary, int, bool]:
    group = checked_name(arguments.group, "group")
    with _source(arguments, bottle) as source:
        listed = source.listed
        logger.info("%s lists %d pictures of group %s", arguments.source, len(listed), group)
        inspected, transferred = transfer(bottle, group, (e.source for e in listed), source.fetch, arguments.max_side)
        if source.picsets:
            write_picsets(bottle, group, listed, source.picsets)
    rules = Rules(arguments.min_side, arguments.max_side, arguments.val_part, arguments.golden_part)
    selection = select(listed, inspected, rules)
    _quarantine(bottle, arguments, selection, len(listed))
    check_classes(selection.samples, group)
    existing = set(bottle.keys(f"snapshots/{group}"))
    summary = write_snapshot(bottle, group, selection.samples, selection.refused)
    is_new = SnapshotPaths(group, summary.snapshot_id).summary not in existing
    if is_new:
        write_dataset(bottle, group, selection.samples, selection.unlabeled)
    logger.info(
        "snapshot %s %s: %d pictures of %d classes, %d refused, %d files fetched",
        summary.snapshot_id,
        "is new" if is_new else "is there already",
        summary.pictures,
        len(summary.labels),
        len(selection.refused),
        transferred,
    )
    return summary, transferred, is_new


def _source(arguments: Arguments, bottle: Bottle) -> AbstractContextManager[Source]:
    if arguments.table is not None:
        return table_source(arguments.table, bottle)
    return collect_source(arguments.group, list(arguments.modes))


def _quarantine(bottle: Bottle, arguments: Arguments, selection: Selection, listed: int) -> None:
    """Write what is refused today to `meta/<group>/refused.jsonl`; refuse it all where too much is bad."""
    lines = [r.model_dump_json() + "\n" for r in selection.refused]
    key = f"meta/{arguments.group}/refused.jsonl"
    if lines or bottle.exists(key):
        bottle.write(key, "".join(lines))
    bad = selection.bad
    for refused in bad[:5]:
        logger.warning("refused %s: %s: %s", refused.source, refused.reason, refused.detail)
    if len(bad) <= arguments.max_bad_share * listed:
        return
    counts = Counter(str(r.reason) for r in bad)
    examples = "; ".join(f"{r.source}: {r.reason}: {r.detail}" for r in bad[:3])
    raise DataValidationError(
        f"{len(bad)} of {listed} pictures of group {arguments.group} are bad ({_counted(counts)}), more than the share "
        f"of {arguments.max_bad_share:g} that is allowed. For example {examples}. All of them: {bottle}/{key}"
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


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


def _nothing_new(arguments: Arguments, summary: Summary) -> job.StopHere | None:
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


def _track(context: job.Context, result: Result) -> None:
    """Log the snapshot to MLflow; a run that has nothing new to say starts no client."""
    if not context.is_tracked:
        return
    run = context.tracking
    run.params({"snapshot_id": result.snapshot_id, "group": result.group, "classes": len(result.labels)})
    folder = SnapshotPaths(result.group, result.snapshot_id).folder
    run.dataset(result.group, result.snapshot_id, f"{context.bottle}/{folder}", "training")
    sides = {f"pictures/{split}": float(sum(labels.values())) for split, labels in result.counts.items()}
    reasons = {f"refused/{reason}": float(count) for reason, count in result.refused.items()}
    run.metrics({"pictures": result.pictures, "transferred": result.transferred} | sides | reasons)
    run.dictionary(result.model_dump(mode="json"), "snapshot.json")


if __name__ == "__main__":
    job.main(Arguments, run)
