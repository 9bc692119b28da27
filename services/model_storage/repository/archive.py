"""Unpacking an uploaded zip: checked as a whole, with the SHA-256 of every file."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nightshift_common.archive import ArchiveRefused, Rules, copy_entry, opened
from services.model_storage.api.spool import Diverted
from services.model_storage.errors import Refused

MAX_ENTRIES = 1000


@dataclass(frozen=True)
class File:
    """One unpacked file."""

    size: int
    sha256: str


def unpack(
    archive: Path, folder: Path, max_bytes: int, diverted: Mapping[int, Diverted] = MappingProxyType({})
) -> dict[str, File]:
    """Unpack the flat zip `archive` into the empty `folder`; return its files by name.

    `diverted` are the contents that `Spool` has written already; those that the archive names are moved to `folder`.

    Raises:
        Refused: it is not a flat zip of regular files, is damaged, or would grow out of proportion.
    """
    try:
        with opened(archive, Rules(MAX_ENTRIES, max_bytes, flat=True)) as found:
            entries = found.infolist()
            return {entry.filename: _extract(found, entry, folder / entry.filename, diverted) for entry in entries}
    except ArchiveRefused as error:
        raise Refused(f"the archive {error}") from error


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
