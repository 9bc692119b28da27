"""A disk that is full in the middle of an upload: a real one, of a few MiB, in a mount namespace of its own."""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.settings import HOST
from tests.services.model_storage.support import TOKEN, model_zip, wait_for, zip_of
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[3]
MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A service whose repository has 8 MiB; it needs neither PostgreSQL nor Triton to publish."""
    if subprocess.run([*MOUNT, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not allow mount namespaces (unshare --user --mount)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "MODEL_STORAGE_REPOSITORY": folder,
            "MODEL_STORAGE_DATABASE_URL": f"postgresql://nobody@{HOST}:1/none",
            "MODEL_STORAGE_TRITON_GRPC": f"{HOST}:1",
            "MODEL_STORAGE_TOKENS": json.dumps({"publisher": {"token": TOKEN, "scopes": ["read", "publish"]}}),
            "MODEL_STORAGE_PORT": str(port),
        }
        mount = f"mount -t tmpfs -o size=8m tmpfs {folder} && exec {sys.executable} -m services.model_storage"
        process = subprocess.Popen([*MOUNT, "sh", "-c", mount], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://{HOST}:{port}", headers=headers, timeout=30) as opened:
            try:
                wait_for(lambda: process.poll() is not None or _lives(opened))
                yield opened
            finally:
                process.terminate()
                process.wait(20)


def _lives(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").is_success
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    ("megabytes", "compression"),
    [(10, zipfile.ZIP_STORED), (5, zipfile.ZIP_DEFLATED)],
    ids=["while it is received", "while it is unpacked"],
)
def test_an_upload_that_fills_the_disk_is_a_507_and_frees_it_again(
    client: httpx.Client, megabytes: int, compression: int
) -> None:
    def upload(archive: bytes) -> httpx.Response:
        return client.post("/upload_new_version/", files={"src_file": archive}, data={"model_name": "digits"})

    too_big = zip_of({"model.plan": os.urandom(megabytes << 20)}, compression)
    for _ in range(3):
        reply = upload(too_big)
        assert (reply.status_code, "full" in reply.json()["detail"]) == (507, True)
    assert client.get("/models").json() == []
    assert upload(model_zip("digits", 2.0)).json() == {"version": "0.0.1"}
    assert upload(zip_of({"model.plan": os.urandom(5 << 20)}, zipfile.ZIP_STORED)).json() == {"version": "0.0.2"}
