"""Write down what a person decided about labels: keep, relabel or drop; the next pull applies it."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Literal, get_args

from pydantic import Field, model_validator

from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.local_file import local_file
from jobkit.snapshot import Sample, Snapshot, last_snapshot, read_snapshot
from nightshift_common.names import GroupName
from training_jobs.data.label_review import LabelReview, Verdict, confirmed, read_reviews, write_reviews

logger = logging.getLogger("training_jobs.review_labels")

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
COLUMNS = ("picture", "verdict", "relabel_to")
SEPARATOR = "|"  # between several labels of one picture
SHOWN_ERRORS = 5


class Arguments(job.Arguments):
    """Write down what a person decided about the labels of a snapshot's pictures. Nothing is changed by it at once: the
    next pull applies it to what the source lists, and evaluations count what was reviewed."""

    group: GroupName = Field(description="group of pictures")
    by: str = Field(min_length=1, description="who looked at the pictures")
    snapshot_id: str | None = Field(
        None, description="the snapshot that was looked at; default: the one that was pulled last"
    )
    decisions: str | None = Field(
        None,
        description="a CSV file, as find_label_errors writes it, with the columns picture (key in the bottle), verdict "
        "(keep, relabel, drop; empty: not looked at) and relabel_to (for relabel; several labels with | between "
        "them): a path, a key in the bottle, or s3://bucket/key",
    )
    keep_all: Literal["golden", "val", "train"] | None = Field(
        None, description="all pictures of this side of the split were looked at, and their labels are right"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Arguments:
        if (self.decisions is None) == (self.keep_all is None):
            raise ValueError("give either --decisions or --keep_all")
        return self


class Result(job.Result):
    """What was written down, and how much of the golden set is reviewed now."""

    record: str = Field(description="key in the bottle")
    keep: int
    relabel: int
    drop: int
    skipped: int = Field(description="rows without a verdict")
    golden_pictures: int
    golden_reviewed: int = Field(description="golden pictures whose labels a person has confirmed")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Read the decisions, check all of them, and write them down."""
    bottle, group = context.bottle, arguments.group
    snapshot = read_snapshot(bottle, group, arguments.snapshot_id or last_snapshot(bottle, group))
    if any(sample.objects is not None for sample in snapshot.samples):
        raise ConfigurationError(f"group {group} has annotated objects: reviews are of labels of whole pictures")
    at, skipped = datetime.now(UTC), 0
    if arguments.keep_all is not None:
        chosen = snapshot.split(arguments.keep_all)
        reviews = [LabelReview.of(sample, "keep", sample.labels, arguments.by, at) for sample in chosen]
    else:
        text = local_file(arguments.decisions or "", bottle).read_text(encoding="utf-8-sig")
        reviews, skipped = read_decisions(text, arguments.decisions or "", snapshot, arguments.by, at)
    if not reviews:
        raise DataValidationError(f"nothing was decided: {skipped} rows, none with a verdict ({', '.join(VERDICTS)})")
    key = write_reviews(bottle, group, reviews)
    counts = Counter(review.verdict for review in reviews)
    golden = snapshot.split("golden")
    reviewed = len(confirmed(golden, read_reviews(bottle, group)))
    logger.info(
        "%s: %d kept, %d relabeled, %d dropped, %d rows without a verdict; %d of %d golden pictures of snapshot %s "
        "have a reviewed label; the next pull applies it", key, counts["keep"], counts["relabel"], counts["drop"],
        skipped, reviewed, len(golden), snapshot.summary.snapshot_id,
    )  # fmt: skip
    return Result(
        record=key, keep=counts["keep"], relabel=counts["relabel"], drop=counts["drop"], skipped=skipped,
        golden_pictures=len(golden), golden_reviewed=reviewed,
    )  # fmt: skip


def read_decisions(text: str, where: str, snapshot: Snapshot, by: str, at: datetime) -> tuple[list[LabelReview], int]:
    """Return the reviews that a table holds, and how many of its rows have no verdict.

    Raises:
        DataValidationError: a column is missing; or rows are wrong: the message lists them, and nothing is taken.
    """
    rows = csv.DictReader(io.StringIO(text))
    if missing := set(COLUMNS) - set(rows.fieldnames or ()):
        raise DataValidationError(f"{where} lacks the column {', '.join(sorted(missing))}; it has {rows.fieldnames}")
    samples, reviews, wrong, skipped = {s.path: s for s in snapshot.samples}, {}, [], 0
    for number, row in enumerate(rows, start=2):
        picture, verdict = row["picture"].strip(), (row["verdict"] or "").strip().lower()
        if not verdict:
            skipped += 1
            continue
        if picture in reviews:
            wrong.append(f"line {number}: {picture} stands there twice")
            continue
        try:
            reviews[picture] = _review(samples.get(picture), row, verdict, snapshot, by, at)
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        shown = "; ".join(wrong[:SHOWN_ERRORS])
        raise DataValidationError(f"{where}: {len(wrong)} rows are wrong, nothing was written: {shown}")
    return list(reviews.values()), skipped


def _review(
    sample: Sample | None, row: dict[str, str], verdict: str, snapshot: Snapshot, by: str, at: datetime
) -> LabelReview:
    summary = snapshot.summary
    if sample is None:
        raise ValueError(f"{row['picture']!r} is no picture of snapshot {summary.snapshot_id}")
    known = next((name for name in VERDICTS if name == verdict), None)
    if known is None:
        raise ValueError(f"verdict {verdict!r}; valid: {', '.join(VERDICTS)}")
    if known != "relabel":
        return LabelReview.of(sample, known, sample.labels, by, at)
    text = (row["relabel_to"] or "").strip()
    labels = [part.strip() for part in text.split(SEPARATOR) if part.strip()] if snapshot.is_multi_label else [text]
    if unknown := [label for label in labels if label not in summary.labels]:
        raise ValueError(f"relabel_to {', '.join(map(repr, unknown))}; the classes are {', '.join(summary.labels)}")
    return LabelReview.of(sample, "relabel", labels, by, at)


if __name__ == "__main__":
    job.main(Arguments, run)
