"""The model storage as the jobs use it; every failure is one of the contract's errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from jobkit import settings
from jobkit.errors import ConfigurationError, DataValidationError, JobError, TransientError

logger = logging.getLogger(__name__)

# A version is loaded, warmed up and checked within one call; an upload answers once the archive is checked.
TIMEOUT = httpx.Timeout(300.0, connect=10.0)


@dataclass(frozen=True)
class Published:
    """A version in the storage."""

    version: str
    triton_version: int
    target: str
    already_published: bool = False


class ModelStorage:
    """A client of the storage that `NIGHTSHIFT_STORAGE_URL` names.

    Every call raises `TransientError` where the storage or what stands behind it does not answer, `ConfigurationError`
    where the token is refused, and `DataValidationError` where the storage or Triton refuses the model.
    """

    def __init__(self) -> None:
        self.url = settings.require(settings.STORAGE_URL).rstrip("/")
        token = settings.optional(settings.STORAGE_TOKEN)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT)

    def address(self, model: str, version: str) -> str:
        """Return the address of a version's archive."""
        return f"{self.url}{_path(model, version)}/archive"

    def upload(self, model: str, archive: Path, sha256: str) -> Published:
        """Publish `archive` as the next version; the same content again answers the version that it has already.

        The file is streamed from the disk.
        """
        fields = {"model_name": model, "sha256": sha256}
        with archive.open("rb") as handle:
            files = {"src_file": (archive.name, handle, "application/zip")}
            answer = self._ask("POST", "/upload_new_version/", data=fields, files=files)
        found = self.version(model, str(answer["version"]))
        return Published(found.version, found.triton_version, found.target, bool(answer.get("already_published")))

    def version(self, model: str, version: str) -> Published:
        """Return what the storage knows of a version."""
        found = self._ask("GET", _path(model, version))
        return Published(str(found["version"]), int(found["triton_version"]), str(found["target"]))

    def archive(self, model: str, version: str) -> bytes:
        """Return a version's archive, as it was uploaded."""
        response = self._send("GET", f"{_path(model, version)}/archive")
        if not response.is_success:
            self._checked(response)
        return response.content

    def champion(self, model: str) -> str | None:
        """Return the version in production; None where nothing is."""
        response = self._send("GET", f"/models/{quote(model)}/champion")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return str(self._checked(response)["version"])

    def pinned(self, model: str) -> str | None:
        """Return the version that is pinned: no other may come into production; None where none is."""
        found = self._ask("GET", f"/models/{quote(model)}/stages")["pinned"]
        return None if found is None else str(found)

    def promote(self, model: str, version: str, note: dict[str, str | None]) -> str | None:
        """Bring a version into production; return the one before it."""
        previous = self._ask("POST", f"{_path(model, version)}/promote", json=note)["previous_version"]
        return None if previous is None else str(previous)

    def roll_back(self, model: str, note: dict[str, str | None]) -> str:
        """Bring the version before into production again; return it."""
        return str(self._ask("POST", f"/models/{quote(model)}/rollback", json=note)["version"])

    def unload(self, model: str) -> None:
        """Take a model out of production that has no version to go back to."""
        self._ask("POST", f"/unload_model/{quote(model)}")

    @contextmanager
    def staged(self, model: str, version: str) -> Iterator[str]:
        """Serve a version beside the one in production while the block runs; yield the name that it has in Triton."""
        staged = str(self._ask("POST", f"{_path(model, version)}/stage")["model"])
        try:
            yield staged
        finally:
            try:
                self._ask("DELETE", f"/models/{quote(model)}/stage")
            except JobError as error:  # the storage removes it when it next starts; what the block came to counts
                logger.warning("%s could not be taken out of Triton: %s", staged, error)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._checked(self._send(method, path, **options))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, f"{self.url}{path}", **options)
        except httpx.UnsupportedProtocol as error:
            raise ConfigurationError(f"{settings.STORAGE_URL}={self.url} is not an address: {error}") from error
        except httpx.HTTPError as error:
            raise TransientError(f"the model storage {self.url} did not answer {method} {path}: {error!r}") from error

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        asked = f"{response.request.method} {response.request.url.path}"
        detail = _detail(response)
        if response.is_success and isinstance(detail, dict):
            return detail
        message = f"the model storage {self.url} answered {response.status_code} to {asked}: {detail}"
        if response.status_code in (401, 403):
            raise ConfigurationError(f"{message}; see {settings.STORAGE_TOKEN}")
        triton_refused = response.status_code == 502 and "Triton" in str(detail)
        if triton_refused or response.status_code in (400, 404, 413, 422):
            raise DataValidationError(message)
        raise TransientError(message)


def _path(model: str, version: str) -> str:
    return f"/models/{quote(model)}/versions/{quote(version)}"


def _detail(response: httpx.Response) -> Any:
    try:
        content = response.json()
    except ValueError:
        return response.text[:500]
    if not response.is_success and isinstance(content, dict):
        return content.get("detail", content)
    return content
