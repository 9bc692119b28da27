"""The cluster of docker/cluster.yaml, under a project name of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local.base_images import images, usable
from tests.support import servers
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
PORTS = (
    "AIRFLOW", "MLFLOW", "MODEL_STORAGE", "COLLECT", "POSTGRES", "REDIS", "TRITON", "TRITON_GRPC", "TRITON_METRICS",
)  # fmt: skip


@dataclass
class Cluster:
    """A running cluster: Airflow's REST API, the engine, and the values of its `.env`."""

    project: str
    folder: Path
    values: dict[str, str]
    engine: Any
    airflow: Airflow

    @property
    def marks(self) -> Path:
        """The folder that jobs for tests see as /marks."""
        return self.folder / "marks"

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` on this cluster; return what it printed."""
        return compose(self.project, self.folder, *arguments)

    def job(self, task_id: str, dag_id: str = "retrain_digits", running: bool = True) -> Any:
        """Return the newest job container of a task, once there is one."""
        labels = [f"nightshift.dag_id={dag_id}", f"nightshift.task_id={task_id}"]

        def newest() -> Any:
            found = self.engine.containers.list(all=not running, filters={"label": labels})
            return found[0] if found else None

        return wait_for(newest, f"a job of {task_id}", 120)

    def url(self, name: str) -> str:
        """Return the address of a service on this machine."""
        return f"http://127.0.0.1:{self.values[f'NIGHTSHIFT_{name}_PORT']}"


def compose(project: str, folder: Path, *arguments: str) -> str:
    """Run `docker compose` on the cluster whose `.env` lies in `folder`."""
    files = ["--file", "docker/cluster.yaml", "--file", "tests/containers/cluster_override.yaml"]
    environments = ["--env-file", "docker/versions.env", "--env-file", str(folder / "env")]
    command = ["docker", "compose", "--project-name", project, "--project-directory", str(ROOT)]
    done = subprocess.run(
        [*command, *files, *environments, *arguments], cwd=ROOT, capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Return the environment without what would override the files."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTSHIFT_", "COMPOSE_"))}


def write_env(folder: Path, s3: str | None = None) -> dict[str, str]:
    """Make the cluster's `.env` with docker/secrets, and free ports; with the bottle in `s3`, else in a volume."""
    file = folder / "env"
    if s3:  # another S3 than the cluster's own, as docs/gpu-workers.md says
        file.write_text(f"COMPOSE_PROFILES=demo,serving-cpu\nS3_ENDPOINT={s3}\n")
    bottle = "s3" if s3 else "volume"
    command = [sys.executable, str(ROOT / "docker" / "secrets"), "--bottle", bottle, "--demo", "--file", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    added = {f"NIGHTSHIFT_{name}_PORT": str(servers.free_port()) for name in PORTS} | {
        "NIGHTSHIFT_HEARTBEAT_TIMEOUT": "20",
        "NIGHTSHIFT_API_WORKERS": "1",
        "TEST_JOBS": str(ROOT / "tests" / "plugins" / "jobs_for_tests"),
        "TEST_MARKS": str(folder / "marks"),
        **{name: usable(image) for name, image in images().items()},  # stand-ins, where there is no registry
    }
    with file.open("a") as handle:
        handle.writelines(f"{name}={value}\n" for name, value in added.items())
    lines = [line.split("=", 1) for line in file.read_text().splitlines() if "=" in line]
    return dict(lines)


@contextmanager
def cluster(folder: Path, engine: Any, s3: str) -> Iterator[Cluster]:
    """Run a cluster with its bottle and MLflow's artifacts in `s3` until the block ends; nothing of it is left then."""
    project = f"nightshift-test-{uuid.uuid4().hex[:6]}"
    (folder / "marks").mkdir()
    (folder / "marks").chmod(0o777)  # jobs are not root
    values = write_env(folder, s3)
    try:
        compose(project, folder, "up", "--detach", "--wait")
        with airflow_of(folder, values) as airflow:
            yield Cluster(project, folder, values, engine, airflow)
    finally:
        if os.environ.get("NIGHTSHIFT_KEEP_LOGS"):
            Path(os.environ["NIGHTSHIFT_KEEP_LOGS"]).write_text(compose(project, folder, "logs", "--no-color"))
        for container in engine.containers.list(all=True, filters={"network": f"{project}_default"}):
            if container.labels.get("nightshift") == "job":
                container.remove(force=True, v=True)
        compose(project, folder, "down", "--volumes", "--timeout", "3")


@contextmanager
def airflow_of(folder: Path, values: dict[str, str]) -> Iterator[Airflow]:
    """Log in to a running cluster's Airflow."""
    url = f"http://127.0.0.1:{values['NIGHTSHIFT_AIRFLOW_PORT']}"
    credentials = {"username": "admin", "password": values["AIRFLOW_ADMIN_PASSWORD"]}
    token = httpx.post(f"{url}/auth/token", json=credentials, timeout=30).json()["access_token"]
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        yield Airflow(url, ROOT, folder, "", client)


def infer(cluster: Cluster, model: str) -> list[float]:
    """Return what Triton answers for one black picture."""
    url = f"{cluster.url('TRITON')}/v2/models/{model}"
    meta = httpx.get(url, timeout=30).json()
    shape = [1, *(side if side > 0 else 1 for side in meta["inputs"][0]["shape"][1:])]
    count = 1
    for side in shape:
        count *= side
    inputs = [{"name": meta["inputs"][0]["name"], "shape": shape, "datatype": "FP32", "data": [0.0] * count}]
    answer = httpx.post(f"{url}/infer", content=json.dumps({"inputs": inputs}), timeout=30)
    assert answer.is_success, answer.text
    found: list[float] = answer.json()["outputs"][0]["data"]
    return found
