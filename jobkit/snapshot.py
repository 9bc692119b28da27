"""A snapshot: the immutable, content-addressed set of labeled pictures that a model is trained and scored on.

A picture has one label; or several, or none, in a set that is multi-label; or objects with a label each.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.paths import SnapshotPaths, last_snapshot_key

Split = Literal["train", "val", "golden"]
SPLITS: tuple[Split, ...] = ("train", "val", "golden")


class AnnotatedObject(BaseModel):
    """One object in a picture, in pixels of the picture as it is decoded (turned as its EXIF orientation says)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    label: str = Field(min_length=1)
    box: tuple[float, float, float, float] = Field(description="x_min, y_min, width, height")
    polygons: tuple[tuple[float, ...], ...] = Field(
        (), description="its outline: x, y, x, y, ... of each part; none where only the box is known"
    )
    ignore: bool = Field(False, description="a crowd: what is found in it is neither right nor wrong")

    @property
    def identity(self) -> list[Any]:
        """What makes it another object, in an order that sorts."""
        return [self.label, list(self.box), [list(polygon) for polygon in self.polygons], self.ignore]


class Sample(BaseModel):
    """One picture of a snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file's bytes")
    path: str = Field(description="key in the bottle")
    label: str = Field(description="its class; empty for a picture with objects, and in a set that is multi-label")
    split: Split
    width: int = Field(gt=0, description="pixels")
    height: int = Field(gt=0, description="pixels")
    split_group: str = Field(description="what is kept on one side of the split: the picset, else the picture itself")
    source: str = Field(description="where it came from: collect's filepath, a table's row, a file's name")
    objects: tuple[AnnotatedObject, ...] | None = Field(
        None, description="what is in it: empty for a background; None for a picture with labels of its own"
    )
    several: tuple[str, ...] | None = Field(
        None, description="its classes in a set that is multi-label, sorted; empty: it shows none; None: it has a label"
    )
    listed_as: tuple[str, ...] | None = Field(
        None, description="its classes at the source, where a person's review has given it others; None: those it has"
    )

    @property
    def labels(self) -> list[str]:
        """The classes that it shows, sorted; those of objects that are to be ignored are left out."""
        if self.several is not None:
            return list(self.several)
        if self.objects is None:
            return [self.label]
        return sorted({found.label for found in self.objects if not found.ignore})


class Refused(BaseModel):
    """One picture, or one object of a picture, that was not taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    reason: Literal[
        "corrupt", "unsupported", "too_small", "too_large", "duplicate", "near_duplicate", "conflicting_labels",
        "missing", "duplicate_id", "unknown_category", "unknown_picture", "malformed", "zero_area",
        "other_size", "no_usable_object", "dropped_in_review",
    ]  # fmt: skip
    detail: str
    sha256: str | None = None


class Summary(BaseModel):
    """What a snapshot holds."""

    model_config = ConfigDict(extra="forbid")

    snapshot_id: str
    group: str
    labels: list[str] = Field(description="class names; their order is the order of a model's outputs")
    pictures: int
    counts: dict[str, dict[str, int]] = Field(description="split -> label -> pictures, or objects where they have any")
    refused: dict[str, int] = Field(description="reason -> pictures")


def snapshot_id(samples: Iterable[Sample]) -> str:
    """Return the id of a set of samples: 16 hex digits of the SHA-256 of its content.

    The order of the samples and of their objects, their file names and where they came from do not count; pictures,
    labels, objects and splits do.
    """
    rows: list[tuple[Any, ...]] = sorted(map(_identity, samples))
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()[:16]


def _identity(sample: Sample) -> tuple[Any, ...]:
    row = (sample.sha256, sample.label, sample.split)
    if sample.several is not None:
        return (*row, {"several": sorted(sample.several)})
    if sample.objects is None:
        return row  # as ids were made before there were objects or several labels
    return (*row, sorted(found.identity for found in sample.objects))


class Snapshot(BaseModel):
    """A snapshot as read from the bottle: its summary and its samples in manifest order."""

    summary: Summary
    samples: list[Sample]

    def split(self, name: Split) -> list[Sample]:
        """Return the samples of one split."""
        return [sample for sample in self.samples if sample.split == name]

    @property
    def is_multi_label(self) -> bool:
        """Whether a picture may have several labels, or none."""
        return any(sample.several is not None for sample in self.samples)

    def label_index(self) -> dict[str, int]:
        """Return the output index of each class."""
        return {label: index for index, label in enumerate(self.summary.labels)}


def write_snapshot(bottle: Bottle, group: str, samples: list[Sample], refused: list[Refused]) -> Summary:
    """Write a snapshot; return its summary. A snapshot that exists already is left as it is."""
    ordered = sorted(samples, key=lambda s: (s.sha256, s.label))
    identifier = snapshot_id(ordered)
    paths = SnapshotPaths(group, identifier)
    counts = {split: dict(sorted(_counted(s for s in ordered if s.split == split).items())) for split in SPLITS}
    summary = Summary(
        snapshot_id=identifier,
        group=group,
        labels=sorted(_counted(ordered)),
        pictures=len(ordered),
        counts=counts,
        refused=dict(sorted(Counter(r.reason for r in refused).items())),
    )
    if not bottle.exists(paths.summary):
        bottle.write(paths.manifest, "".join(s.model_dump_json(exclude_defaults=True) + "\n" for s in ordered))
        bottle.write(paths.refused, "".join(r.model_dump_json() + "\n" for r in refused))
        bottle.write(paths.summary, summary.model_dump_json(indent=2) + "\n")  # last: it makes the snapshot exist
    return summary


def _counted(samples: Iterable[Sample]) -> Counter[str]:
    """Return how many pictures, or objects where they have any, each class has."""
    counts: Counter[str] = Counter()
    for sample in samples:
        if sample.objects is None:
            counts.update(sample.labels)
        else:
            counts.update(found.label for found in sample.objects if not found.ignore)
    return counts


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


def mark_as_last(bottle: Bottle, summary: Summary) -> None:
    """Write down that this snapshot of its group was pulled last."""
    bottle.write(last_snapshot_key(summary.group), json.dumps({"snapshot_id": summary.snapshot_id}) + "\n")


def last_snapshot(bottle: Bottle, group: str) -> str:
    """Return the id of the group's snapshot that was pulled last; where nothing says so, of its only one.

    Raises:
        ConfigurationError: there is none, or there are several of which none was marked.
    """
    if bottle.exists(key := last_snapshot_key(group)):
        identifier = json.loads(bottle.read(key))["snapshot_id"]
        return read_summary(bottle, group, identifier).snapshot_id
    known = sorted({key.split("/")[2] for key in bottle.keys(f"snapshots/{group}") if key.endswith("/summary.json")})
    if len(known) == 1:
        return known[0]
    raise ConfigurationError(
        f"--snapshot_id is missing; group {group} has {', '.join(known) or 'no snapshots: pull the dataset first'}"
    )


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
