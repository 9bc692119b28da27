"""HTTP requests that outlast short failures of the other side."""

from __future__ import annotations

from typing import Any

import httpx

from jobkit.errors import TransientError
from jobkit.retry import retried

TIMEOUT = httpx.Timeout(30.0, connect=5.0)  # seconds; 30 without a byte means that the server hangs


def client(connections: int) -> httpx.Client:
    """Return a client for at most `connections` requests at a time. Redirects are followed."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.Client(timeout=TIMEOUT, limits=limits, follow_redirects=True)


def request(http: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """Return the complete answer to a request, asking again after a failure that may pass.

    A body that ends before its announced length counts as such a failure, as do the statuses 429 and 5xx. Other client
    errors (4xx) are returned, not raised.

    Raises:
        TransientError: it failed `jobkit.retry.ATTEMPTS` times.
    """
    return retried(_once, http, method, url, options)


def _once(http: httpx.Client, method: str, url: str, options: dict[str, Any]) -> httpx.Response:
    try:
        response = http.request(method, url, **options)
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise TransientError(f"{method} {url} failed: {str(error) or type(error).__name__}") from error
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
        raise TransientError(f"{method} {url} answered {response.status_code}")
    return response
