"""A version as a zip, made while it is sent: nothing is kept twice, and memory stays low."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import IO

from nightshift_common.archive import CHUNK
from services.model_storage.errors import StorageError
from services.model_storage.repository.model_config import CONFIG_FILE
from services.model_storage.repository.record import UPLOADED, WRITTEN, Record
from services.model_storage.repository.store import Store


def stream_zip(store: Store, record: Record, as_signed: bool = False) -> Iterator[bytes]:
    """Yield the zip of a version: the files of its archive (with `model_version` in meta.json) and its config.pbtxt.

    With `as_signed`, for a signed version: exactly the files that were uploaded, which its signature is of.

    Raises:
        StorageError: a file is no longer what was published. Then the zip has no end: no client takes it for whole.
    """
    pipe = _Pipe()
    stamp = record.created_at.timetuple()[:6]
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        written = frozenset() if as_signed or record.taken_over is not None else WRITTEN
        if record.taken_over is not None and CONFIG_FILE not in record.files:
            archive.writestr(zipfile.ZipInfo(CONFIG_FILE, stamp), record.taken_over)
        for name in sorted({*record.files, *written}):
            stored = f"{name}{UPLOADED}" if as_signed and name in WRITTEN else name
            entry = zipfile.ZipInfo(name, stamp)
            entry.external_attr = 0o644 << 16
            with (
                closing(store.open(f"{record.folder}/{stored}")) as source,
                archive.open(entry, "w", force_zip64=True) as target,
            ):
                sha256 = yield from _copy(source, target, pipe)
            if name not in written and sha256 != record.files[name].sha256:
                raise StorageError(f"{name} of {record.model} {record.version} is not what was published: {sha256}")
    yield pipe.take()


def _copy(source: IO[bytes], target: IO[bytes], pipe: _Pipe) -> Generator[bytes, None, str]:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        target.write(chunk)
        yield pipe.take()
    return digest.hexdigest()


class _Pipe:
    """What `zipfile` writes into; it cannot go back, so sizes follow the content (APPNOTE.TXT 4.3.9)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Take a part."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: parts are taken when they are sent."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
