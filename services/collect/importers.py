"""Bring labeled pictures into a collect folder: `python -m services.collect.importers --help`.

A server that runs on the folder serves them at once. Importing the same pictures again changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from nightshift_common.names import NAME_RULE, is_name
from nightshift_common.picture_files import SUFFIXES
from services.collect.store import MODES, Mode, Picset, Picture, Store, picset_guid


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


def add_items(store: Store, group: str, items: Iterable[Item], mode: Mode = "VALIDATED") -> int:
    """Add pictures of `group` to the store; return how many are new.

    Raises:
        ImportRefused: no job could name such a group.
    """
    if not is_name(group):
        raise ImportRefused(f"{group!r} is no name for a group: {NAME_RULE}")
    picsets, pictures = {}, []
    for item in items:
        guid = picset_guid(group, item.category, item.picset)
        picsets[guid] = Picset(guid, group, item.category, mode)
        filepath = f"{group}/{guid}/{item.name}"
        store.write_picture(filepath, item.content)
        pictures.append(Picture(filepath, guid, item.width, item.height))
    return store.add(picsets.values(), pictures)


def items_of_folder(root: Path) -> Iterable[Item]:
    """Yield the pictures of a folder with one folder a class; a class folder is one picset, a folder in it another.

    Raises:
        ImportRefused: there is no picture in it.
    """
    paths = [p for p in sorted(root.glob("*/**/*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
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
            yield _item(path, category=row["label"], picset=row.get("picset") or path.stem)


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
    """Import from the command line."""
    parser = argparse.ArgumentParser(prog="python -m services.collect.importers", description=__doc__)
    parser.add_argument(
        "source", type=Path, help="a folder with a folder a class, or a CSV file with path,label[,picset]"
    )
    parser.add_argument("--directory", type=Path, required=True, help="the collect server's folder")
    parser.add_argument("--group", required=True)
    parser.add_argument("--mode", choices=MODES, default="VALIDATED")
    options = parser.parse_args()
    items = items_of_folder(options.source) if options.source.is_dir() else items_of_table(options.source)
    try:
        new = add_items(Store(options.directory), options.group, items, options.mode)
    except (ImportRefused, FileNotFoundError) as error:
        sys.exit(str(error))
    sys.stdout.write(f"group {options.group}: {new} new pictures\n")


if __name__ == "__main__":
    main()
