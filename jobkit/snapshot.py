"""A snapshot: the immutable, content-addressed set of labeled pictures that a model is trained and scored on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.paths import SnapshotPaths

Split = Literal["train", "val", "golden"]
SPLITS: tuple[Split, ...] = ("train", "val", "golden")


class Sample(BaseModel):
    """One picture of a snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file's bytes")
    path: str = Field(description="key in the bottle")
    label: str
    split: Split
    width: int = Field(gt=0, description="pixels")
    height: int = Field(gt=0, description="pixels")
    split_group: str = Field(description="what is kept on one side of the split: the picset, else the picture itself")
    source: str = Field(description="where it came from: collect's filepath, a table's row")


class Refused(BaseModel):
    """One picture that was not taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    reason: Literal["corrupt", "too_small", "too_large", "duplicate", "near_duplicate", "conflicting_labels", "missing"]
    detail: str
    sha256: str | None = None


class Summary(BaseModel):
    """What a snapshot holds."""

    model_config = ConfigDict(extra="forbid")

    snapshot_id: str
    group: str
    labels: list[str] = Field(description="class names; their order is the order of a model's outputs")
    pictures: int
    counts: dict[str, dict[str, int]] = Field(description="split -> label -> pictures")
    refused: dict[str, int] = Field(description="reason -> pictures")


def snapshot_id(samples: Iterable[Sample]) -> str:
    """Return the id of a set of samples: 16 hex digits of the SHA-256 of its content.

    The order of the samples, their file names and where they came from do not count; pictures, labels and splits do.
    """
    rows = sorted((s.sha256, s.label, s.split) for s in samples)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()[:16]


class Snapshot(BaseModel):
    """A snapshot as read from the bottle: its summary and its samples in manifest order."""

    summary: Summary
    samples: list[Sample]

    def split(self, name: Split) -> list[Sample]:
        """Return the samples of one split."""
        return [sample for sample in self.samples if sample.split == name]

    def label_index(self) -> dict[str, int]:
        """Return the output index of each class."""
        return {label: index for index, label in enumerate(self.summary.labels)}


def write_snapshot(bottle: Bottle, group: str, samples: list[Sample], refused: list[Refused]) -> Summary:
    """Write a snapshot; return its summary. A snapshot that exists already is left as it is."""
    ordered = sorted(samples, key=lambda s: (s.sha256, s.label))
    identifier = snapshot_id(ordered)
    paths = SnapshotPaths(group, identifier)
    counts = {split: dict(sorted(Counter(s.label for s in ordered if s.split == split).items())) for split in SPLITS}
    summary = Summary(
        snapshot_id=identifier,
        group=group,
        labels=sorted({s.label for s in ordered}),
        pictures=len(ordered),
        counts=counts,
        refused=dict(sorted(Counter(r.reason for r in refused).items())),
    )
    if not bottle.exists(paths.summary):
        bottle.write(paths.manifest, "".join(s.model_dump_json() + "\n" for s in ordered))
        bottle.write(paths.refused, "".join(r.model_dump_json() + "\n" for r in refused))
        bottle.write(paths.summary, summary.model_dump_json(indent=2) + "\n")  # last: it makes the snapshot exist
    return summary


def read_summary(bottle: Bottle, group: str, identifier: str) -> Summary:
    """Return a snapshot's summary.

    Raises:
        DataValidationError: there is no such snapshot, or it is damaged; the message lists the snapshots of the group.
    """
    paths = SnapshotPaths(group, identifier)
    if not bottle.exists(paths.summary):
        known = sorted(
            {key.split("/")[2] for key in bottle.keys(f"snapshots/{group}") if key.endswith("/summary.json")}
        )
        raise DataValidationError(
            f"there is no snapshot {identifier} of group {group}; there is: {', '.join(known) or 'none'}"
        )
    try:
        return Summary.model_validate_json(bottle.read(paths.summary))
    except ValidationError as error:
        raise DataValidationError(f"{bottle}/{paths.summary} is damaged: {error}") from error


def read_snapshot(bottle: Bottle, group: str, identifier: str) -> Snapshot:
    """Return a snapshot, with its manifest checked against its id.

    Raises:
        DataValidationError: there is no such snapshot, or its manifest was changed after it was made.
    """
    summary = read_summary(bottle, group, identifier)
    manifest = SnapshotPaths(group, identifier).manifest
    samples = []
    for number, line in enumerate(bottle.read(manifest).splitlines(), start=1):
        try:
            samples.append(Sample.model_validate_json(line))
        except ValidationError as error:
            raise DataValidationError(f"{bottle}/{manifest}:{number} is damaged: {error}") from error
    if (actual := snapshot_id(samples)) != identifier:
        raise DataValidationError(f"{bottle}/{manifest} was changed after it was made: its content has the id {actual}")
    return Snapshot(summary=summary, samples=samples)
