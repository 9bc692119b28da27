"""Receiving a multipart upload: the file goes straight to the disk, its checksum is made on the way.

Starlette's own forms would write the file to a temporary one first and leave a second copy to be made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from services.guard import content_length
from services.model_storage.api.spool import Diverted, Spool
from services.model_storage.errors import Refused, TooLong
from services.model_storage.repository.store import out_of_space

BLOCK = 1 << 20  # what is collected in memory before it is written; each upload under way has two of them
MAX_FIELD = 4096
FIELDS = frozenset({"model_name", "model_version", "version", "triton_version", "sha256"})
MAX_AROUND = 1 << 20  # bytes of a form besides its file


@dataclass
class Upload:
    """A received form: those of its text fields that are known, and its one file."""

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    size: int = 0
    sha256: str = ""
    diverted: dict[int, Diverted] = field(default_factory=dict)


@asynccontextmanager
async def received(request: Request, folder: Path, file_field: str, max_bytes: int) -> AsyncIterator[Upload]:
    """Receive the form of `request`, its file into `folder`.

    Raises:
        TooLong: the file is longer than `max_bytes`, or the form around it than `MAX_AROUND`.
        Refused: it is no multipart form, lacks the file, is cut off, or its `sha256` field differs.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused(f"send a multipart/form-data form with the file in the field {file_field!r}")
    if content_length(request) > max_bytes + MAX_AROUND:
        raise TooLong(f"the upload is longer than the allowed {max_bytes} bytes")
    upload = Upload(folder / "upload")
    with Spool(upload.path) as spool:
        await _Reader(upload, spool, file_field, max_bytes).run(request, options[b"boundary"])
    upload.sha256, upload.diverted = spool.sha256, spool.diverted
    if not upload.filename:
        raise Refused(f"the form has no file in the field {file_field!r}")
    wanted = upload.fields.get("sha256", "").strip().lower()
    if wanted and wanted != upload.sha256:
        raise Refused(f"the file arrived with the SHA-256 {upload.sha256}, the form says {wanted}: send it again")
    yield upload


class _Reader:
    def __init__(self, upload: Upload, spool: Spool, file_field: str, max_bytes: int) -> None:
        self._upload, self._spool = upload, spool
        self._file_field, self._max_bytes = file_field, max_bytes
        self._block = bytearray()
        self._header = self._value = b""
        self._part = b""
        self._name = ""
        self._is_file = self._ended = False

    async def run(self, request: Request, boundary: bytes) -> None:
        """Feed the body to the parser; while one block is written, the next is received."""
        writing: asyncio.Future[None] | None = None
        parser = MultipartParser(boundary, self._callbacks())  # type: ignore[arg-type]
        received = 0
        try:
            async for chunk in request.stream():
                parser.write(chunk)
                received += len(chunk)
                if received - self._upload.size > MAX_AROUND:
                    raise TooLong(f"the form has more than {MAX_AROUND} bytes around its file")
                if len(self._block) >= BLOCK:
                    if writing is not None:
                        await writing
                    block, self._block = self._block, bytearray()
                    writing = asyncio.get_running_loop().run_in_executor(None, self._write, block)
            if writing is not None:
                await writing
            await asyncio.to_thread(self._write, self._block)
        except MultipartParseError as error:
            raise Refused(f"the form is damaged: {error}") from error
        except ClientDisconnect as error:
            raise Refused("the connection ended in the middle of the upload") from error
        finally:
            if writing is not None and not writing.done():
                with contextlib.suppress(Exception):
                    await writing  # it writes to the file that is closed after this
        if not self._ended:
            raise Refused("the form is cut off: its last boundary is missing")

    def _write(self, block: bytearray) -> None:
        with out_of_space():
            self._spool.write(block)

    def _callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._header = self._value = self._part = b""
        self._name = ""
        self._is_file = False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode(errors="replace")
            self._is_file = self._name == self._file_field
            if self._is_file:
                if self._upload.filename:
                    raise Refused(f"the form has two files in the field {self._file_field!r}")
                self._upload.filename = options.get(b"filename", b"").decode(errors="replace") or "unnamed"
        self._header = self._value = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._upload.size += end - start
            if self._upload.size > self._max_bytes:
                raise TooLong(f"the file is longer than the allowed {self._max_bytes} bytes")
            self._block += memoryview(data)[start:end]
        elif self._name in FIELDS:  # others are passed over, as the older service did
            self._part += data[start:end]
            if len(self._part) > MAX_FIELD:
                raise Refused(f"the field {self._name!r} is longer than {MAX_FIELD} bytes")

    def _on_part_end(self) -> None:
        if self._name in FIELDS and not self._is_file:  # of several the last one counts
            try:
                self._upload.fields[self._name] = self._part.decode()
            except UnicodeDecodeError as error:
                raise Refused(f"the field {self._name!r} is not UTF-8 text") from error

    def _on_end(self) -> None:
        self._ended = True
