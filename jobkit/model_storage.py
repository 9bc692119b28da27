"""The model storage as the jobs use it: `nightshift_common`'s client, with the contract's errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from jobkit import settings
from jobkit.errors import ConfigurationError, DataValidationError, JobError, TransientError
from jobkit.retry import retried
from nightshift_common.archive import Rules
from nightshift_common.model_storage_client import TIMEOUT, ModelStorageClient, StorageError

logger = logging.getLogger(__name__)

READ_TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # seconds; for jobs that only read: only a change waits for Triton
ARCHIVE = Rules(max_entries=2000, max_bytes=64 << 30, flat=True)
"""What a version's archive may hold."""

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A version in the storage."""

    version: str
    triton_version: int
    target: str
    already_published: bool = False
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the package, by its name"""
    size: int = 0
    """bytes of these files"""


class ModelStorage:
    """The storage that `NIGHTSHIFT_STORAGE_URL` names; a context manager that closes its connections.

    Every call raises `TransientError` where the storage or what stands behind it does not answer, `ConfigurationError`
    where the token is refused, and `DataValidationError` where the storage or Triton refuses the model. What changes
    nothing is asked again before it fails.
    """

    def __init__(self, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = _address(settings.require(settings.STORAGE_URL))
        self._client = ModelStorageClient(self.url, settings.optional(settings.STORAGE_TOKEN) or "", timeout)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def address(self, model: str, version: str) -> str:
        """Return the address of a version's archive."""
        return self._client.address(model, version)

    def upload(self, model: str, archive: Path, sha256: str) -> Published:
        """Publish `archive` as the next version; the same content again answers the version that it has already."""
        with self._errors():
            answer = self._client.upload(model, archive, sha256=sha256)
            version, known = str(answer["version"]), bool(answer.get("already_published"))
        return replace(self.version(model, version), already_published=known)

    def version(self, model: str, version: str) -> Published:
        """Return what the storage knows of a version."""

        def ask() -> Published:
            found = self._client.version(model, version)
            files = {str(name): str(file["sha256"]) for name, file in found["files"].items()}
            size = sum(int(file["size"]) for file in found["files"].values())
            return Published(
                str(found["version"]), int(found["triton_version"]), str(found["target"]), files=files, size=size
            )

        return self._read(ask)

    def download(self, model: str, version: str, target: Path) -> None:
        """Write a version's archive to the file `target`, which is there completely or not at all."""
        self._read(lambda: self._client.download(model, version, target))

    def champion(self, model: str) -> str | None:
        """Return the version in production; None where nothing is."""

        def ask() -> str | None:
            try:
                return str(self._client.champion(model)["version"])
            except StorageError as error:
                if error.status == httpx.codes.NOT_FOUND:
                    return None
                raise

        return self._read(ask)

    def founding_champion(self, model: str) -> str | None:
        """Return the version that was the first in production; None where none was."""

        def ask() -> str | None:
            # A repository of the older service that was moved in begins with what Triton had loaded.
            promoted = [row for row in self._client.history(model) if row["action"] in ("promote", "load")]
            return str(promoted[-1]["version"]) if promoted else None

        return self._read(ask)

    def pinned(self, model: str) -> str | None:
        """Return the version that is pinned: no other may come into production; None where none is."""

        def ask() -> str | None:
            found = self._client.stages(model)["pinned"]
            return None if found is None else str(found)

        return self._read(ask)

    def promote(self, model: str, version: str, note: dict[str, str | None]) -> str | None:
        """Bring a version into production; return the one before it."""
        with self._errors():
            previous = self._client.promote(model, version, False, **note)["previous_version"]
            return None if previous is None else str(previous)

    def roll_back(self, model: str, note: dict[str, str | None]) -> str:
        """Bring the version before into production again; return it."""
        with self._errors():
            return str(self._client.rollback(model, **note)["version"])

    def unload(self, model: str) -> None:
        """Take a model out of production that has no version to go back to."""
        with self._errors():
            self._client.unload(model)

    def models(self) -> list[str]:
        """Return the names of all models."""
        return self._read(self._client.models)

    def unneeded(self, model: str, older_than_days: float | None) -> tuple[list[str], dict[str, str]]:
        """Return the versions that may be deleted, and what each other one is needed for."""

        def ask() -> tuple[list[str], dict[str, str]]:
            found = self._client.clean(model, older_than_days, dry_run=True)
            return list(found["deleted"]), dict(found["kept"])

        return self._read(ask)

    def delete(self, model: str, version: str, older_than_days: float | None) -> bool:
        """Delete a version for good; return whether it is gone: not where something has come to need it."""
        with self._errors():
            try:
                self._client.delete(model, version, older_than_days)
            except StorageError as error:
                if error.status == httpx.codes.CONFLICT:
                    return False
                raise
            return True

    @contextmanager
    def staged(self, model: str, version: str) -> Iterator[str]:
        """Serve a version beside the one in production while the block runs; yield the name that it has in Triton."""
        with self._errors():
            staged = self._client.stage(model, version)
        try:
            yield staged
        finally:
            try:
                with self._errors():
                    self._client.unstage(model)
            except JobError as error:  # the storage removes it when it next starts; what the block came to counts
                logger.warning("%s could not be taken out of Triton: %s", staged, error)

    def _read(self, call: Callable[[], T]) -> T:
        def once() -> T:
            with self._errors():
                return call()

        return retried(once)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise self._job_error(error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise TransientError(f"the model storage {self.url} answered in an unknown form: {error!r}") from error

    def _job_error(self, error: StorageError) -> JobError:
        """Return the contract's error for what the client reports."""
        if not error.call:
            return DataValidationError(error.reason)
        if error.status is None:
            return TransientError(f"the model storage {self.url} did not answer {error.call}: {error.reason}")
        message = f"the model storage {self.url} answered {error.status} to {error.call}: {error.reason}"
        if error.status in (401, 403):
            return ConfigurationError(f"{message}; see {settings.STORAGE_TOKEN}")
        not_proved = error.status == 409 and error.reason.startswith("not promoted:")
        triton_refused = error.status == 502 and "Triton" in error.reason
        if not_proved or triton_refused or error.status in (400, 404, 413, 422):
            return DataValidationError(message)
        return TransientError(message)


def _address(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{settings.STORAGE_URL}={url} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"{settings.STORAGE_URL}={url} is not an address: say http://model-storage:8300")
    return url.rstrip("/")
