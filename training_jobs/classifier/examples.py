"""What a training learns from: examples with their labels, whatever the source of the labels."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from jobkit.bottle import Bottle, FolderBottle
from jobkit.errors import ConfigurationError, DataRefused
from jobkit.progress import Progress
from jobkit.snapshot import Sample, read_snapshot


@dataclass(frozen=True, slots=True)
class Example:
    """One picture and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Examples:
    """Training and validation examples; `labels` are the class names in output order."""

    labels: list[str]
    train: list[Example]
    val: list[Example]
    group: str
    snapshot_id: str | None = None
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        tally = Counter(example.label for example in self.train)
        object.__setattr__(self, "counts", [tally[index] for index in range(len(self.labels))])


def from_snapshot(bottle: Bottle, group: str, snapshot_id: str) -> Examples:
    """Return the train and val splits of a snapshot; the golden split is never looked at.

    Raises:
        DataRefused: a class has no training pictures, there is one class only, or nothing to validate on.
    """
    snapshot = read_snapshot(bottle, group, snapshot_id)
    index = snapshot.label_index()
    train, val = snapshot.split("train"), snapshot.split("val")
    paths = _local_paths(bottle, [*train, *val])
    examples = Examples(
        labels=snapshot.summary.labels, group=group, snapshot_id=snapshot_id,
        train=[Example(paths[s.path], index[s.label]) for s in train],
        val=[Example(paths[s.path], index[s.label]) for s in val],
    )  # fmt: skip
    check(examples, f"snapshot {snapshot_id} of group {group}")
    return examples


def check(examples: Examples, where: str) -> None:
    """Refuse a set that no classifier can learn from or be validated on.

    Raises:
        DataRefused: as said; the message names the classes.
    """
    if len(examples.labels) < 2:
        raise DataRefused(f"{where} has one class only ({', '.join(examples.labels) or 'none'}); at least 2 are needed")
    if empty := [name for name, count in zip(examples.labels, examples.counts, strict=True) if not count]:
        raise DataRefused(f"{where} has no training pictures of {', '.join(empty)}; every class needs at least one")
    if not examples.val:
        raise DataRefused(f"{where} has no validation pictures")


def check_classes(examples: Examples, n_classes: int | None) -> None:
    """Raise `ConfigurationError` where the file names another number of classes than there are."""
    if n_classes is not None and n_classes != len(examples.labels):
        raise ConfigurationError(
            f"model.n_classes is {n_classes}, but there are {len(examples.labels)} labels: {', '.join(examples.labels)}"
        )


def _local_paths(bottle: Bottle, samples: list[Sample]) -> dict[str, Path]:
    """Return a local file of each sample's picture; those of a remote bottle are downloaded first, 16 at a time."""
    if isinstance(bottle, FolderBottle):
        return {sample.path: bottle.local(sample.path) for sample in samples}
    progress = Progress("download", len(samples), "pictures")
    with ThreadPoolExecutor(16) as pool:
        paths = {}
        for sample, path in zip(samples, pool.map(lambda s: bottle.local(s.path), samples), strict=True):
            paths[sample.path] = path
            progress.advance()
    return paths
