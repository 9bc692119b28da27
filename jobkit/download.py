"""Downloads that go on where they were broken off."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx

from jobkit.errors import ConfigurationError, TransientError
from jobkit.progress import Progress

logger = logging.getLogger("jobkit.download")
TIMEOUT = httpx.Timeout(60, connect=15)


class NotThere(ConfigurationError):
    """The server has nothing at that address."""


def download(url: str, path: Path, headers: Mapping[str, str] | None = None) -> httpx.Headers:
    """Write what is at `url` to `path`; go on with what an earlier call left there, if the server has the same still.

    Return the headers of the first answer, the one before any redirect. Beside an unfinished file lies `<path>.etag`,
    by which the server is asked for the rest (RFC 9110, If-Range).

    Raises:
        TransientError: the connection broke, or the server is not well; what came is kept.
        NotThere: 404 or 410.
        ConfigurationError: the server refuses, or an https address leads to one that is not.
    """
    mark = path.with_name(f"{path.name}.etag")
    have = path.stat().st_size if path.exists() and mark.exists() else 0
    asked = {"Accept-Encoding": "identity", **(headers or {})}
    if have:
        asked |= {"Range": f"bytes={have}-", "If-Range": mark.read_text()}
    try:
        with httpx.stream("GET", url, headers=asked, follow_redirects=True, timeout=TIMEOUT) as answer:
            _check(url, answer, path)
            if answer.status_code == httpx.codes.PARTIAL_CONTENT:
                logger.info("%s: going on after %d bytes", url, have)
            else:
                have = 0
                mark.unlink(missing_ok=True)
            _write(answer, path, mark, have)
            return (answer.history[0] if answer.history else answer).headers
    except httpx.TransportError as error:
        raise TransientError(f"{url}: the download broke off ({error or type(error).__name__})") from error


def _check(url: str, answer: httpx.Response, path: Path) -> None:
    """Raise what the status means."""
    if url.startswith("https:") and answer.url.scheme != "https":
        raise ConfigurationError(f"{url} leads to {answer.url}, which is not https")
    status = answer.status_code
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise NotThere(f"{url}: there is nothing at this address ({status})")
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        path.unlink(missing_ok=True)
        raise TransientError(f"{url}: the file at hand is not a part of it, it is fetched anew")
    if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
        raise TransientError(f"{url} answered {status}")
    if not answer.is_success:
        raise ConfigurationError(f"{url} answered {status}: it may need a token, or is not for everybody")


def _write(answer: httpx.Response, path: Path, mark: Path, have: int) -> None:
    etag = answer.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):  # a weak one does not promise the same bytes
        mark.write_text(etag)
    length = int(answer.headers.get("Content-Length", 0)) + have
    progress = Progress(f"download {path.name}", max(1, length >> 20), "MiB", initial=have >> 20)
    written = have
    with path.open("ab" if have else "wb") as file:
        for chunk in answer.iter_raw():  # as it comes: what waits for a whole chunk is lost when it breaks off
            file.write(chunk)
            progress.advance((written + len(chunk) >> 20) - (written >> 20))
            written += len(chunk)
    with suppress(FileNotFoundError):
        mark.unlink()
