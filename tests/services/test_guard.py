"""Failed logins are counted by client, in a bounded memory; a body is bounded whatever its Content-Length says."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from pydantic import BaseModel

from services.guard import FailedLogins, guarded


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request_of(address: str, path: str = "/a") -> Request:
    return Request({"type": "http", "client": (address, 1), "method": "GET", "headers": [], "path": path})


def status_of_failing(logins: FailedLogins, address: str) -> int:
    try:
        return logins.fail(request_of(address), "no").status_code
    except HTTPException as error:
        return error.status_code


def test_the_eleventh_failure_within_a_minute_is_429_and_a_minute_later_it_is_not() -> None:
    clock = Clock()
    logins = FailedLogins(clock=clock)
    assert [status_of_failing(logins, "10.0.0.1") for _ in range(12)] == [401] * 10 + [429] * 2
    assert status_of_failing(logins, "10.0.0.2") == 401
    logins.check(request_of("10.0.0.2"))
    clock.now += 45
    with pytest.raises(HTTPException) as refused:
        logins.check(request_of("10.0.0.1"))
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "15"})
    clock.now += 15
    logins.check(request_of("10.0.0.1"))
    assert status_of_failing(logins, "10.0.0.1") == 401


def test_the_addresses_of_one_ipv6_network_are_one_client() -> None:
    logins = FailedLogins()
    assert [status_of_failing(logins, f"2001:db8::{n:x}") for n in range(1, 12)] == [401] * 10 + [429]
    assert status_of_failing(logins, "2001:db8:0:1::1") == 401
    assert [status_of_failing(logins, "::ffff:10.0.0.1") for _ in range(5)] == [401] * 5
    assert [status_of_failing(logins, "10.0.0.1") for _ in range(6)] == [401] * 5 + [429]
    assert status_of_failing(logins, "::ffff:10.0.0.2") == 401


def test_no_more_than_10000_addresses_are_remembered_and_the_oldest_goes_first() -> None:
    logins = FailedLogins()
    for _ in range(10):
        logins.fail(request_of("10.1.0.1"), "no")
    for number in range(9_999):
        logins.fail(request_of(f"10.2.{number // 256}.{number % 256}"), "no")
    assert (len(logins), status_of_failing(logins, "10.1.0.1")) == (10_000, 429)
    for number in range(5_000):
        logins.fail(request_of(f"10.3.{number // 256}.{number % 256}"), "no")
    assert (len(logins), status_of_failing(logins, "10.1.0.1")) == (10_000, 401)


def test_a_failure_is_one_line_of_the_log_without_anything_that_a_stranger_wrote(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        FailedLogins().fail(request_of("10.0.0.1", "/a\nroot logged in"), "no")
    assert [record.getMessage() for record in caplog.records] == ["failed login from 10.0.0.1: GET (no route)"]


class Text(BaseModel):
    text: str


@pytest.mark.parametrize(("length", "status"), [(1, 200), (85, 200), (90, 413), (5000, 413)])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_may_have_so_many_bytes_and_no_more(length: int, status: int, chunked: bool) -> None:
    router = APIRouter(route_class=guarded(lambda _: None, max_body=100))

    @router.post("/text")
    def text(body: Text) -> int:
        return len(body.text)

    app = FastAPI()
    app.include_router(router)
    content = b'{"text": "' + b"x" * length + b'"}'
    assert (len(content) <= 100) == (status == 200)

    async def ask() -> httpx.Response:
        async def pieces():
            for start in range(0, len(content), 10):
                yield content[start : start + 10]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            headers = {"Content-Type": "application/json"}
            return await client.post("/text", content=pieces() if chunked else content, headers=headers)

    reply = asyncio.run(ask())
    assert reply.status_code == status
    assert reply.json() == (
        length if status == 200 else {"detail": "the body is longer than the 100 bytes that this call takes"}
    )
