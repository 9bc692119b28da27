"""Servers that several folders of tests use: started once a session, at first use."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import servers

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see jobkit.job.main


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server: the address of its database `postgres`."""
    with servers.postgres(tmp_path_factory.mktemp("database")) as url:
        yield url


@pytest.fixture
def database_url(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, named by `NIGHTSHIFT_DATABASE_URL`."""
    import psycopg2

    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    url = f"{postgres_url.rpartition('/')[0]}/{name}"
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", url)
    return url


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server: its address."""
    with servers.mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def mlflow_url(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The MLflow server, named by `MLFLOW_TRACKING_URI`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


@dataclass(frozen=True)
class CollectServer:
    """A collect server and its folder."""

    url: str
    folder: Path


@pytest.fixture(scope="session")
def collect_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    """A collect server that all tests share: each uses groups of its own."""
    folder = tmp_path_factory.mktemp("collect") / "state"
    with servers.collect(folder, "someone", "a secret") as url:
        yield CollectServer(url, folder)


@pytest.fixture
def collect(collect_process: CollectServer, monkeypatch: pytest.MonkeyPatch) -> CollectServer:
    """The collect server, named by the environment."""
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_URL", collect_process.url)
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_FILES_URL", f"{collect_process.url}/files")
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_LOGIN", "someone")
    monkeypatch.setenv("NIGHTSHIFT_COLLECT_PASSWORD", "a secret")
    return collect_process


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server: its address."""
    with servers.s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def s3_bottle(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bottle on the S3 server, named by `NIGHTSHIFT_BOTTLE`."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NIGHTSHIFT_CACHE", str(tmp_path / "cache"))
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", f"s3://{bucket}/nightshift")
    return f"s3://{bucket}/nightshift"
