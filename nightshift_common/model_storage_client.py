"""The model storage from Python: one method a call. Needs httpx and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from nightshift_common.http_errors import detail_of
from nightshift_common.names import NAME_RULE, is_name

CHUNK = 1 << 20
TIMEOUT = httpx.Timeout(300, connect=10)  # a promotion answers when the model is loaded

Count = Callable[[int], None]
"""What is told each amount of bytes that went through."""


class StorageError(RuntimeError):
    """A call of the model storage that failed.

    Attributes:
        call: method and path, say `GET /models`; empty where the call was not made.
        status: the HTTP status; None where there was no answer.
        reason: what the storage said, or what went wrong with the connection.
    """

    def __init__(self, message: str, call: str, status: int | None, reason: str) -> None:
        super().__init__(message)
        self.call, self.status, self.reason = call, status, reason


class StorageRefused(StorageError):
    """The storage refused a call, or it was not made for what is no name; the message is the reason."""


class StorageUnavailable(StorageError):
    """The storage, or PostgreSQL or Triton behind it, does not answer for now, or not in a form that is known."""


class ModelStorageClient:
    """A client of the model storage; a context manager that closes its connections.

    Every method raises `StorageRefused` or `StorageUnavailable`.
    """

    def __init__(self, url: str, token: str = "", timeout: httpx.Timeout | float = TIMEOUT) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def upload(
        self,
        model: str,
        archive: Path,
        version: str = "next",
        sha256: str | None = None,
        sent: Count | None = None,
        triton_version: int | None = None,
    ) -> dict[str, Any]:
        """Publish a zip as a version, streamed from the disk; return `{"version": ...}`.

        It gets Triton's number `triton_version`, or the next one that is free.
        """
        form = {"model_name": model, "model_version": version, "sha256": sha256 or checksum(archive)}
        if triton_version is not None:
            form["triton_version"] = str(triton_version)
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
        found: list[dict[str, Any]] = self._json("GET", f"{_path(model)}/versions")
        return found

    def version(self, model: str, version: str) -> dict[str, Any]:
        """Return what is known of a version: its files with sizes, checksums, target and meta."""
        return self._object("GET", _path(model, version))

    def champion(self, model: str) -> dict[str, Any]:
        """Return the version in production; `StorageRefused` with status 404 where nothing is."""
        return self._object("GET", f"{_path(model)}/champion")

    def stages(self, model: str) -> dict[str, Any]:
        """Return champion, previous, canary and candidate by target and of all, and the pinned version."""
        return self._object("GET", f"{_path(model)}/stages")

    def start_canary(
        self, model: str, version: str, rules: dict[str, Any] | None = None, **note: str | None
    ) -> dict[str, Any]:
        """Let a version answer a share of the requests that grows in steps, until it is promoted or taken back.

        Of the `rules` those that are left out are the storage's: `steps`, `margin`, `expected_disagreement`, … The note
        is as for `promote`.
        """
        return self._object("POST", f"{_path(model, version)}/canary", json={**note, "rules": rules or {}})

    def canary(self, model: str) -> dict[str, Any]:
        """Return the canary that is under way and what it has shown; `StorageRefused` with 404 where there is none."""
        return self._object("GET", f"{_path(model)}/canary")

    def end_canary(self, model: str) -> None:
        """Take the canary back."""
        self._object("DELETE", f"{_path(model)}/canary")

    def history(self, model: str, at: str | None = None) -> list[dict[str, Any]]:
        """Return all changes, the latest first; with `at` (ISO 8601) what was in production then, if anything was."""
        params = {"at": at} if at else {}
        found: list[dict[str, Any]] = self._json("GET", f"/history/{_quoted(model)}", params=params)
        return found

    def address(self, model: str, version: str) -> str:
        """Return the address of a version's archive."""
        return f"{self.url}{_path(model, version)}/archive"

    def download(
        self, model: str, version: str, target: Path, received: Count | None = None, as_signed: bool = False
    ) -> None:
        """Write a version to `target` as a flat zip; the file is there completely or not at all.

        With `as_signed`, of a signed version: its files as they were when they were signed.
        """
        partial = target.with_name(f".{target.name}.part")
        path = f"{_path(model, version)}/archive"
        params = {"as_signed": "true"} if as_signed else {}
        try:
            with (
                self._answering("GET", path),
                self._client.stream("GET", path, params=params, follow_redirects=True) as reply,
                partial.open("wb") as output,
            ):
                if not reply.is_success:
                    reply.read()
                    raise _failure(reply, f"GET {path}")
                for chunk in reply.iter_bytes(CHUNK):
                    output.write(chunk)
                    (received or _nobody)(len(chunk))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def stage(self, model: str, version: str) -> str:
        """Serve a version beside the one in production; return the name that it has in Triton."""
        return str(self._object("POST", f"{_path(model, version)}/stage")["model"])

    def unstage(self, model: str) -> None:
        """Take the staged version out of Triton."""
        self._object("DELETE", f"{_path(model)}/stage")

    def try_picture(self, model: str, picture: bytes) -> list[dict[str, Any]]:
        """Return what the version in production and the one before say of an encoded picture.

        Each has `stage`, `version`, `labels` and `probabilities`, the likeliest first, or a `problem`.
        """
        found: list[dict[str, Any]] = self._json("POST", f"{_path(model)}/try", content=picture)
        return found

    def promote(self, model: str, version: str, force: bool = False, **note: str | None) -> dict[str, Any]:
        """Bring a version into production. The note: `reason`, `on_behalf_of`, `run_id`, `snapshot_id`.

        With `force` although its interface is another or it does not answer as was verified, which is a 409 else.
        """
        forced = {"force": True} if force else {}  # earlier storages know no such key
        return self._object("POST", f"{_path(model, version)}/promote", json={**note, **forced})

    def rollback(self, model: str, **note: str | None) -> dict[str, Any]:
        """Go back to the version in production before; with `from_version` in the note only from that one."""
        return self._object("POST", f"{_path(model)}/rollback", json=note)

    def clean(self, model: str, older_than_days: float | None = None, dry_run: bool = False) -> dict[str, Any]:
        """Delete the versions that nothing needs; return which, and what the others are needed for."""
        params = _older_than(older_than_days) | ({"dry_run": "true"} if dry_run else {})
        return self._object("DELETE", f"{_path(model)}/versions", params=params)

    def delete(self, model: str, version: str, older_than_days: float | None = None) -> dict[str, Any]:
        """Delete a version for good: a 409 where it is needed or younger than that."""
        return self._object("DELETE", _path(model, version), params=_older_than(older_than_days))

    def unload(self, model: str) -> None:
        """Take a model out of Triton: nothing is in production then."""
        self._object("POST", f"/unload_model/{_quoted(model)}")

    def pin(self, model: str, version: str, **note: str | None) -> dict[str, Any]:
        """Bring a version into production and keep it there until `unpin`."""
        return self._object("POST", f"{_path(model, version)}/pin", json=note)

    def unpin(self, model: str, on_behalf_of: str) -> dict[str, Any]:
        """Let other versions come into production again."""
        return self._object("DELETE", f"{_path(model)}/pin", params={"on_behalf_of": on_behalf_of})

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._json(method, path, **options)
        return found

    def _json(self, method: str, path: str, **options: Any) -> Any:
        with self._answering(method, path):
            reply = self._client.request(method, path, follow_redirects=method == "GET", **options)
        call = f"{method} {path}"
        if not reply.is_success:
            raise _failure(reply, call)
        try:
            return reply.json()
        except ValueError as error:
            reason = f"an answer in an unknown form: {reply.text[:200]!r}"
            message = f"the model storage {self.url} gave {reason}"
            raise StorageUnavailable(message, call, reply.status_code, reason) from error

    @contextmanager
    def _answering(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            message = f"the model storage {self.url} does not answer: {reason}"
            raise StorageUnavailable(message, f"{method} {path}", None, reason) from error


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


def _older_than(days: float | None) -> dict[str, str]:
    return {} if days is None else {"older_than_days": str(days)}


def _path(model: str, version: str | None = None) -> str:
    return f"/models/{_quoted(model)}" + (f"/versions/{_quoted(version)}" if version is not None else "")


def _quoted(name: str) -> str:
    """Return a model or version as one part of a path; `..` and what has a slash would make another path of it."""
    if not is_name(name):
        reason = f"{name!r} is no name for a model or version: {NAME_RULE}"
        raise StorageRefused(reason, "", None, reason)
    return quote(name, safe="")


def _failure(reply: httpx.Response, call: str) -> StorageError:
    kind = StorageUnavailable if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE else StorageRefused
    reason = detail_of(reply)
    return kind(f"{reply.status_code}: {reason}", call, reply.status_code, reason)
