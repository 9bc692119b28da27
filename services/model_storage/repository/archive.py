"""Unpacking an uploaded zip without trusting it: everything is checked before a byte is written."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from services.model_storage.api.spool import Diverted
from services.model_storage.errors import Refused

CHUNK = 1 << 20
MAX_ENTRIES = 1000
MAX_DIRECTORY_BYTES = MAX_ENTRIES * 512  # the zip's own directory is read into memory at once
RATIO_FROM_BYTES = 64 << 20  # small archives may be as repetitive as they like
MAX_RATIO = 100  # weights hardly shrink at all; deflate's limit, which bombs use, is 1032
_REGULAR = (0, stat.S_IFREG)  # archives made on other systems have no file type


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
    _check_directory_size(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check(entries, archive.stat().st_size, max_bytes)
            return {entry.filename: _extract(opened, entry, folder / entry.filename, diverted) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Refused(f"the archive is damaged or no zip file: {error}") from error


def _check(entries: list[zipfile.ZipInfo], archive_bytes: int, max_bytes: int) -> None:
    if not entries:
        raise Refused("the archive is empty")
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"the archive has {len(entries)} entries; at most {MAX_ENTRIES} are allowed")
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry)
        if entry.filename.casefold() in seen:
            raise Refused(f"the archive holds {entry.filename!r} twice")
        seen.add(entry.filename.casefold())
    total = sum(entry.file_size for entry in entries)
    if total > max_bytes:
        raise Refused(f"the archive unpacks to {total} bytes; at most {max_bytes} are allowed")
    if total > RATIO_FROM_BYTES and total > MAX_RATIO * archive_bytes:
        raise Refused(f"the archive of {archive_bytes} bytes unpacks to {total}: more than {MAX_RATIO} times its size")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename  # `filename` is cut at a NUL character
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise Refused(f"the archive must be flat, and {name!r} is a path or a folder: zip the files, not their folder")
    if name.startswith(".") or not name.isprintable() or len(name.encode(errors="replace")) > 200:
        raise Refused(f"{name!r} is no name for a file of a model: no leading dot, printable, at most 200 bytes")
    if stat.S_IFMT(entry.external_attr >> 16) not in _REGULAR:
        raise Refused(f"{name!r} is a link or a special file; only regular files are allowed")
    if entry.flag_bits & 0x1:
        raise Refused(f"{name!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{name!r} is compressed by method {entry.compress_type}; stored and deflated are allowed")


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, diverted: Mapping[int, Diverted]) -> File:
    with opened.open(entry) as source:  # checks the entry's own header against the archive's directory
        found = diverted.get(_start(Path(str(opened.filename)), entry))
        if found is not None and found.size == entry.file_size and entry.compress_type == zipfile.ZIP_STORED:
            if found.crc != entry.CRC:
                raise Refused(f"{entry.filename!r} is damaged: its CRC-32 is not what the archive says")
            found.path.rename(target)
            return File(found.size, found.sha256)
        digest, size = hashlib.sha256(), 0
        with target.open("xb", buffering=0) as output:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                output.write(chunk)
    if size != entry.file_size:
        raise Refused(f"{entry.filename!r} is {size} bytes long, the archive says {entry.file_size}")
    return File(size, digest.hexdigest())


def _start(archive: Path, entry: zipfile.ZipInfo) -> int:
    """Return where the content of `entry` starts (APPNOTE.TXT 4.3.7: behind 30 bytes, name and extra field)."""
    with archive.open("rb") as handle:
        handle.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<2H", handle.read(4))
    return entry.header_offset + 30 + int(name) + int(extra)


def _check_directory_size(archive: Path) -> None:
    """Refuse an archive whose directory would fill the memory; `zipfile` reads all of it at once.

    Layouts: APPNOTE.TXT 4.3.14 (zip64 end record, 56 bytes, then its locator, 20) and 4.3.16 (end record, 22).
    """
    with archive.open("rb") as handle:
        length = handle.seek(0, os.SEEK_END)
        start = handle.seek(max(0, length - (1 << 16) - 22 - 76))
        tail = handle.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise Refused(f"the archive is damaged or no zip file ({length} bytes, no end record from {start} on)")
    size = struct.unpack_from("<L", tail, at + 12)[0]
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07" and tail[at - 76 : at - 72] == b"PK\x06\x06":
        size = max(size if size != 0xFFFFFFFF else 0, struct.unpack_from("<Q", tail, at - 76 + 40)[0])
    if size > MAX_DIRECTORY_BYTES:
        raise Refused(f"the archive's directory takes {size} bytes: more than {MAX_ENTRIES} entries could need")
