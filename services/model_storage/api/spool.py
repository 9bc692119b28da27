"""A zip on its way to the disk: large stored entries go into files of their own, so that nothing is written twice.

The rest of the archive keeps its place in a file that has holes where those entries were. What is in the entries'
headers is only a hint here: `archive.unpack` takes a diverted entry where the archive's directory names it with the
same place, size and CRC-32; otherwise it reads the hole, and refuses the archive as damaged.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

MIN_DIVERTED = 1 << 20  # smaller entries are copied faster than they are looked after
_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT 4.3.7


@dataclass
class Diverted:
    """The content of one entry."""

    path: Path
    size: int
    crc: int = 0
    sha256: str = ""


class Spool:
    """Writes the parts of an archive as they come, with its SHA-256; a context manager."""

    def __init__(self, archive: Path) -> None:
        self.diverted: dict[int, Diverted] = {}
        """By where the entry's content starts in the archive."""
        self._archive = archive
        self._output = archive.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._at = 0
        self._head = bytearray()
        self._looks = True  # at a header next; False once something is not understood
        self._skip = 0
        self._entry: tuple[Diverted, BinaryIO, Any, int] | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was written."""
        return self._digest.hexdigest()

    def write(self, block: bytes | bytearray) -> None:
        """Take the next part."""
        self._digest.update(block)
        view = memoryview(block)
        while view:
            if self._entry is not None:
                view = self._divert(view)
            elif self._skip or not self._looks:
                length = min(len(view), self._skip) if self._looks else len(view)
                self._skip -= length if self._looks else 0
                self._keep(view[:length])
                view = view[length:]
            else:
                view = self._read_header(view)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._write(self._output, self._head)  # an archive that ends within a header
            self._output.truncate(self._at + len(self._head))
        if self._entry is not None:
            self._entry[1].close()
        self._output.close()

    def _read_header(self, view: memoryview) -> memoryview:
        """Collect an entry's header; decide what becomes of its content."""
        wanted = _HEADER.size if len(self._head) < _HEADER.size else self._length_of_head()
        taken = min(len(view), wanted - len(self._head))
        self._head += view[:taken]
        if self._head[:4] != b"PK\x03\x04"[: len(self._head)]:
            self._looks = False  # the directory, or no zip at all
        if self._looks and (len(self._head) < _HEADER.size or len(self._head) < self._length_of_head()):
            return view[taken:]
        head, self._head = self._head, bytearray()
        self._keep(head)
        if self._looks:
            self._look_at(bytes(head))
        return view[taken:]

    def _length_of_head(self) -> int:
        *_, name, extra = _HEADER.unpack_from(self._head)
        return _HEADER.size + int(name) + int(extra)

    def _look_at(self, head: bytes) -> None:
        _, _, flags, method, _, _, _, packed, size, name, _ = _HEADER.unpack_from(head)
        if 0xFFFFFFFF in (packed, size):
            packed, size = _zip64_sizes(head[_HEADER.size + name :])
        if flags & 0x8 or packed is None:
            self._looks = False  # the size follows the content: where that ends is not known here
        elif method == 0 and size == packed >= MIN_DIVERTED:
            entry = Diverted(self._archive.with_name(f"entry{len(self.diverted)}"), size)
            self.diverted[self._at] = entry
            self._entry = (entry, entry.path.open("xb", buffering=0), hashlib.sha256(), size)
        else:
            self._skip = packed

    def _divert(self, view: memoryview) -> memoryview:
        if self._entry is None:
            return view
        entry, output, digest, left = self._entry
        part = view[:left]
        self._write(output, part)
        digest.update(part)
        entry.crc = zlib.crc32(part, entry.crc)
        self._at += len(part)
        self._entry = (entry, output, digest, left - len(part))
        if left == len(part):
            output.close()
            entry.sha256 = digest.hexdigest()
            self._entry = None
            self._output.seek(self._at)
        return view[len(part) :]

    def _keep(self, part: memoryview | bytearray) -> None:
        self._write(self._output, part)
        self._at += len(part)

    @staticmethod
    def _write(output: BinaryIO, part: memoryview | bytearray) -> None:
        view = memoryview(part)
        while view:
            view = view[output.write(view) :]


def _zip64_sizes(extra: bytes) -> tuple[int | None, int | None]:
    """Return packed and unpacked size from an entry's extra field (APPNOTE.TXT 4.5.3), None where it has none."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and length >= 16 and at + 20 <= len(extra):
            size, packed = struct.unpack_from("<2Q", extra, at + 4)
            return packed, size
        at += 4 + length
    return None, None
