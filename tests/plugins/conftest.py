"""What the tests of Airflow's side share."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins"))  # as Airflow does
pytest.register_assert_rewrite("tests.plugins.launcher_conformance")
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")  # importing Airflow writes its configuration

from tests.plugins.homes import make_home  # noqa: E402
from tests.support.airflow import Airflow  # noqa: E402
from tests.support.airflow import airflow as run_airflow  # noqa: E402
from tests.support.kubernetes_api import Cluster, Image, kubernetes_api, role_rules  # noqa: E402

PASSWORD = "kuchen-und-tee-5551"
JOB_IMAGE = "registry/jobs:1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in miniature that `NIGHTSHIFT_HOME` names, its state beside it."""
    folder = make_home(tmp_path / "home")
    monkeypatch.setenv("NIGHTSHIFT_HOME", str(folder))
    monkeypatch.setenv("NIGHTSHIFT_STATE", str(tmp_path / "state"))
    return folder


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The folder where jobs leave their marks."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A double of a Kubernetes cluster, in which this process is a worker with the Role of docs/scaling.md."""
    from nightshift.launchers import kubernetes

    images = {JOB_IMAGE: Image(ROOT / ".venv" / "jobs" / "bin", home)}
    rules = role_rules((ROOT / "docs" / "scaling.md").read_text())
    with kubernetes_api(tmp_path / "cluster", images, rules) as running:
        monkeypatch.setattr(kubernetes, "ACCOUNT", running.account)
        monkeypatch.setattr(kubernetes, "POLL_SECONDS", 0.05)
        monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", "kubernetes")
        monkeypatch.setenv("NIGHTSHIFT_KUBERNETES", json.dumps({"images": {"jobs_for_tests": JOB_IMAGE}}))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(running.port))
        yield running


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Airflow]:
    """A real Airflow with the DAGs of `dags_for_tests.py` and of the pipeline files in `<home>/configs/pipelines`."""
    folder = tmp_path_factory.mktemp("airflow")
    home = make_home(folder / "home")
    (home / "dags" / "dags_for_tests.py").symlink_to(ROOT / "tests" / "plugins" / "dags_for_tests.py")
    (home / "dags" / "retrain.py").symlink_to(ROOT / "dags" / "retrain.py")
    collect = {"url": "http://127.0.0.1:9", "files_url": "http://127.0.0.1:9"}
    connections = {
        "COLLECT": {"conn_type": "generic", "login": "someone", "password": PASSWORD, "extra": collect},
        "MLFLOW": {"conn_type": "generic", "extra": {}},
    }
    environment = {f"AIRFLOW_CONN_NIGHTSHIFT_{name}": json.dumps(value) for name, value in connections.items()}
    environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = "admin:admin,guest:viewer"
    with run_airflow(home, folder / "state", postgres_url, **environment) as running:
        yield running
