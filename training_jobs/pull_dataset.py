"""Make a snapshot of a group's labeled pictures: pull what is new, refuse what is damaged, split it for good."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import AbstractContextManager

from pydantic import Field

from jobkit import job
from jobkit.bottle import Bottle
from jobkit.paths import SnapshotPaths, checked_name
from jobkit.snapshot import Summary, write_snapshot
from nightshift_common.options.data import LabeledPicturesOptions
from training_jobs.data import pull
from training_jobs.data.label_review import read_reviews
from training_jobs.data.legacy_dataset_file import write_dataset
from training_jobs.data.picset_metadata import write_picsets
from training_jobs.data.pull import PullArguments, check_share, finish, left_out, pinned, write_quarantine
from training_jobs.data.selection import Rules, Selection, check_classes, select
from training_jobs.data.sources import Source, collect_source, table_source
from training_jobs.data.split_groups import read_split_groups, write_split_groups
from training_jobs.data.transfer import transfer

logger = logging.getLogger("training_jobs.pull_dataset")


class Result(pull.Result):
    """The snapshot, what it took to make it, and what reviews changed in it."""

    relabeled: int = Field(0, description="pictures whose labels are a review's and not the source's")
    outdated_reviews: int = Field(0, description="reviews not applied: the source has changed the label since")


class Arguments(PullArguments, LabeledPicturesOptions):
    """Make a snapshot of labeled pictures. Only new ones are transferred; the same data gives the same snapshot."""


def run(arguments: Arguments, context: job.Context) -> Result:
    """Pull a dataset."""
    if (found := pinned(arguments, arguments.group, context)) is not None:
        return Result(**dict(found))
    summary, selection, transferred, is_new, sentence = _pull(arguments, context.bottle)
    metrics = Counter(f"pictures/{sample.split}" for sample in selection.samples)
    changed = {"relabeled": len(selection.relabeled), "outdated_reviews": len(selection.outdated_reviews)}
    found = finish(arguments, context, summary, transferred, is_new, metrics | Counter(changed), sentence)
    return Result(**dict(found), **changed)


def _pull(arguments: Arguments, bottle: Bottle) -> tuple[Summary, Selection, int, bool, str]:
    group = checked_name(arguments.group, "group")
    with _source(arguments, bottle) as source:
        listed = source.listed
        logger.info("%s lists %d pictures of group %s", arguments.source, len(listed), group)
        inspected, transferred = transfer(bottle, group, (e.source for e in listed), source.fetch, arguments.max_side)
        if source.picsets:
            write_picsets(bottle, group, listed, source.picsets)
    rules = Rules(arguments.min_side, arguments.max_side, arguments.val_part, arguments.golden_part)
    earlier = read_split_groups(bottle, group)
    reviews = read_reviews(bottle, group)
    selection = select(listed, inspected, rules, arguments.near_copies, earlier, arguments.multi_label, reviews)
    key = write_quarantine(bottle, group, selection.refused)
    check_share(bottle, key, group, selection.bad, len(listed), "pictures", arguments.max_bad_share)
    dropped, share = selection.near_copies, arguments.max_dropped_share
    check_share(bottle, key, group, dropped, len(listed), "pictures", share, "left out as near copies of others")
    check_classes(selection.samples, group)
    write_split_groups(bottle, group, {**earlier, **selection.split_groups})  # first: a snapshot's pictures stay there
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
    _say_what_reviews_changed(selection)
    sentence = left_out(key, selection.refused, len(listed), "pictures", selection.bad)
    return summary, selection, transferred, is_new, sentence


def _say_what_reviews_changed(selection: Selection) -> None:
    if selection.relabeled:
        shown = "; ".join(
            f"{s.source}: {', '.join(s.listed_as or ()) or 'none'} is {', '.join(s.labels) or 'none'}"
            for s in selection.relabeled[:3]
        )
        logger.info("%d pictures have the labels of a review: %s", len(selection.relabeled), shown)
    if outdated := selection.outdated_reviews:
        logger.warning("%d reviews are outdated and were not applied: %s", len(outdated), "; ".join(outdated[:3]))


def _source(arguments: Arguments, bottle: Bottle) -> AbstractContextManager[Source]:
    if arguments.table is not None:
        return table_source(arguments.table, bottle, arguments.multi_label)
    return collect_source(arguments.group, list(arguments.modes))


if __name__ == "__main__":
    job.main(Arguments, run)
