"""Count the training labels."""

from __future__ import annotations

from pydantic import Field

from jobkit import job
from jobkit.snapshot import read_summary


class Arguments(job.Arguments):
    """Count the training labels of a snapshot, into the bottle."""

    group: str = Field(description="group of pictures")
    snapshot_id: str = Field(description="the snapshot")


class Result(job.Result):
    """Where the counts are."""

    counts: str


def run(arguments: Arguments, context: job.Context) -> Result:
    """Write `constant/<group>/<snapshot>.txt`: a line a label, its number of training pictures before it."""
    counts = read_summary(context.bottle, arguments.group, arguments.snapshot_id).counts["train"]
    key = f"constant/{arguments.group}/{arguments.snapshot_id}.txt"
    context.bottle.write(key, "".join(f"{count} {label}\n" for label, count in counts.items()))
    return Result(counts=key)


if __name__ == "__main__":
    job.main(Arguments, run)
