"""The command that makes `.env`; it needs no engine, only a socket."""

from __future__ import annotations

import base64
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.containers.cluster import ROOT


@pytest.fixture
def engine_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield path


def make(file: Path, *arguments: str, engine: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docker" / "secrets"), "--file", str(file), *arguments]
    environment = {**os.environ, "DOCKER_SOCKET": str(engine)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def values(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


def test_every_secret_is_generated_kept_and_its_owner_s_alone(tmp_path: Path, engine_socket: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second):
        assert make(file, engine=engine_socket).returncode == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = [name for name in values(first) if name.endswith(("PASSWORD", "TOKEN", "_KEY", "_SECRET"))]
    assert len(secret) >= 14
    assert all(len(values(first)[name]) >= 16 for name in secret)
    assert not [name for name in secret if values(first)[name] == values(second)[name]]
    assert values(first)["NIGHTSHIFT_BOTTLE"].startswith("s3://")
    before = values(first)
    kept = {name: value for name, value in before.items() if name != "MLFLOW_PASSWORD"}
    first.write_text("".join(f"{name}={value}\n" for name, value in {**kept, "MY_OWN": "kept"}.items()))
    assert make(first, engine=engine_socket).returncode == 0
    after = values(first)
    assert {name: after[name] for name in kept} == kept and after["MY_OWN"] == "kept"
    assert after["MLFLOW_PASSWORD"] not in ("", before["MLFLOW_PASSWORD"])


def test_the_key_that_signs_packages_fits_the_one_that_is_trusted_and_a_worker_s_host_has_neither(
    tmp_path: Path, engine_socket: Path
) -> None:
    assert make(tmp_path / "env", engine=engine_socket).returncode == 0
    found = values(tmp_path / "env")
    base64.b64decode(found["SIGNING_KEY"], validate=True)
    pem = f"-----BEGIN PRIVATE KEY-----\n{found['SIGNING_KEY']}\n-----END PRIVATE KEY-----\n"  # as the job reads it
    private = load_pem_private_key(pem.encode(), None)
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.b64decode(found["SIGNING_PUBLIC_KEYS"], validate=True) == public
    assert private.public_key().curve.name == "secp256r1"
    assert make(tmp_path / "env", engine=engine_socket).returncode == 0
    assert values(tmp_path / "env") == found
    make(tmp_path / "worker", "--worker", "10.0.0.5", engine=engine_socket)
    assert not [name for name in values(tmp_path / "worker") if "SIGNING" in name]


def test_a_worker_s_host_gets_only_what_it_needs_and_is_told_what_to_copy(tmp_path: Path, engine_socket: Path) -> None:
    done = make(tmp_path / "env", "--worker", "10.0.0.5", engine=engine_socket)
    assert done.returncode == 1
    assert "copy the values of AIRFLOW_SECRET_KEY, REDIS_PASSWORD from" in done.stderr
    found = values(tmp_path / "env")
    assert found["NIGHTSHIFT_API_URL"] == "http://10.0.0.5:8080"
    secret = [name for name in found if name.endswith(("PASSWORD", "TOKEN", "_KEY", "_SECRET"))]
    assert sorted(secret) == ["AIRFLOW_SECRET_KEY", "REDIS_PASSWORD"]


def test_a_worker_s_host_that_has_more_of_the_cluster_s_secrets_is_told_to_remove_them(
    tmp_path: Path, engine_socket: Path
) -> None:
    """As one does that an earlier release has set up, or to which the whole file was copied."""
    file = tmp_path / "env"
    file.write_text("AIRFLOW_SECRET_KEY=a\nREDIS_PASSWORD=b\nAIRFLOW_JWT_SECRET=c\nMODEL_STORAGE_DEPLOY_TOKEN=d\n")
    done = make(file, "--worker", "10.0.0.5", engine=engine_socket)
    assert done.returncode == 1
    assert "remove AIRFLOW_JWT_SECRET, MODEL_STORAGE_DEPLOY_TOKEN from" in done.stderr
    file.write_text("AIRFLOW_SECRET_KEY=a\nREDIS_PASSWORD=b\n")
    assert make(file, "--worker", "10.0.0.5", engine=engine_socket).returncode == 0


def test_a_host_without_an_engine_is_told_so(tmp_path: Path) -> None:
    done = make(tmp_path / "env", engine=tmp_path / "nothing")
    assert done.returncode == 1 and "there is no socket" in done.stderr
    assert not (tmp_path / "env").exists()
