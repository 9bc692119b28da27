"""A real PostgreSQL, a real Triton on the CPU, and the service as a server on the loopback interface."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psycopg2
import tritonclient.http
import uvicorn

from local import postgres
from local.settings import HOST
from local.triton import TritonServer
from services.model_storage.api.app import create_app
from services.model_storage.service import Service
from services.model_storage.settings import Settings
from tests.support import waiting
from tests.support.servers import free_port, free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model

TOKEN = "a token for everything"
READ_TOKEN = "a token for reading only"
PUBLISH_TOKEN = "a token to publish with"
PASSWORD = "secret"


def wait_for(condition: Callable[[], object]) -> None:
    """Return once `condition()` is true."""
    waiting.wait_for(condition, str(condition))


class Database:
    """A PostgreSQL server that a test may stop and start again."""

    def __init__(self, folder: Path) -> None:
        self.data, self.port = folder / "postgres", free_port()
        self.url = f"postgresql://postgres:{PASSWORD}@{HOST}:{self.port}/postgres"
        postgres.initialize(self.data, PASSWORD)
        self._process: subprocess.Popen[bytes] | None = None
        self._free: list[str] = []

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [*postgres.command(self.data, self.port), "--fsync=off"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: postgres.answers(self.url))

    def stop(self) -> None:
        """Stop it at once, cutting every connection."""
        if self._process is not None:
            self._process.send_signal(postgres.STOP_SIGNAL)
            self._process.wait(20)
            self._process = None

    @property
    def is_running(self) -> bool:
        """Whether it was started."""
        return self._process is not None

    def lend(self) -> str:
        """Return the address of an empty database."""
        return self._free.pop() if self._free else self.new()

    def take_back(self, url: str) -> None:
        """Empty a database that was lent."""
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA IF EXISTS model_storage CASCADE")
        connection.close()
        self._free.append(url)

    def new(self) -> str:
        """Make a fresh database and return its address."""
        name = f"t{uuid.uuid4().hex}"
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return self.url.rsplit("/", 1)[0] + f"/{name}"


def new_triton(folder: Path) -> TritonServer:
    """Return a Triton, not started, on the repository `folder/models`."""
    return TritonServer(folder / "models", folder / "state", *free_ports(3), log=folder / "triton.log")


@contextmanager
def running_triton(folder: Path) -> Iterator[TritonServer]:
    """Yield a Triton that is ready, on the repository `folder/models`."""
    server = new_triton(folder)
    server.start()
    server.wait_ready()
    try:
        yield server
    finally:
        server.stop(0.1)


class Storage:
    """A running service with what it works on, and a client with every right."""

    def __init__(self, service: Service, url: str, triton: TritonServer) -> None:
        self.service, self.url, self.triton = service, url, triton
        self.repository = triton.repository
        self.client = httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"})

    def upload(self, model: str, archive: bytes, version: str | None = None, **fields: str) -> httpx.Response:
        """Send an archive as the clients of the older model storage do."""
        form = {"model_name": model, **fields} | ({"model_version": version} if version else {})
        return self.client.post("/upload_new_version/", files={"src_file": ("model_onnx.zip", archive)}, data=form)

    def published(self, model: str, scale: float) -> str:
        """Publish a model that multiplies by `scale`; return its version."""
        reply = self.upload(model, model_zip(model, scale))
        assert reply.status_code == 200, reply.text
        return str(reply.json()["version"])

    def promote(self, model: str, version: str, **note: str) -> httpx.Response:
        """Bring a version into production."""
        return self.client.post(f"/models/{model}/versions/{version}/promote", json=note)

    def scale_served(self, model: str) -> float:
        """Ask Triton what the served model multiplies by."""
        return ask_scale(self.triton, model)


def ask_scale(triton: TritonServer, model: str) -> float:
    """Send ones to a scaling model; return what they became."""
    with tritonclient.http.InferenceServerClient(triton.http) as client:
        tensor = tritonclient.http.InferInput("input", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        return float(client.infer(model, [tensor]).as_numpy("output")[0, 0])


def zip_of(files: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of `files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def model_zip(model: str, scale: float, **more: bytes | str) -> bytes:
    """Return the archive of a model that multiplies by `scale`."""
    meta = json.dumps({"num2label": {"0": "zero"}, "scale": scale})
    files = {"model.onnx": scaling_model(scale), "meta.json": meta, "config.pbtxt": scaling_config(model)}
    return zip_of(files | more)


def settings_for(triton: TritonServer, database_url: str, **more: object) -> Settings:
    """Return settings for a service on the repository of `triton`."""
    values = {
        "repository": str(triton.repository),
        "database_url": database_url,
        "triton_grpc": triton.grpc,
        "triton_key_file": str(triton.key_file),
        "tokens": {
            "everything": {"token": TOKEN, "scopes": ["read", "publish", "promote", "delete", "report"]},
            "reader": {"token": READ_TOKEN, "scopes": ["read"]},
            "publisher": {"token": PUBLISH_TOKEN, "scopes": ["read", "publish"]},
        },
        "watch_seconds": 3600,
    }
    return Settings(**(values | more))


@contextmanager
def serving(triton: TritonServer, settings: Settings) -> Iterator[Storage]:
    """Run the service in a thread of this process, behind a real server."""
    service = Service(settings)
    server = uvicorn.Server(uvicorn.Config(create_app(service), host=HOST, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        storage = Storage(service, f"http://{HOST}:{port}", triton)
        yield storage
        storage.client.close()
    finally:
        server.should_exit = True
        thread.join(20)
