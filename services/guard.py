"""What stands before a service: requests are checked before their body is read, bodies bounded, failures counted.

FastAPI itself reads and parses a body first and asks the dependencies after it.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

MAX_BODY = 1 << 20  # bytes of a JSON body; the longest that a client of ours sends has 200 ids

logger = logging.getLogger(__name__)

Check = Callable[[Request], None]
"""What raises an HTTPException for a request that may not pass, by its headers alone."""


def guarded(check: Check, max_body: int | None = MAX_BODY) -> type[APIRoute]:
    """Return a class of routes that check a request, and then let them read at most `max_body` bytes of its body.

    A longer body is answered 413, by its Content-Length or, where there is none or it lies, as soon as it is longer.
    With None the body is the route's own matter.
    """

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guard(request: Request) -> Response:
                check(request)
                return await handle(request if max_body is None else _bounded(request, max_body))

            return guard

    return Guarded


def content_length(request: Request) -> int:
    """Return the length that a request says its body has, in bytes; 0 where it says none."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def _bounded(request: Request, max_body: int) -> Request:
    too_long = HTTPException(413, f"the body is longer than the {max_body} bytes that this call takes")
    if content_length(request) > max_body:
        raise too_long
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_body:
            raise too_long
        return message

    return Request(request.scope, receive)


class FailedLogins:
    """Counts failed logins by client address; who has too many within a time is answered 429 until it is over.

    An IPv6 address stands for its /64, which one client has as a rule. At most `addresses` are remembered: a new one
    then displaces the one whose first failure is the oldest.
    """

    def __init__(
        self,
        limit: int = 10,
        seconds: float = 60.0,
        addresses: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._seconds, self._addresses, self._clock = limit, seconds, addresses, clock
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def __len__(self) -> int:
        return len(self._failed)

    def check(self, request: Request) -> None:
        """Raise 429 for a client that has failed too often."""
        since, count = self._of(_address(request))
        if count >= self._limit:
            self._refuse(since)

    def fail(self, request: Request, detail: str) -> HTTPException:
        """Count and log a failed login, without what was sent; return the 401, raise 429 for one too many."""
        address = _address(request)
        since, count = self._of(address)
        logger.warning("failed login from %s: %s %s", address, request.method, _route(request))
        if count >= self._limit:
            self._refuse(since)
        self._failed[address] = since, count + 1
        if len(self._failed) > self._addresses:
            self._failed.popitem(last=False)
        return unauthorized(detail)

    def _of(self, address: str) -> tuple[float, int]:
        now = self._clock()
        since, count = self._failed.get(address, (now, 0))
        if now - since >= self._seconds:
            del self._failed[address]  # a new one goes to the end of the order
            return now, 0
        return since, count

    def _refuse(self, since: float) -> None:
        wait = max(1, round(since + self._seconds - self._clock()))
        raise HTTPException(429, f"too many failed logins from this address: wait {wait} s", {"Retry-After": str(wait)})


def unauthorized(detail: str) -> HTTPException:
    """Return the 401 for a request without a valid token."""
    return HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def _address(request: Request) -> str:
    host = request.client.host if request.client else "unknown"
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def _route(request: Request) -> str:
    """Return the route's path and not the request's, which a stranger writes."""
    return str(getattr(request.scope.get("route"), "path", "(no route)"))
