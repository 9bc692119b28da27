"""The collect server: what is not allowed costs no memory, and guessing is slowed down."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.flood import MIB, flood, peak_memory
from tests.support.servers import answers, free_port, running

BODY = 200 * MIB
LOGIN = {"login": "someone", "password": "a secret"}


class Process:
    """A server in a process of its own."""

    def __init__(self, port: int, pid: int, log: Path) -> None:
        self.port, self.pid, self.log = port, pid, log

    def client(self, address: str) -> httpx.Client:
        """Return a client that calls from an address of the loopback interface."""
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", transport=transport, timeout=60)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    port, log = free_port(), tmp_path / "log"
    folder = ["--directory", str(tmp_path / "collect"), "--port", str(port)]
    environment = {"NIGHTSHIFT_COLLECT_LOGIN": LOGIN["login"], "NIGHTSHIFT_COLLECT_PASSWORD": LOGIN["password"]}
    command = [sys.executable, "-m", "services.collect", *folder]
    with running(command, log, answers(f"http://127.0.0.1:{port}/health"), **environment) as started:
        yield Process(port, started.pid, log)


def test_a_body_that_is_not_wanted_takes_no_memory_and_is_refused_before_all_of_it_was_sent(process: Process) -> None:
    with process.client("127.0.0.1") as client:
        token = client.post("/login", json=LOGIN).json()["token"]
        client.post("/meta/pictures", json={}, headers={"Authorization": f"bearer {token}"})
    before = peak_memory(process.pid)
    for path, headers, status in (
        ("/meta/pictures", [], 401),
        ("/picset/trained", ["Authorization: bearer wrong"], 401),
        ("/meta/picsets", [f"Authorization: bearer {token}"], 413),
        ("/login", [], 413),
    ):
        for length in (None, BODY):
            answer = flood(process.port, path, BODY, *headers, length=length)
            assert (answer.status, answer.sent < 32 * MIB) == (status, True), path
    assert peak_memory(process.pid) - before < 30 * MIB


def test_guessing_is_slowed_down_for_the_client_that_does_it(process: Process) -> None:
    with process.client("127.0.0.11") as guesser, process.client("127.0.0.12") as another:
        token = guesser.post("/login", json=LOGIN).json()["token"]
        valid = {"Authorization": f"bearer {token}"}
        guesses = [{"login": "someone", "password": f"guess {number}"} for number in range(10)]
        assert [guesser.post("/login", json=guess).status_code for guess in guesses] == [401] * 10
        refused = guesser.post("/login", json=LOGIN)
        assert (refused.status_code, 1 <= int(refused.headers["Retry-After"]) <= 60) == (429, True)
        assert guesser.post("/meta/picsets", headers={"Authorization": "bearer guess"}).status_code == 429
        assert guesser.post("/meta/pictures", json={"groups": ["none"]}, headers=valid).status_code == 404
        assert another.post("/login", json=LOGIN).status_code == 200
    log = process.log.read_text()
    assert log.count("failed login from 127.0.0.11: POST /login") == 10
    assert "guess" not in log
