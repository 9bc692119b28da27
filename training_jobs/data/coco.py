"""Annotated pictures as a COCO JSON file lists them: pictures, categories, and boxes or polygons of objects."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from jobkit.errors import DataValidationError
from jobkit.snapshot import AnnotatedObject, Refused

LISTS = ("images", "annotations", "categories")
Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture that the file lists; `objects` are as listed, not yet held to the picture's size."""

    name: str
    size: Size | None
    objects: list[tuple[str, AnnotatedObject]]
    """Name of the object for messages, and the object."""


@dataclass
class Annotations:
    """What a file lists, and what of it cannot be used."""

    pictures: list[AnnotatedPicture] = field(default_factory=list)
    refused_pictures: list[Refused] = field(default_factory=list)
    refused_objects: list[Refused] = field(default_factory=list)
    listed_pictures: int = 0
    listed_objects: int = 0


def read_annotations(content: bytes, where: str) -> Annotations:
    """Return what a COCO file lists. One wrong entry is refused alone; the file is, where it is no such file.

    Args:
        content: the file.
        where: its name for messages.

    Raises:
        DataValidationError: it is no JSON with `images`, `annotations` and `categories`, or a category has two names.
    """
    try:
        file = json.loads(content)
    except ValueError as error:
        raise DataValidationError(f"{where} is no JSON file: {error}") from error
    lists: list[list[Any]] = [
        file[name] for name in LISTS if isinstance(file, dict) and isinstance(file.get(name), list)
    ]
    if len(lists) != len(LISTS):
        raise DataValidationError(f"{where} is no COCO file: it has no lists {', '.join(LISTS)}")
    images, entries, categories = lists
    found = Annotations(listed_pictures=len(images), listed_objects=len(entries))
    names = _names(categories, where)
    by_id = _pictures(images, found)
    objects = _objects(entries, names, by_id, found)
    found.pictures = [
        AnnotatedPicture(picture["file_name"], _size(picture), objects[identifier])
        for identifier, picture in by_id.items()
        if picture is not None
    ]
    return found


def _names(categories: list[Any], where: str) -> dict[Hashable, str]:
    """Return id -> name. Two ids may have one name: they are one class."""
    names: dict[Hashable, str] = {}
    for entry in categories:
        identifier, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(identifier, int | str) or not isinstance(name, str) or not name.strip():
            raise DataValidationError(f"{where}: the category {entry!r} has no id or no name")
        if names.setdefault(identifier, name.strip()) != name.strip():
            raise DataValidationError(
                f"{where}: the category {identifier} is called {names[identifier]!r} and {name!r}"
            )
    return names


def _pictures(images: list[Any], found: Annotations) -> dict[Hashable, dict[str, Any] | None]:
    """Return id -> entry; None for an id that stands for several files."""
    by_id: dict[Hashable, dict[str, Any] | None] = {}
    for number, entry in enumerate(images):
        problem = _picture_fault(entry)
        if problem:
            found.refused_pictures.append(Refused(source=f"images[{number}]", reason="malformed", detail=problem))
            continue
        first = by_id.setdefault(entry["id"], entry)
        if first is entry:
            continue
        detail = f"the id {entry['id']} is that of another picture too"
        found.refused_pictures.append(Refused(source=entry["file_name"], reason="duplicate_id", detail=detail))
        if first is not None and first["file_name"] != entry["file_name"]:  # whose objects are they?
            found.refused_pictures.append(Refused(source=first["file_name"], reason="duplicate_id", detail=detail))
            by_id[entry["id"]] = None
    return by_id


def _picture_fault(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
        return "it has no id"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        return "it has no file_name"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        return f"its file_name {name!r} leaves the folder of the pictures"
    return ""


def _size(entry: dict[str, Any]) -> Size | None:
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 < height else None


def _objects(
    entries: list[Any], names: dict[Hashable, str], by_id: dict[Hashable, dict[str, Any] | None], found: Annotations
) -> dict[Hashable, list[tuple[str, AnnotatedObject]]]:
    """Return id of a picture -> its objects."""
    objects: dict[Hashable, list[tuple[str, AnnotatedObject]]] = defaultdict(list)
    seen: set[Hashable] = set()
    for number, listed in enumerate(entries):
        entry = listed if isinstance(listed, dict) else {}
        identifier, picture_id = entry.get("id"), entry.get("image_id")
        has_id = isinstance(identifier, int | str)
        picture = by_id.get(picture_id) if isinstance(picture_id, int | str) else None
        name = f"{picture['file_name'] if picture else 'annotations'}#{identifier if has_id else number}"
        outlines = _outlines(entry.get("segmentation"))
        if not has_id:
            fault = "malformed", "it has no id"
        elif identifier in seen:
            fault = "duplicate_id", f"the id {identifier} is that of another object too"
        elif picture is None:
            fault = "unknown_picture", f"there is no single picture with the id {picture_id!r}"
        elif not isinstance(entry.get("category_id"), int | str) or entry["category_id"] not in names:
            fault = "unknown_category", f"there is no category with the id {entry.get('category_id')!r}"
        elif not _numbers(entry.get("bbox"), 4):
            fault = "malformed", f"its bbox {entry.get('bbox')!r} is not x, y, width, height"
        elif outlines is None:
            fault = "malformed", "a polygon of its segmentation has not three points or more"
        else:
            fault = None
            x, y, width, height = map(float, entry["bbox"])
            made = AnnotatedObject(
                label=names[entry["category_id"]], box=(x, y, width, height), polygons=outlines,
                ignore=bool(entry.get("iscrowd")),
            )  # fmt: skip
            objects[picture_id].append((name, made))
        seen.add(identifier if has_id else None)
        if fault is not None:
            reason, detail = fault
            found.refused_objects.append(Refused.model_validate({"source": name, "reason": reason, "detail": detail}))
    return objects


def _outlines(segmentation: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return polygons; none of a run-length code, which is what crowds have; None where one is no polygon."""
    if not isinstance(segmentation, list):
        return ()
    if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _numbers(p, len(p)) for p in segmentation):
        return None
    return tuple(tuple(map(float, polygon)) for polygon in segmentation)


def _numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )


def inside(found: AnnotatedObject, size: Size) -> AnnotatedObject | None:
    """Return the part of an object that lies inside a picture of this size; the object itself where all of it does.

    None where nothing of it does, or it has no area. Points of polygons are moved to the border, which cuts off what
    is beyond it.
    """
    width, height = map(float, size)
    x, y, w, h = found.box
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return None
    polygons = tuple(
        tuple(min(max(v, 0.0), (width, height)[i % 2]) for i, v in enumerate(polygon)) for polygon in found.polygons
    )
    if (left, top) == (x, y) and right == x + w and bottom == y + h and polygons == found.polygons:
        return found
    box = (left, top, right - left, bottom - top) if (left, top, right, bottom) != (x, y, x + w, y + h) else found.box
    return found.model_copy(update={"box": box, "polygons": polygons})
