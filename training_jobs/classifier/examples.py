"""What a training learns from: examples with their labels, whatever the source of the labels."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from jobkit.bottle import Bottle, FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.progress import Progress
from jobkit.snapshot import Sample, read_snapshot
from nightshift_common.picture_files import SUFFIXES

logger = logging.getLogger("training_jobs.train_classifier")
Image.MAX_IMAGE_PIXELS = None  # pictures are measured before they are decoded

TURNS = ["0", "90", "180", "270"]  # classes of the rotation task: degrees, counter-clockwise


@dataclass(frozen=True, slots=True)
class Person:
    """One person in a picture."""

    box: tuple[float, float, float, float]  # x_min, y_min, x_max, y_max, pixels
    polygons: tuple[tuple[float, ...], ...]  # x, y, x, y, …, as parts of the picture's width and height


@dataclass(frozen=True, slots=True)
class Example:
    """One picture, or one person in it, and the index of its class.

    With `turns` the picture is turned by that many quarter turns; None draws them, and they are the class. In a set
    that is multi-label `present` has a byte for each class, 1 where the picture shows it, and `label` says nothing.
    """

    path: Path
    label: int
    turns: int | None = 0
    person: Person | None = None
    present: bytes | None = None
    key: str = ""  # what names it in reports: its key in the bottle, or its path below the folder


@dataclass(frozen=True)
class Examples:
    """Training and validation examples; `labels` are the class names in output order."""

    labels: list[str]
    train: list[Example]
    val: list[Example]
    group: str
    snapshot_id: str | None = None
    multi_label: bool = False

    @property
    def counts(self) -> list[int]:
        """Training examples of each class; one whose class is drawn counts as a part of each."""
        if self.multi_label:
            vectors = [example.present or b"" for example in self.train]
            return [sum(vector[index] for vector in vectors) for index in range(len(self.labels))]
        tally = Counter(example.label for example in self.train if example.turns is not None)
        drawn = sum(example.turns is None for example in self.train)
        return [tally[index] + -(-drawn // len(self.labels)) for index in range(len(self.labels))]


def from_snapshot(bottle: Bottle, group: str, snapshot_id: str) -> Examples:
    """Return the train and val splits of a snapshot; the golden split is never looked at.

    Raises:
        DataValidationError: there is no such snapshot, or a picture has a label that the snapshot does not list.
    """
    snapshot = read_snapshot(bottle, group, snapshot_id)
    index = snapshot.label_index()
    samples = {"train": snapshot.split("train"), "val": snapshot.split("val")}
    if strange := {label for part in samples.values() for s in part for label in s.labels} - set(index):
        raise DataValidationError(
            f"snapshot {snapshot_id} of group {group} has pictures of {', '.join(sorted(strange))}, "
            f"which its labels do not list: {', '.join(index)}"
        )
    paths = _local_paths(bottle, [*samples["train"], *samples["val"]])
    multi_label = snapshot.is_multi_label

    def example(sample: Sample) -> Example:
        if not multi_label:
            return Example(paths[sample.path], index[sample.label], key=sample.path)
        present = bytes(label in sample.labels for label in index)
        return Example(paths[sample.path], -1, present=present, key=sample.path)

    train, val = (list(map(example, part)) for part in samples.values())
    return Examples(list(index), train, val, group, snapshot_id, multi_label)


def from_folders(images: Path, group: str, val_part: float, max_side: int) -> Examples:
    """Return pictures labeled by the folder that they lie in: `images/<class>/…`, none with a side over `max_side`.

    Raises:
        DataValidationError: there are no class folders, or one holds no pictures.
    """
    folders = sorted(path for path in _directory(images).iterdir() if path.is_dir() and not path.name.startswith("."))
    labels = [folder.name for folder in folders]
    found = {folder.name: pictures_below(folder, max_side) for folder in folders}
    if empty := [name for name, pictures in found.items() if not pictures]:
        raise DataValidationError(f"{images} has class folders without pictures: {', '.join(empty)}")
    everything = [
        Example(path, index, key=path.relative_to(images).as_posix())
        for index, name in enumerate(labels)
        for path in found[name]
    ]
    return Examples(labels, *_split(everything, val_part), group)


def from_rotation(images: Path, group: str, val_part: float, max_side: int) -> Examples:
    """Return upright pictures, none with a side over `max_side` pixels, whose quarter turn is their class: drawn in
    training, all four of each in validation.

    Raises:
        DataValidationError: there are no pictures below `images`.
    """
    pages = pictures_below(_directory(images), max_side)
    if not pages:
        raise DataValidationError(f"{images} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    train, val = _split([Example(p, 0, key=p.relative_to(images).as_posix()) for p in pages], val_part)
    return Examples(
        TURNS,
        [replace(example, turns=None) for example in train],
        [replace(example, label=turns, turns=turns) for example in val for turns in range(4)],
        group,
    )


def pictures_below(folder: Path, max_side: int) -> list[Path]:
    """Return the picture files below `folder`, sorted; files and folders whose names start with a dot are left out.

    So are pictures with a side over `max_side` pixels, by their header alone: a warning counts them and names one.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    with ThreadPoolExecutor(8) as pool:
        sides = list(pool.map(_longest_side, found))
    large = [(path, side) for path, side in zip(found, sides, strict=True) if side > max_side]
    if large:
        path, side = large[0]
        logger.warning(
            "%s: %d of %d pictures are left out: they have a side over %d pixels, for example %s (%d)",
            folder, len(large), len(found), max_side, path.relative_to(folder), side,
        )  # fmt: skip
    return [path for path, side in zip(found, sides, strict=True) if side <= max_side]


def _longest_side(path: Path) -> int:
    """Return the longer side of a picture, pixels; 0 where its header cannot be read, which decoding it will tell."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return max(image.size)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return 0


def reduced(examples: Examples, fraction: float, seed: int) -> Examples:
    """Return a `fraction` of the training and the validation examples, drawn per class, at least one of each.

    Of pictures with several labels those of the same labels are drawn together.
    """
    if fraction >= 1:
        return examples
    return replace(
        examples, train=_fraction(examples.train, fraction, seed), val=_fraction(examples.val, fraction, seed)
    )


def _fraction(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    by_class: dict[tuple[int, bytes | None], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: hashlib.sha256(f"{seed} {e.key}".encode()).digest()):
        by_class[example.label, example.present].append(example)
    kept = {id(e) for group in by_class.values() for e in group[: max(1, round(len(group) * fraction))]}
    return [example for example in examples if id(example) in kept]


def check(examples: Examples, n_classes: int | None) -> None:
    """Refuse a set that no classifier can learn from or be validated on.

    Raises:
        ConfigurationError: the file names another number of classes.
        DataValidationError: there is one class only, a class has no training pictures, or there is nothing to
            validate on.
    """
    labels = examples.labels
    where = f"snapshot {examples.snapshot_id}" if examples.snapshot_id else "the set"
    if len(labels) < 2:
        raise DataValidationError(f"{where} has one class only ({', '.join(labels) or 'none'}); at least 2 are needed")
    if n_classes is not None and n_classes != len(labels):
        raise ConfigurationError(
            f"model.n_classes is {n_classes}, but there are {len(labels)} labels: {', '.join(labels)}"
        )
    if empty := [name for name, count in zip(labels, examples.counts, strict=True) if not count]:
        raise DataValidationError(
            f"{where} has no training pictures of {', '.join(empty)}; every class needs at least one"
        )
    if not examples.val:
        raise DataValidationError(f"{where} has no validation pictures")


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigurationError(f"directories.images: there is no folder {path}")
    return path


def _split(examples: list[Example], val_part: float) -> tuple[list[Example], list[Example]]:
    """Split by a hash of the file's content, so that a picture never changes sides as the set grows, and two copies
    of it stay on one side. The first picture of a class that would have none to train on is trained on."""
    train: list[Example] = []
    val: list[Example] = []
    with ThreadPoolExecutor(8) as pool:
        for example, place in zip(examples, pool.map(_place, (e.path for e in examples)), strict=True):
            (val if place < val_part else train).append(example)
    for label in sorted({example.label for example in val} - {example.label for example in train}):
        moved = next(example for example in val if example.label == label)
        val.remove(moved)
        train.append(moved)
    return train, val


def _place(path: Path) -> float:
    """Return 0..1 from a hash of the file's size and its first 64 KiB."""
    with path.open("rb") as handle:
        digest = hashlib.sha256(f"{path.stat().st_size} ".encode() + handle.read(1 << 16)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _local_paths(bottle: Bottle, samples: list[Sample]) -> dict[str, Path]:
    """Return a local file of each sample's picture; those of a remote bottle are downloaded first, 16 at a time."""
    if isinstance(bottle, FolderBottle):
        return {sample.path: bottle.local(sample.path) for sample in samples}
    progress = Progress("download", len(samples), "pictures")
    paths = {}
    with ThreadPoolExecutor(16) as pool:
        for sample, path in zip(samples, pool.map(lambda s: bottle.local(s.path), samples), strict=True):
            paths[sample.path] = path
            progress.advance()
    return paths
