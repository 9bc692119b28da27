"""The jobs' model storage: which error each answer becomes, and what is asked again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tenacity import wait_none

from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.model_storage import ModelStorage
from jobkit.retry import ATTEMPTS

CHAMPION = (200, b'{"version": "0.0.2", "triton_version": 2, "target": "onnx", "previous_version": "0.0.1"}')


class Answers:
    """Answers in turn, the last one from then on; stands in for a storage, and what may be before it, in trouble."""

    def __init__(self) -> None:
        self.answers = [CHAMPION]
        self.requests: list[str] = []
        self.authorization = ""
        self.cut = False
        """Whether bodies end before their announced length."""

    def next(self) -> tuple[int, bytes]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    found = Answers()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.requests.append(f"{self.command} {self.path}")
            found.authorization = self.headers.get("Authorization", "")
            status, content = found.next()
            self.send_response(status)
            if status == 307:
                self.send_header("Location", content.decode())
            self.send_header("Content-Length", str(len(content) + found.cut))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", f"http://127.0.0.1:{running.server_address[1]}/")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", "a token")
    monkeypatch.setattr("jobkit.retry.wait_random_exponential", lambda **_: wait_none())
    yield found
    running.shutdown()
    running.server_close()


def problem(status: int, reason: str) -> tuple[int, bytes]:
    return status, json.dumps({"detail": reason}).encode()


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (400, "no flat zip", DataValidationError),
        (401, "send a token", ConfigurationError),
        (403, "this token may read", ConfigurationError),
        (404, "no such version", DataValidationError),
        (409, "another version is pinned", TransientError),
        (413, "too long", DataValidationError),
        (429, "slower", TransientError),
        (500, "a fault", TransientError),
        (502, "Triton refused m: no such output", DataValidationError),
        (502, "a proxy's page", TransientError),
        (503, "PostgreSQL does not answer", TransientError),
        (507, "the disk is full", TransientError),
    ],
)
def test_each_refusal_is_one_of_the_contracts_errors(
    server: Answers, status: int, reason: str, error: type[Exception]
) -> None:
    server.answers = [problem(status, reason)]
    message = f"answered {status} to POST /models/m/versions/1/promote: .*{reason}"
    with ModelStorage() as storage, pytest.raises(error, match=message):
        storage.promote("m", "1", {"reason": "better"})
    assert len(server.requests) == 1, "a change is not made twice"
    assert server.authorization == "Bearer a token"


def test_what_is_no_name_is_neither_sent_nor_tried_again(server: Answers) -> None:
    with ModelStorage() as storage:
        for call in (lambda: storage.promote("x/../m", "1", {}), lambda: storage.champion("..")):
            with pytest.raises(DataValidationError, match="no name for a model or version"):
                call()
    assert server.requests == []


@pytest.mark.parametrize(
    "fault", [problem(503, "not now"), problem(500, "no"), problem(429, "slower"), (200, b"<html>"), (200, b"[]")]
)
def test_what_changes_nothing_is_asked_again(server: Answers, fault: tuple[int, bytes]) -> None:
    server.answers = [fault, fault, CHAMPION]
    with ModelStorage() as storage:
        assert storage.champion("m") == "0.0.2"
    assert server.requests == ["GET /models/m/champion"] * 3


def test_what_does_not_pass_is_left_to_a_later_try(server: Answers) -> None:
    server.answers = [problem(503, "not now")]
    with ModelStorage() as storage, pytest.raises(TransientError, match=f"answered 503.*{ATTEMPTS} times"):
        storage.champion("m")
    assert len(server.requests) == ATTEMPTS


def test_a_model_without_champion_has_none(server: Answers) -> None:
    server.answers = [problem(404, "no version is in production")]
    with ModelStorage() as storage:
        assert storage.champion("m") is None
    assert len(server.requests) == 1


def test_a_download_that_is_cut_off_leaves_nothing(server: Answers, tmp_path: Path) -> None:
    server.cut = True
    with ModelStorage(httpx.Timeout(5)) as storage, pytest.raises(TransientError, match=f"{ATTEMPTS} times"):
        storage.download("m", "0.0.1", tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_has_moved_is_found_by_its_redirect(server: Answers) -> None:
    server.answers = [(307, b"/elsewhere"), CHAMPION]
    with ModelStorage() as storage:
        assert storage.champion("m") == "0.0.2"
    assert server.requests == ["GET /models/m/champion", "GET /elsewhere"]


@pytest.mark.parametrize("url", ["model-storage", "model-storage:8300", "http://", "ftp://storage", "http://a:port"])
def test_what_is_no_address_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", url)
    with pytest.raises(ConfigurationError, match=f"NIGHTSHIFT_STORAGE_URL={url} is not an address"):
        ModelStorage()
