"""Make a snapshot of a group's labeled pictures: pull what is new, refuse what is damaged, split it for good."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal

from pydantic import Field, model_validator

from jobkit import job
from jobkit.bottle import Bottle
from jobkit.paths import SnapshotPaths, checked_name
from jobkit.snapshot import Summary, write_snapshot
from training_jobs.data.collect import MODES
from training_jobs.data.legacy_dataset_file import write_dataset
from training_jobs.data.picset_metadata import write_picsets
from training_jobs.data.pull import PullArguments, Result, check_share, finish, pinned, write_quarantine
from training_jobs.data.selection import Rules, check_classes, select
from training_jobs.data.sources import Source, collect_source, table_source
from training_jobs.data.transfer import transfer

logger = logging.getLogger("training_jobs.pull_dataset")

Mode = Literal["PREPARING", "CHECKING", "VALIDATED", "TRAINED"]


class Arguments(PullArguments):
    """Make a snapshot of labeled pictures. Only new ones are transferred; the same data gives the same snapshot."""

    group: str = Field(description="group of pictures, say digits")
    source: Literal["collect", "postgres"] = Field("collect", description="where the labeled pictures are listed")
    table: str | None = Field(
        None, description="for postgres: [schema.]table with path, label and, optionally, split_group or picset"
    )
    modes: list[Mode] = Field(MODES, description="for collect: the modes of the picsets to take")  # type: ignore[arg-type]
    val_part: float = Field(0.15, gt=0, lt=0.5, description="share of the split groups for validation")
    golden_part: float = Field(0.15, gt=0, lt=0.5, description="share of the split groups for the golden set")
    min_side: int = Field(16, ge=1, description="a picture with a shorter side is refused, pixels")
    max_side: int = Field(10_000, ge=1, description="a picture with a longer side is refused undecoded, pixels")
    max_bad_share: float = Field(
        0.05, ge=0, le=1, description="with a larger share of bad pictures the whole pull is refused"
    )

    @model_validator(mode="after")
    def _table_goes_with_postgres(self) -> Arguments:
        if (self.source == "postgres") != (self.table is not None):
            raise ValueError("--table goes with --source postgres, and --source postgres needs it")
        return self


def run(arguments: Arguments, context: job.Context) -> Result:
    """Pull a dataset."""
    if (found := pinned(arguments, arguments.group, context)) is not None:
        return found
    summary, transferred, is_new = _pull(arguments, context.bottle)
    sides = {f"pictures/{split}": float(sum(labels.values())) for split, labels in summary.counts.items()}
    return finish(arguments, context, summary, transferred, is_new, sides)


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
    key = write_quarantine(bottle, group, selection.refused)
    check_share(bottle, key, group, selection.bad, len(listed), "pictures", arguments.max_bad_share)
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


if __name__ == "__main__":
    job.main(Arguments, run)
