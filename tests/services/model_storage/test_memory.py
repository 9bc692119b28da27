"""Who has no right to call costs no memory, and who has costs a bounded amount; wrong tokens are slowed down."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.flood import MIB, flood, peak_memory
from tests.services.model_storage.support import READ_TOKEN, TOKEN, Database, Storage, model_zip, settings_for
from tests.support.servers import answers, free_port, running

BODY = 200 * MIB
LONGEST_UPLOAD = 110 * MIB
BEARER = f"Authorization: Bearer {TOKEN}"


class Process:
    """A storage in a process of its own."""

    def __init__(self, port: int, pid: int, log: Path) -> None:
        self.port, self.pid, self.log, self.url = port, pid, log, f"http://127.0.0.1:{port}"

    def client(self, address: str, token: str) -> httpx.Client:
        """Return a client that calls from an address of the loopback interface."""
        transport = httpx.HTTPTransport(local_address=address)
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=60)


@pytest.fixture(scope="module")
def process(storage: Storage, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("storage")
    settings = settings_for(storage.triton, database.new(), repository=str(folder / "models"))
    values = settings.model_dump(mode="json", include={"repository", "database_url", "triton_grpc"})
    environment = {f"MODEL_STORAGE_{key.upper()}": value for key, value in values.items()}
    environment |= {"MODEL_STORAGE_TOKENS": json.dumps(settings.model_dump()["tokens"])}
    environment |= {"MODEL_STORAGE_MAX_UPLOAD_BYTES": str(LONGEST_UPLOAD)}
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "services.model_storage"]
    healthy = answers(f"http://127.0.0.1:{port}/health/live")
    with running(command, log, healthy, MODEL_STORAGE_PORT=str(port), **environment) as started:
        found = Process(port, started.pid, log)
        with found.client("127.0.0.1", TOKEN) as client:
            client.post("/models/m/rollback", json={})  # what the first call ever loads is no matter of the body
        yield found


@pytest.mark.parametrize("length", [None, BODY], ids=["in chunks", "with its length"])
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/models/m/rollback", [], 401),
        ("/models/m/versions/0.0.1/promote", ["Authorization: Bearer wrong"], 401),
        ("/models/m/rollback", [f"Authorization: Bearer {READ_TOKEN}"], 403),
        ("/models/m/rollback", [BEARER], 413),
        ("/upload_new_version/", [], 401),
        ("/upload_new_version/", [f"Authorization: Bearer {READ_TOKEN}"], 403),
        ("/upload_new_version/", [BEARER], 400),
        ("/no/such/path", [], 404),
        ("/health/live", [], 405),
    ],
)
def test_a_body_that_is_not_wanted_takes_no_memory_and_is_refused_before_all_of_it_was_sent(
    process: Process, path: str, headers: list[str], status: int, length: int | None
) -> None:
    before = peak_memory(process.pid)
    answer = flood(process.port, path, BODY, *headers, length=length)
    assert answer.status == status
    assert answer.sent < 32 * MIB  # what fits into the buffers of both sides' sockets
    assert peak_memory(process.pid) - before < 30 * MIB


def test_a_content_length_that_lies_gives_no_more_than_it_says(process: Process) -> None:
    before = peak_memory(process.pid)
    assert flood(process.port, "/models/m/rollback", BODY, BEARER, length=10).status in (400, 422)
    assert peak_memory(process.pid) - before < 30 * MIB


def test_an_upload_of_100_mb_is_published(process: Process) -> None:
    archive = model_zip("large", 2.0, **{"weights.bin": os.urandom(100 * MIB)})
    with process.client("127.0.0.1", TOKEN) as client:
        files = {"src_file": ("model_onnx.zip", archive)}
        reply = client.post("/upload_new_version/", files=files, data={"model_name": "large"})
        assert reply.json() == {"version": "0.0.1"}
        files_of = client.get("/models/large/versions/0.0.1").json()["files"]
    assert files_of["weights.bin"]["size"] == 100 * MIB


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("where", ["in the file", "after the form"])
def test_an_upload_that_is_too_long_is_413(process: Process, where: str, chunked: bool) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="src_file"; filename="a.zip"\r\n\r\n'
    much = b"y" * (LONGEST_UPLOAD + 2 * MIB)
    form = head + (much + b"\r\n--x--\r\n" if where == "in the file" else b"y\r\n--x--\r\n" + much)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(form), MIB):
            yield form[start : start + MIB]

    with process.client("127.0.0.1", TOKEN) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        reply = client.post("/upload_new_version/", content=pieces() if chunked else form, headers=headers)
    assert (reply.status_code, set(reply.json())) == (413, {"detail"})
    assert peak_memory(process.pid) < 400 * MIB


def test_the_eleventh_wrong_token_of_a_client_is_429_and_no_one_else_is_affected(process: Process) -> None:
    with (
        process.client("127.0.0.11", "a token that is wrong") as guesser,
        process.client("127.0.0.12", "a token that is wrong") as another,
        process.client("127.0.0.11", TOKEN) as right,
    ):
        assert [guesser.get("/models").status_code for _ in range(10)] == [401] * 10
        refused = guesser.post("/models/m/rollback", json={})
        assert (refused.status_code, 1 <= int(refused.headers["Retry-After"]) <= 60) == (429, True)
        assert "too many failed logins" in refused.json()["detail"]
        assert another.get("/models").status_code == 401
        assert right.get("/models").status_code == 200
    lines = [line for line in process.log.read_text().splitlines() if "failed login from 127.0.0.11" in line]
    assert (len(lines), lines[-1].endswith("POST /models/{model}/rollback")) == (11, True)
    assert "token that is wrong" not in process.log.read_text()
