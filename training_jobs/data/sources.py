"""The two places that list labeled pictures: the collection service, and a PostgreSQL table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from jobkit.bottle import Bottle, checked_key
from jobkit.errors import ConfigurationError
from training_jobs.data import http_client
from training_jobs.data.collect import Collect
from training_jobs.data.listing import Listed
from training_jobs.data.postgres_table import listed_in_table
from training_jobs.data.transfer import THREADS, Fetch, NotThere


@dataclass(frozen=True)
class Source:
    """What a source lists, how to fetch one of its files, and the metadata of its picsets where it has any."""

    listed: list[Listed]
    fetch: Fetch
    picsets: Callable[[list[str]], dict[str, dict[str, Any]]] | None = None


@contextmanager
def collect_source(group: str, modes: list[str]) -> Iterator[Source]:
    """Yield what the collection service has of `group`."""
    with http_client.client(THREADS) as client:
        collect = Collect(client)

        def fetch(filepath: str) -> bytes:
            return _download(client, collect.file_url(filepath))

        yield Source(collect.pictures(group, modes), fetch, collect.picsets)


@contextmanager
def table_source(table: str, bottle: Bottle, multi_label: bool) -> Iterator[Source]:
    """Yield what a table lists. A path is an http(s) address, an absolute path or file:// address, or a bottle key."""
    with http_client.client(THREADS) as client:

        def fetch(path: str) -> bytes:
            parts = urlsplit(path)
            if parts.scheme in ("http", "https"):
                return _download(client, path)
            if parts.scheme == "file" or path.startswith("/"):
                return read_local(Path(unquote(parts.path) if parts.scheme == "file" else path))
            return read_from_bottle(bottle, path)

        yield Source(listed_in_table(table, multi_label), fetch)


def _download(client: httpx.Client, url: str) -> bytes:
    response = http_client.request(client, "GET", url)
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise ConfigurationError(f"{url} answered {response.status_code}: pictures have to be readable without a login")
    if response.is_client_error:
        raise NotThere(f"{url} answered {response.status_code}")
    return response.content


def read_local(path: Path) -> bytes:
    """Return a file of this host; NotThere where there is none that may be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotThere(f"there is no file {path}") from error
    except PermissionError as error:
        raise NotThere(f"{path} may not be read") from error


def read_from_bottle(bottle: Bottle, key: str) -> bytes:
    """Return the content of a key; NotThere where there is none, or it is no key."""
    try:
        checked_key(key)
    except ConfigurationError as error:
        raise NotThere(str(error)) from error
    if not bottle.exists(key):
        raise NotThere(f"{key} is not in the bottle {bottle}")
    return bottle.read(key)
