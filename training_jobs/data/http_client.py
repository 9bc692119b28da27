"""HTTP requests that outlast short failures of the other side."""

from __future__ import annotations

import logging
from typing import Any

import httpx
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from jobkit.errors import TransientError

logger = logging.getLogger("training_jobs.http")

TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # seconds; 30 without a byte means that the server hangs
ATTEMPTS = 4
LONGEST_WAIT = 8.0  # seconds between two attempts; Airflow's retry comes after minutes


class Unavailable(Exception):
    """The server did not answer, or not completely, or with a status that may pass (429, 5xx)."""


def client(connections: int) -> httpx.Client:
    """Return a client for at most `connections` requests at a time. Redirects are followed."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.Client(timeout=TIMEOUT, limits=limits, follow_redirects=True)


def request(http: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """Return the complete answer to a request, asking again after a failure that may pass.

    A body that ends before its announced length counts as such a failure. Client errors (4xx) are returned, not raised.

    Raises:
        TransientError: it failed `ATTEMPTS` times.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        stop=stop_after_attempt(ATTEMPTS),
        reraise=True,
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT),
        before_sleep=before_sleep_log(logger, logging.WARNING),
    )
    try:
        return retrying(_once, http, method, url, options)
    except Unavailable as error:
        raise TransientError(f"{error}, {ATTEMPTS} times") from error


def _once(http: httpx.Client, method: str, url: str, options: dict[str, Any]) -> httpx.Response:
    try:
        response = http.request(method, url, **options)
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Unavailable(f"{method} {url} failed: {str(error) or type(error).__name__}") from error
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        raise Unavailable(f"{method} {url} answered {response.status_code}")
    return response
