"""The model storage from Python: one method a call. Needs httpx and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

CHUNK = 1 << 20
TIMEOUT = httpx.Timeout(300, connect=10)  # a promotion answers when the model is loaded

Count = Callable[[int], None]
"""What is told each amount of bytes that went through."""


class StorageRefused(RuntimeError):
    """The storage refused a call; the message is its reason.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class StorageUnavailable(RuntimeError):
    """The storage, or PostgreSQL or Triton behind it, does not answer for now."""


class ModelStorageClient:
    """A client of the model storage; a context manager that closes its connections.

    Every method raises `StorageRefused` or `StorageUnavailable`.
    """

    def __init__(self, url: str, token: str = "", timeout: httpx.Timeout | float = TIMEOUT) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def upload(
        self, model: str, archive: Path, version: str = "next", sha256: str | None = None, sent: Count | None = None
    ) -> dict[str, Any]:
        """Publish a flat zip as a version, streamed from the disk; return `{"version": ...}`."""
        form = {"model_name": model, "model_version": version, "sha256": sha256 or checksum(archive)}
        with archive.open("rb") as handle:
            files: Any = {"src_file": (archive.name, _Counted(handle, sent or _nobody))}
            answer: dict[str, Any] = self._json("POST", "/upload_new_version/", data=form, files=files)
        return answer

    def models(self) -> list[str]:
        """Return the names of all models."""
        found: list[str] = self._json("GET", "/models")
        return found

    def versions(self, model: str) -> list[dict[str, Any]]:
        """Return the versions of a model, the oldest first."""
        found: list[dict[str, Any]] = self._json("GET", f"/models/{quote(model)}/versions")
        return found

    def version(self, model: str, version: str) -> dict[str, Any]:
        """Return what is known of a version: its files with sizes, checksums, target and meta."""
        return self._object("GET", _path(model, version))

    def champion(self, model: str) -> dict[str, Any]:
        """Return the version in production; `StorageRefused` with status 404 where nothing is."""
        return self._object("GET", f"/models/{quote(model)}/champion")

    def stages(self, model: str) -> dict[str, Any]:
        """Return champion, previous, canary and candidate by target and of all, and the pinned version."""
        return self._object("GET", f"/models/{quote(model)}/stages")

    def history(self, model: str, at: str | None = None) -> list[dict[str, Any]]:
        """Return all changes, the latest first; with `at` (ISO 8601) what was in production then, if anything was."""
        found: list[dict[str, Any]] = self._json("GET", f"/history/{quote(model)}", params={"at": at} if at else {})
        return found

    def download(self, model: str, version: str, target: Path, received: Count | None = None) -> None:
        """Write a version to `target` as a flat zip; the file is there completely or not at all."""
        partial = target.with_name(f".{target.name}.part")
        try:
            with (
                self._client.stream("GET", f"{_path(model, version)}/archive") as reply,
                partial.open("wb") as output,
            ):
                if reply.is_error:
                    reply.read()
                _checked(reply)
                for chunk in reply.iter_bytes(CHUNK):
                    output.write(chunk)
                    (received or _nobody)(len(chunk))
            partial.replace(target)
        except httpx.HTTPError as error:
            raise StorageUnavailable(f"the model storage {self.url} does not answer: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def promote(self, model: str, version: str, **note: str | None) -> dict[str, Any]:
        """Bring a version into production. The note: `reason`, `actor`, `run_id`, `snapshot_id`."""
        return self._object("POST", f"{_path(model, version)}/promote", json=note)

    def rollback(self, model: str, **note: str | None) -> dict[str, Any]:
        """Go back to the version in production before; with `from_version` in the note only from that one."""
        return self._object("POST", f"/models/{quote(model)}/rollback", json=note)

    def pin(self, model: str, version: str, **note: str | None) -> dict[str, Any]:
        """Bring a version into production and keep it there until `unpin`."""
        return self._object("POST", f"{_path(model, version)}/pin", json=note)

    def unpin(self, model: str, actor: str) -> dict[str, Any]:
        """Let other versions come into production again."""
        return self._object("DELETE", f"/models/{quote(model)}/pin", params={"actor": actor})

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._json(method, path, **options)
        return found

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            return _checked(self._client.request(method, path, **options)).json()
        except httpx.HTTPError as error:
            raise StorageUnavailable(f"the model storage {self.url} does not answer: {error}") from error


def checksum(file: Path, read: Count | None = None) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            (read or _nobody)(len(chunk))
    return digest.hexdigest()


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, handle: Any, count: Count) -> None:
        self._handle, self._count = handle, count

    def read(self, size: int = -1) -> bytes:
        """Read; httpx asks for 64 KiB at a time, which larger blocks make faster."""
        data: bytes = self._handle.read(max(size, CHUNK) if size > 0 else size)
        self._count(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _nobody(_amount: int) -> None:
    """Count for nobody."""


def _path(model: str, version: str) -> str:
    return f"/models/{quote(model)}/versions/{quote(version)}"


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise StorageUnavailable(f"503: {_detail(reply)}")
    if reply.is_error:
        raise StorageRefused(reply.status_code, f"{reply.status_code}: {_detail(reply)}")
    return reply


def _detail(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return reply.text[:500]
