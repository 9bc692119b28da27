"""Bring labeled pictures into a collect folder: `python -m services.collect.importers --help`.

A server that runs on the folder serves them at once. Importing the same pictures again changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from nightshift_common.names import NAME_RULE, is_name
from nightshift_common.picture_files import SUFFIXES
from services.collect.store import MODES, Mode, Picset, Picture, Store, UnknownImport, picset_guid

TABLE = "labels.csv"


class ImportRefused(ValueError):
    """The pictures to import are not laid out as they should be."""


@dataclass(frozen=True)
class Item:
    """One picture to import: its content, its label, and the picset that it belongs to."""

    name: str
    content: bytes
    category: str
    picset: str
    width: int | None
    height: int | None


@dataclass(frozen=True)
class Source:
    """Where pictures come from: what yields them, and which pictures beside them have no label."""

    items: Iterable[Item]
    unlabeled: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Added:
    """What an import came to: its number (none where nothing is new), new pictures, and all of the group by class."""

    number: int | None
    new: int
    counts: dict[str, int]


def add_items(
    store: Store, group: str, items: Iterable[Item], mode: Mode = "VALIDATED", source: str = "", least_classes: int = 1
) -> Added:
    """Add pictures of `group` to the store, as one import that can be undone.

    Pictures of one picset that share a name and are not the same get names of their own.

    Raises:
        ImportRefused: no job could name such a group; or it would have fewer than `least_classes` classes.
    """
    if not is_name(group):
        raise ImportRefused(f"{group!r} is no name for a group: {NAME_RULE}")
    picsets, pictures = {}, []
    digests: dict[str, str] = {}
    for item in items:
        guid = picset_guid(group, item.category, item.picset)
        picsets[guid] = Picset(guid, group, item.category, mode)
        digest = hashlib.sha256(item.content).hexdigest()
        filepath = f"{group}/{guid}/{item.name}"
        if digests.setdefault(filepath, digest) != digest:
            stem, dot, suffix = item.name.rpartition(".")
            filepath = f"{group}/{guid}/{stem}-{digest[:12]}{dot}{suffix}"
        store.write_picture(filepath, item.content)
        pictures.append(Picture(filepath, guid, item.width, item.height))
    known = store.known(picture.filepath for picture in pictures)
    fresh = dict.fromkeys(picture.filepath for picture in pictures if picture.filepath not in known)
    classes = {picset.category for picset in picsets.values()} | set(store.counts(group))
    if 0 < len(classes) < least_classes:
        store.remove_files(fresh)
        raise ImportRefused(
            f"all pictures of {group} would be of one class, {min(classes)!r}: a classifier tells two or more apart; "
            f"name the classes in {TABLE} (path,label), or put each into a folder of its own"
        )
    new = store.add(picsets.values(), pictures)
    number = store.record_import(group, source, fresh) if fresh else None
    return Added(number, new, store.counts(group))


def source_of(path: Path) -> Source:
    """Return the pictures of a table; or of a folder: by the table `labels.csv` in it, else by its folders.

    Raises:
        ImportRefused: the folder has another table, which may well name the classes.
    """
    if not path.is_dir():
        return Source(items_of_table(path))
    if (table := path / TABLE).is_file():
        listed = {row_path for row_path, _ in _rows(table)}
        return Source(items_of_table(table), [found for found in _pictures(path) if found not in listed])
    if others := sorted(found.name for found in path.glob("*.csv")):
        raise ImportRefused(
            f"{path} has {others[0]}: name that file instead of the folder if it says what the pictures show (columns "
            "path and label), else move it away; without it each folder is a class"
        )
    return Source(items_of_folder(path), [found for found in _pictures(path) if found.parent == path])


def items_of_folder(root: Path) -> Iterable[Item]:
    """Yield the pictures of a folder with one folder a class; a class folder is one picset, a folder in it another.

    Raises:
        ImportRefused: there is no picture in it.
    """
    paths = [path for path in _pictures(root) if path.parent != root]
    if not paths:
        raise ImportRefused(f"{root} has no pictures in folders named by class (suffixes: {', '.join(SUFFIXES)})")
    for path in paths:
        relative = path.relative_to(root)
        yield _item(path, category=relative.parts[0], picset=relative.parent.as_posix())


def items_of_table(table: Path) -> Iterable[Item]:
    """Yield the pictures of a CSV file with the columns `path` (relative to it), `label` and, optionally, `picset`.

    Without a `picset` each picture is one of its own.

    Raises:
        ImportRefused: a column or a file is missing; the message names the line.
    """
    for path, row in _rows(table):
        picset = row.get("picset") or path.relative_to(table.parent).with_suffix("").as_posix()
        yield _item(path, category=row["label"], picset=picset)


def _rows(table: Path) -> Iterable[tuple[Path, dict[str, str]]]:
    with table.open(newline="", encoding="utf-8-sig") as handle:
        rows = csv.DictReader(handle)
        if missing := {"path", "label"} - set(rows.fieldnames or ()):
            raise ImportRefused(
                f"{table} lacks the column {', '.join(sorted(missing))}; it has: {', '.join(rows.fieldnames or ())}"
            )
        for number, row in enumerate(rows, start=2):
            path = table.parent / row["path"]
            if not path.is_file() or not row["label"]:
                raise ImportRefused(f"{table}:{number}: {'no label' if path.is_file() else f'there is no file {path}'}")
            yield path, row


def _pictures(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _item(path: Path, category: str, picset: str) -> Item:
    width: int | None
    height: int | None
    try:
        with Image.open(path) as image:
            width, height = image.size
            # TIFF's are turned already, by Pillow
            if image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5:  # EXIF's orientation: a quarter turn
                width, height = height, width
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        width = height = None  # a damaged picture is served as it is: judging it is the pulling job's work
    return Item(path.name, path.read_bytes(), category, picset, width, height)


def main() -> None:
    """Import from the command line, take an import back, or list them."""
    parser = argparse.ArgumentParser(prog="python -m services.collect.importers", description=__doc__)
    parser.add_argument(
        "source", type=Path, nargs="?",
        help=f"a CSV file with path,label[,picset]; or a folder with {TABLE} in it, else with a folder a class",
    )  # fmt: skip
    parser.add_argument("--directory", type=Path, required=True, help="the collect server's folder")
    parser.add_argument("--group", help="the group that the pictures are added to")
    parser.add_argument("--mode", choices=MODES, default="VALIDATED")
    parser.add_argument("--list", action="store_true", help="list the imports there were")
    parser.add_argument("--undo", type=int, metavar="IMPORT", help="take the pictures of an import back")
    options = parser.parse_args()
    store = Store(options.directory)
    if options.list:
        lines = [f"{i.id}: {i.at} {i.pictures} pictures of group {i.group} from {i.source}" for i in store.imports()]
        sys.stdout.write("\n".join(lines or ["nothing was imported yet"]) + "\n")
    elif options.undo is not None:
        _undo(store, options.undo)
    elif options.source is None or options.group is None:
        parser.error("say what to import, and --group: which group it belongs to")
    else:
        _import(store, options.source, options.group, options.mode)


def _import(store: Store, path: Path, group: str, mode: Mode) -> None:
    try:
        found = source_of(path)
        added = add_items(store, group, found.items, mode, str(path.absolute()), least_classes=2)
    except (ImportRefused, FileNotFoundError) as error:
        sys.exit(str(error))
    say = [f"group {group}: {added.new} new pictures"]
    say += [f"  {category}: {count}" for category, count in added.counts.items()]
    if found.unlabeled:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in Counter(p.suffix for p in found.unlabeled).items())
        say.append(f"left out, since nothing says what they show: {kinds}, for example {found.unlabeled[0]}")
    if added.number is not None:
        say.append(f"this is import {added.number}; --undo {added.number} takes it back")
    sys.stdout.write("\n".join(say) + "\n")


def _undo(store: Store, number: int) -> None:
    try:
        gone = store.undo_import(number)
    except UnknownImport:
        known = ", ".join(str(found.id) for found in store.imports()) or "none"
        sys.exit(f"there is no import {number}; there is: {known}")
    sys.stdout.write(
        f"import {number} is taken back: {gone} pictures are gone; snapshots that were made of them stay as they are\n"
    )


if __name__ == "__main__":
    main()
