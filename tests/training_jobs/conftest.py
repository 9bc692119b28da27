"""A job in this process, with a bottle and a group of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tenacity import wait_none

from jobkit import job
from jobkit.bottle import FolderBottle
from tests.support.warm_sandbox import sandbox_server, warm_sandbox
from tests.training_jobs.storage import Storage

__all__ = ["sandbox_server", "warm_sandbox"]  # for every test of the folder


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep out what the environment of the test run names."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "NIGHTSHIFT_DATABASE_URL",
        "NIGHTSHIFT_STORAGE_URL",
        "NIGHTSHIFT_TASK_INSTANCE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bottle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderBottle:
    """An empty bottle, named by `NIGHTSHIFT_BOTTLE`."""
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(tmp_path / "bottle"))
    return FolderBottle(tmp_path / "bottle")


@pytest.fixture
def context(bottle: FolderBottle, tmp_path: Path) -> job.Context:
    """What a job that was started by hand has at hand."""
    (tmp_path / "job").mkdir()
    return job.Context(tmp_path / "job", None)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """A group that no other test uses, and the same one each time, since the split depends on its name."""
    return f"group_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A model storage over real HTTP, named by the environment."""
    found = Storage()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.authorization = self.headers.get("Authorization", "")
            status, content = found.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", found.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", "a token")
    monkeypatch.setattr("training_jobs.scoring.models.READ_TIMEOUT", httpx.Timeout(1.0))
    monkeypatch.setattr("jobkit.retry.wait_random_exponential", lambda **_: wait_none())
    yield found
    server.shutdown()
    server.server_close()
