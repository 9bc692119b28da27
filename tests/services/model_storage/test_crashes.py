"""kill -9 at every stage of an upload and of a promotion: the next start finds or makes everything whole."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.settings import HOST
from local.triton import TritonServer
from services.model_storage.settings import Settings
from tests.services.model_storage.crashing import PROMOTION, UPLOAD
from tests.services.model_storage.support import (
    TOKEN,
    Database,
    Storage,
    model_zip,
    running_triton,
    serving,
    settings_for,
    wait_for,
)
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[3]
QUICK = {
    "while it is received", "after the rename", "while the record is written",
    "before the configuration", "after the load", "before the row",
}  # fmt: skip


def points(found: Iterable[str]) -> list[Any]:
    """Return the points of a test: one before, in and after what cannot be undone, the others marked as slow."""
    assert UPLOAD.keys() | PROMOTION.keys() >= QUICK
    return [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in found]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with running_triton(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture(scope="module")
def settings(database: Database, triton: TritonServer) -> Settings:
    return settings_for(triton, database.new())


@contextmanager
def doomed(point: str, settings: Settings) -> Iterator[httpx.Client]:
    """Run a service that kills itself at `point`; check in the end that it did."""
    port = free_port()
    values = settings.model_dump(mode="json", include={"repository", "database_url", "triton_grpc", "triton_key_file"})
    environment = os.environ | {f"MODEL_STORAGE_{key.upper()}": value for key, value in values.items()}
    environment |= {
        "MODEL_STORAGE_PORT": str(port),
        "MODEL_STORAGE_TOKENS": json.dumps(settings.model_dump()["tokens"]),
    }
    command = [sys.executable, "-m", "tests.services.model_storage.crashing", point]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[0].decode()
        try:
            return httpx.get(f"http://{HOST}:{port}/health/live").is_success
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers)
        with httpx.Client(
            base_url=f"http://{HOST}:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        ) as client:
            yield client
        assert process.wait(10) == -9, "the service did not reach the point"
    finally:
        process.kill()
        process.communicate()


def check_whole(storage: Storage) -> None:
    """Check what must hold after every start."""
    store, catalog = storage.service.store, storage.service.catalog
    assert list((storage.repository / ".incoming").iterdir()) == []
    served = storage.service.fleet.servers[0].served()
    for model in catalog.models():
        records = catalog.versions(model)
        assert (storage.repository / model / "config.pbtxt").exists()
        assert [str(record.triton_version) for record in sorted(records, key=lambda r: r.triton_version)] == sorted(
            store.folders(model), key=int
        )
        for record in records:
            folder = storage.repository / record.folder
            assert json.loads((folder / "meta.json").read_text()) == record.meta
            for name, file in record.files.items():
                if name not in ("meta.json", "config.pbtxt"):  # the service writes into these
                    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file.sha256
        champion = storage.service.history.champion(model)
        assert served.get(model, []) == ([champion.triton_version] if champion else [])
    assert not any(name.endswith("__candidate") for name in store.folders() if name not in served)


@pytest.mark.parametrize("point", points(UPLOAD))
def test_an_upload_that_is_killed_is_there_whole_or_not_at_all(
    triton: TritonServer, settings: Settings, model: str, point: str
) -> None:
    archive = model_zip(model, 2.0)
    with doomed(point, settings) as client, pytest.raises(httpx.TransportError):
        client.post("/upload_new_version/", files={"src_file": archive}, data={"model_name": model})
    with serving(triton, settings) as storage:
        check_whole(storage)
        assert storage.upload(model, archive).json()["version"] == "0.0.1", "the retry finds it, or makes it"
        assert len(storage.client.get(f"/models/{model}/versions").json()) == 1
        assert storage.promote(model, "0.0.1").status_code == 200
        assert storage.scale_served(model) == 2.0


@pytest.mark.parametrize("point", points(PROMOTION))
def test_after_a_promotion_that_is_killed_the_history_tells_what_triton_serves(
    triton: TritonServer, settings: Settings, model: str, point: str
) -> None:
    with serving(triton, settings) as storage:
        storage.promote(model, storage.published(model, 2.0))
        storage.published(model, 3.0)
    call = "stage" if "candidate" in point else "promote"
    with doomed(point, settings) as client, pytest.raises(httpx.TransportError):
        client.post(f"/models/{model}/versions/0.0.2/{call}")
    with serving(triton, settings) as storage:
        check_whole(storage)
        champion = storage.client.get(f"/models/{model}/champion").json()["version"]
        assert champion == ("0.0.2" if point == "after the row" else "0.0.1")
        assert storage.scale_served(model) == {"0.0.1": 2.0, "0.0.2": 3.0}[champion]
        assert storage.promote(model, "0.0.2").status_code == 200
        assert storage.scale_served(model) == 3.0
