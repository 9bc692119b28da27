"""A real Airflow on a PostgreSQL: API server, scheduler with the LocalExecutor, and DAG processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg2

from local import airflow as stack
from local import processes
from local.settings import Settings
from nightshift_common.pools import pools
from tests.support import servers
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(ROOT / ".venv" / "airflow" / "bin" / "python")
FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}


@dataclass
class Airflow:
    """A running Airflow, and its REST API signed in as the admin."""

    url: str
    home: Path
    state: Path
    database: str
    client: httpx.Client

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Return the JSON that the API answers."""
        answer = self.client.request(method, f"/api/v2{path}", **arguments)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run as soon as the DAG is known; return its id."""
        wait_for(lambda: self.client.get(f"/api/v2/dags/{dag_id}").is_success, f"the DAG {dag_id}", 60)
        body = {"logical_date": None, "conf": conf}
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return a task instance."""
        found: dict[str, Any] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state of each task of a run."""
        found = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def finished(self, dag_id: str, run_id: str, seconds: float = 90) -> tuple[str, dict[str, str]]:
        """Wait for a run's end; return its state and those of its tasks."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}"
        wait_for(lambda: self.call("GET", path)["state"] in FINAL, f"the end of {dag_id} {run_id}", seconds)
        return self.call("GET", path)["state"], self.states(dag_id, run_id)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return what a task pushed; None where there is nothing."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self.client.get(path, params={"deserialize": True})
        return None if answer.status_code == 404 else answer.json()["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> str:
        """Return what the UI shows of a task's log."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        return "\n".join(
            str(line.get("event", line)) + " " + json.dumps(line) for line in self.call("GET", path)["content"]
        )


def signed(key: str, seconds: float = 600, algorithm: str = "HS512", **claims: str) -> str:
    """Return a JWT as Airflow makes them, signed with any key."""
    now = int(time.time())
    return jwt.encode({"iat": now - 600, "nbf": now - 600, "exp": now + seconds, **claims}, key, algorithm=algorithm)


@contextmanager
def airflow(home: Path, state: Path, postgres_url: str, **environment: str) -> Iterator[Airflow]:
    """Run Airflow for the checkout `home` until the block ends."""
    port = servers.free_port()
    base = postgres_url.rpartition("/")[0]
    _create_databases(postgres_url, f"airflow_{port}", f"nightshift_{port}")
    settings = Settings(state)
    url = f"http://127.0.0.1:{port}"
    database = json.dumps({"conn_type": "generic", "extra": {"url": f"{base}/nightshift_{port}"}})
    variables = _environment(settings, home, port, f"{base}/airflow_{port}") | {
        "AIRFLOW_CONN_NIGHTSHIFT_DATABASE": database,
        "AIRFLOW_CONN_NIGHTSHIFT_OPERATIONS": database,
        **environment,
    }
    logs = settings.folder("logs")
    _run("db", "migrate", log=logs / "migrate.log", environment=variables)
    with ExitStack() as parts:

        def start(part: str, healthy: Callable[[], bool]) -> None:
            command = [PYTHON, "-m", "airflow", part]
            parts.enter_context(servers.running(command, logs / f"{part}.log", healthy, **variables))

        start("scheduler", lambda: True)
        start("dag-processor", lambda: True)
        start("api-server", servers.answers(f"{url}/api/v2/version"))
        credentials = {"username": stack.ADMIN, "password": settings.secrets["airflow_admin"]}
        token = httpx.post(f"{url}/auth/token", json=credentials, timeout=30).json()["access_token"]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
            running = Airflow(url, home, state, f"{base}/nightshift_{port}", client)
            for name, pool in pools().items():
                running.call("POST", "/pools", json={"name": name, **pool})
            try:
                yield running
            finally:  # also the jobs that a test has left
                processes.stop(lambda: processes.of_stack(state), signal.SIGKILL)


def _environment(settings: Settings, home: Path, port: int, database: str) -> dict[str, str]:
    """Return the local stack's settings, for another checkout, database and port, and quicker to notice things."""
    before = dict(os.environ)
    os.environ["NIGHTSHIFT_AIRFLOW_PORT"] = str(port)
    for part in ("LOGS", "TRIGGER_LOGS"):
        os.environ[f"NIGHTSHIFT_AIRFLOW_{part}_PORT"] = str(servers.free_port())
    try:
        stack_variables = stack.environment(settings)
    finally:
        os.environ.clear()
        os.environ.update(before)
    variables = {name: value for name, value in stack_variables.items() if not name.startswith("AIRFLOW_CONN_")}
    return variables | {
        processes.MARK: str(settings.state),
        "SPT_NOENV": "1",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.replace("postgresql://", "postgresql+psycopg2://"),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "1",
        "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
        "NIGHTSHIFT_HOME": str(home),
    }


def _create_databases(url: str, *names: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"CREATE DATABASE {name}")
    connection.close()


def _run(*command: str, log: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [PYTHON, "-m", "airflow", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, log.read_text()
