"""Opening a zip without trusting it: everything is checked before a byte is unpacked."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

CHUNK = 1 << 20
DIRECTORY_BYTES_AN_ENTRY = 512  # the zip's own directory is read into memory at once
RATIO_FROM_BYTES = 64 << 20  # small archives may be as repetitive as they like
MAX_RATIO = 100  # weights hardly shrink at all; deflate's limit, which bombs use, is 1032
MAX_NAME_BYTES = 200  # of a file or a folder; file systems allow 255
SHOWN_PROBLEMS = 10
_REGULAR = (0, stat.S_IFREG)  # archives made on other systems have no file type


class ArchiveRefused(ValueError):
    """An archive is not as it should be; the message goes on after the archive's name: "is damaged or no zip file"."""


@dataclass(frozen=True)
class Rules:
    """What an archive may hold: `max_entries` entries that unpack to `max_bytes`; with `flat` no folders."""

    max_entries: int
    max_bytes: int
    flat: bool


@contextmanager
def opened(archive: Path, rules: Rules) -> Iterator[zipfile.ZipFile]:
    """Yield the open zip `archive`, whose entries may be unpacked under their names: they are regular files inside.

    Raises:
        ArchiveRefused: it is no zip, breaks the rules, or would grow out of proportion; up to ten problems are listed.
            Also from the block: an entry is damaged.
    """
    try:
        _check_directory_size(archive, rules.max_entries)
        with zipfile.ZipFile(archive) as found:
            if problems := _problems(found.infolist(), archive.stat().st_size, rules):
                raise ArchiveRefused("is refused: " + "; ".join(problems[:SHOWN_PROBLEMS]))
            yield found
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ArchiveRefused(f"is damaged or no zip file: {error}") from error


def files_in(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the entries that are files."""
    return [entry for entry in archive.infolist() if not _is_folder(entry)]


def copy_entry(source: IO[bytes], entry: zipfile.ZipInfo, target: Path, each: Callable[[bytes], object]) -> None:
    """Write the open entry `source` to the new file `target`; `each` gets every part of the content.

    Raises:
        ArchiveRefused: it is not as long as the archive says.
    """
    size = 0
    with target.open("xb") as output:
        while chunk := source.read(CHUNK):
            each(chunk)
            size += len(chunk)
            output.write(chunk)
    if size != entry.file_size:
        raise ArchiveRefused(f"is damaged: {entry.filename!r} is {size} bytes long, not {entry.file_size}")


def _problems(entries: list[zipfile.ZipInfo], size: int, rules: Rules) -> list[str]:
    if not entries:
        return ["it is empty"]
    if len(entries) > rules.max_entries:
        return [f"it has {len(entries)} entries, at most {rules.max_entries} are allowed"]
    problems = []
    total = sum(entry.file_size for entry in entries)
    if total > rules.max_bytes:
        problems.append(f"its {size} bytes unpack to {total}, at most {rules.max_bytes} are allowed")
    elif total > RATIO_FROM_BYTES and total > MAX_RATIO * size:
        problems.append(f"its {size} bytes unpack to {total}, more than {MAX_RATIO} times its size")
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        name = entry.orig_filename  # `filename` is cut at a NUL character
        if entry.header_offset < 0:
            raise zipfile.BadZipFile(f"{name!r} starts before the archive")
        problems += _problems_of_entry(entry, name, rules.flat)
        path = PurePosixPath(name.casefold())
        folders |= {str(folder) for folder in path.parents}
        if _is_folder(entry):
            folders.add(str(path))
        elif str(path) in files:
            problems.append(f"{name!r} is there twice")
        else:
            files.add(str(path))
    problems += [f"{name!r} is both a file and a folder" for name in sorted(files & folders)]
    return problems


def _problems_of_entry(entry: zipfile.ZipInfo, name: str, flat: bool) -> Iterator[str]:
    path = PurePosixPath(name)
    if flat and ("/" in name or "\\" in name or name in ("", ".", "..")):
        yield f"it must be flat, and {name!r} is a path or a folder: zip the files, not their folder"
    elif flat and (name.startswith(".") or not name.isprintable() or _longest_part(path) > MAX_NAME_BYTES):
        yield f"{name!r} is no name for a file: no leading dot, printable, at most {MAX_NAME_BYTES} bytes"
    elif path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or (":" in name and not flat):
        yield f"{name!r} leads out of the folder"
    elif not name.isprintable() or _longest_part(path) > MAX_NAME_BYTES:
        yield f"{name!r} is no name for a file: printable, at most {MAX_NAME_BYTES} bytes between two '/'"
    if not _is_folder(entry) and stat.S_IFMT(entry.external_attr >> 16) not in _REGULAR:
        yield f"{name!r} is a link or a special file; only regular files are allowed"
    if entry.flag_bits & 0x1:
        yield f"{name!r} is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"{name!r} is compressed by method {entry.compress_type}; stored and deflated are allowed"


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.orig_filename.endswith("/")  # zipfile's is_dir fails on an empty name


def _longest_part(path: PurePosixPath) -> int:
    return max((len(part.encode(errors="replace")) for part in path.parts), default=0)


def _check_directory_size(archive: Path, max_entries: int) -> None:
    """Refuse an archive whose directory would fill the memory; `zipfile` reads all of it at once.

    Layouts: APPNOTE.TXT 4.3.14 (zip64 end record, 56 bytes, then its locator, 20) and 4.3.16 (end record, 22).
    """
    with archive.open("rb") as handle:
        length = handle.seek(0, os.SEEK_END)
        start = handle.seek(max(0, length - (1 << 16) - 22 - 76))
        tail = handle.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise ArchiveRefused(f"is damaged or no zip file: {length} bytes, no end record from {start} on")
    size = struct.unpack_from("<L", tail, at + 12)[0]
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07" and tail[at - 76 : at - 72] == b"PK\x06\x06":
        size = max(size if size != 0xFFFFFFFF else 0, struct.unpack_from("<Q", tail, at - 76 + 40)[0])
    if size > max_entries * DIRECTORY_BYTES_AN_ENTRY:
        raise ArchiveRefused(
            f"is refused: its directory takes {size} bytes: more than {max_entries} entries could need"
        )
