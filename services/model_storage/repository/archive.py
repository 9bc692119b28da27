"""Unpacking an uploaded zip: checked as a whole, with the SHA-256 of every file.

Files may lie in folders. One folder around everything is taken off, since Triton would not look into it.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from nightshift_common.archive import ArchiveRefused, Rules, copy_entry, files_in, opened
from services.model_storage.api.spool import Diverted
from services.model_storage.errors import Refused

MAX_ENTRIES = 1000
JUNK = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})  # what file managers leave in the folders that people zip
JUNK_FOLDER, JUNK_START = "__MACOSX", "._"


@dataclass(frozen=True)
class File:
    """One unpacked file."""

    size: int
    sha256: str


def unpack(
    archive: Path, folder: Path, max_bytes: int, diverted: Mapping[int, Diverted] = MappingProxyType({})
) -> tuple[dict[str, File], list[str]]:
    """Unpack the zip `archive` into the empty `folder`; return its files by their paths, and what was left out.

    `diverted` are the contents that `Spool` has written already; those that the archive names are moved to `folder`.

    Raises:
        Refused: it is not a zip of regular files, is damaged, or would grow out of proportion.
    """
    try:
        with opened(archive, Rules(MAX_ENTRIES, max_bytes, flat=False)) as found:
            entries = {entry.filename: entry for entry in files_in(found)}
            junk = sorted(name for name in entries if _is_junk(PurePosixPath(name)))
            wanted = [name for name in entries if name not in junk]
            _refuse_hidden(wanted)
            start = _folder_around(wanted)
            files = {}
            for name in wanted:
                path = str(PurePosixPath(name)).removeprefix(start)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                files[path] = _extract(found, entries[name], folder / path, diverted)
            return files, junk
    except ArchiveRefused as error:
        raise Refused(f"the archive {error}") from error


def _is_junk(path: PurePosixPath) -> bool:
    return path.name in JUNK or path.parts[0] == JUNK_FOLDER or path.name.startswith(JUNK_START)


def _refuse_hidden(names: list[str]) -> None:
    for name in names:
        if any(part.startswith(".") for part in PurePosixPath(name).parts):
            raise ArchiveRefused(f"is refused: {name!r} is no name for a file: no leading dot")


def _folder_around(names: list[str]) -> str:
    """Return the folders that all of `names` lie in, with a slash at the end; empty where there is none."""
    parents = [PurePosixPath(name).parent.parts for name in names]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}/" for part in common)


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, diverted: Mapping[int, Diverted]) -> File:
    with archive.open(entry) as source:  # checks the entry's own header against the archive's directory
        found = diverted.get(_start(Path(str(archive.filename)), entry))
        if found is not None and found.size == entry.file_size and entry.compress_type == zipfile.ZIP_STORED:
            if found.crc != entry.CRC:
                raise Refused(f"{entry.filename!r} is damaged: its CRC-32 is not what the archive says")
            found.path.rename(target)
            return File(found.size, found.sha256)
        digest = hashlib.sha256()
        copy_entry(source, entry, target, digest.update)
    return File(entry.file_size, digest.hexdigest())


def _start(archive: Path, entry: zipfile.ZipInfo) -> int:
    """Return where the content of `entry` starts (APPNOTE.TXT 4.3.7: behind 30 bytes, name and extra field)."""
    with archive.open("rb") as handle:
        handle.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<2H", handle.read(4))
    return entry.header_offset + 30 + int(name) + int(extra)
