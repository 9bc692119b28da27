"""Airflow stand-alone on the embedded PostgreSQL: its environment, and the few REST calls that the stack makes."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import httpx

from local.settings import HOST, ROOT, LocalStackError, Settings
from local.signing import private_key
from nightshift_common.patience import patience
from nightshift_common.pools import pools
from nightshift_common.storage_tokens import OPERATOR, TOKENS

HEARTBEAT_SECONDS = 5
ADMIN = "admin"


def environment(settings: Settings) -> dict[str, str]:
    """Return what Airflow's processes get: its configuration, and the connections that jobs use."""
    home = settings.folder("airflow")
    secrets = settings.secrets
    passwords = home / "passwords.json"
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({ADMIN: secrets["airflow_admin"]}))
    bundles = [
        {"name": "dags-folder", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": {}},
        {"name": "pipelines", "classpath": "nightshift.pipelines.bundle.PipelineBundle", "kwargs": {}},
    ]
    sections: dict[str, dict[str, object]] = {
        "CORE": {
            "EXECUTOR": "LocalExecutor",
            "PARALLELISM": 4,  # each idle worker holds about 130 MB
            "LOAD_EXAMPLES": False,
            "DAGS_FOLDER": ROOT / "dags",
            "PLUGINS_FOLDER": ROOT / "plugins",
            "DAGS_ARE_PAUSED_AT_CREATION": False,
            "FERNET_KEY": secrets["airflow_fernet"],
            "EXECUTION_API_SERVER_URL": f"{settings.url('airflow')}/execution/",
            "SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        },
        "DATABASE": {"SQL_ALCHEMY_CONN": settings.database_url("airflow", "+psycopg2")},
        "DAG_PROCESSOR": {
            "DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "REFRESH_INTERVAL": 10,
            "MIN_FILE_PROCESS_INTERVAL": 15,
        },
        "SCHEDULER": {
            "SCHEDULER_IDLE_SLEEP_TIME": 0.1,  # the hop between two tasks is this sleep: 1 s by default
            "TASK_INSTANCE_HEARTBEAT_SEC": HEARTBEAT_SECONDS,
            "TASK_INSTANCE_HEARTBEAT_TIMEOUT": 6 * HEARTBEAT_SECONDS,  # how long a dead worker goes unnoticed
            "TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": HEARTBEAT_SECONDS,
            # Tasks of a scheduler that was killed are taken over once it counts as dead, looked for this often.
            "SCHEDULER_HEALTH_CHECK_THRESHOLD": 4 * HEARTBEAT_SECONDS,
            "ORPHANED_TASKS_CHECK_INTERVAL": 2 * HEARTBEAT_SECONDS,
        },
        "API": {
            "HOST": HOST,
            "PORT": settings.port("airflow"),
            "WORKERS": 1,
            "BASE_URL": settings.url("airflow"),
            "SECRET_KEY": secrets["airflow_api"],
        },
        # While the API server starts, or starts again, tasks that the scheduler has started already wait for it: about
        # four minutes, where the default gives up after half a minute and takes a try.
        "WORKERS": {
            "EXECUTION_API_RETRIES": 12,
            "EXECUTION_API_RETRY_WAIT_MIN": 1,
            "EXECUTION_API_RETRY_WAIT_MAX": 30,
        },
        "API_AUTH": {"JWT_SECRET": secrets["airflow_jwt"]},
        "LOGGING": {
            "WORKER_LOG_SERVER_PORT": settings.port("airflow_logs"),
            "TRIGGER_LOG_SERVER_PORT": settings.port("airflow_trigger_logs"),
        },
        "STATE_STORE": {"CLEAR_ON_SUCCESS": True},  # a task that is cleared after success runs again
        "USAGE_DATA_COLLECTION": {"ENABLED": False},
    }
    configured = {f"AIRFLOW__{s}__{k}": str(v) for s, options in sections.items() for k, v in options.items()}
    bin_folder = ROOT / ".venv" / "airflow" / "bin"
    return {
        **configured,
        **connections(settings),
        "AIRFLOW_HOME": str(home),
        "NIGHTSHIFT_HOME": str(ROOT),
        "PYTHONPATH": str(ROOT),  # nightshift_common
        "NIGHTSHIFT_STATE": str(settings.state),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def connections(settings: Settings) -> dict[str, str]:
    """Return the connections of docs/architecture.md as Airflow's environment variables."""
    storage = {"url": settings.url("model_storage")}
    values: dict[str, dict[str, Any]] = {
        "bottle": {"conn_type": "generic", "extra": {"root": str(settings.folder("bottle"))}},
        "database": {"conn_type": "generic", "extra": {"url": settings.database_url("nightshift")}},
        "operations": {"conn_type": "generic", "extra": {"url": settings.database_url("operations")}},
        "mlflow": {"conn_type": "generic", "extra": {"url": settings.url("mlflow"), "ui": settings.url("mlflow")}},
        "collect": {
            "conn_type": "generic",
            "login": "nightshift",
            "password": settings.secrets["collect"],
            "extra": {"url": settings.url("collect"), "files_url": f"{settings.url('collect')}/files"},
        },
        **{
            f"storage_{token}": {
                "conn_type": "generic",
                "password": settings.secrets[f"model_storage_{token}"],
                "extra": storage,
            }
            for token in TOKENS
            if token != OPERATOR
        },
        "triton": {"conn_type": "generic", "extra": {"url": f"{HOST}:{settings.port('triton')}"}},
        "signing": {"conn_type": "generic", "password": private_key(settings).read_text()},
    }
    return {f"AIRFLOW_CONN_NIGHTSHIFT_{name.upper()}": json.dumps(value) for name, value in values.items()}


def is_healthy(settings: Settings) -> bool:
    """Whether every component says that it is healthy (the stand-alone banner leaves out the API server)."""
    try:
        url = f"{settings.url('airflow')}/api/v2/monitor/health"
        health = httpx.get(url, timeout=patience(5), verify=False, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    return all((health.get(part) or {}).get("status") == "healthy" for part in parts)


class AirflowApi:
    """Airflow's REST API, signed in as the admin."""

    def __init__(self, settings: Settings) -> None:
        self.base = settings.url("airflow")
        self.client = httpx.Client(base_url=f"{self.base}/api/v2", timeout=patience(30))
        credentials = {"username": ADMIN, "password": settings.secrets["airflow_admin"]}
        try:
            answer = httpx.post(f"{self.base}/auth/token", json=credentials, timeout=patience(30))
        except httpx.TransportError as error:
            raise LocalStackError(f"Airflow does not answer on {self.base}: {error}") from error
        answer.raise_for_status()
        self.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self.client.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise LocalStackError(f"Airflow did not answer to {method} {path}: {error}") from error
        if answer.is_error:
            raise LocalStackError(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found

    def wait_for_dag(self, dag_id: str, seconds: float = 60) -> None:
        """Wait until Airflow has parsed the DAG; say what is wrong with it if it does not come."""
        started = time.monotonic()
        while self.client.get(f"/dags/{dag_id}").status_code != 200:
            if (waited := time.monotonic() - started) > patience(seconds):
                errors = self._call("GET", "/importErrors")["import_errors"]
                found = "\n".join(f"{error['filename']}: {error['stack_trace']}" for error in errors)
                raise LocalStackError(
                    f"Airflow shows no DAG {dag_id} after {waited:.0f} s.\n{found or 'No import errors.'}"
                )
            time.sleep(0.3)
        self._call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a run by hand; return its id."""
        return str(
            self._call("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})["dag_run_id"]
        )

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return `queued`, `running`, `success` or `failed`."""
        return str(self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def unfinished_runs(self, dag_id: str) -> list[str]:
        """Return the runs that have begun or wait for their turn, the first that came first."""
        query = {"state": ["running", "queued"], "order_by": "run_after", "limit": 100}
        return [
            str(row["dag_run_id"]) for row in self._call("GET", f"/dags/{dag_id}/dagRuns", params=query)["dag_runs"]
        ]

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the run's task instances."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 200})
        instances: list[dict[str, Any]] = found["task_instances"]
        return instances

    def make_pools(self) -> None:
        """Make the pools that tasks may ask for; those that are there keep their slots."""
        there = {pool["name"] for pool in self._call("GET", "/pools", params={"limit": 100})["pools"]}
        for name, pool in pools().items():
            if name not in there:
                self._call("POST", "/pools", json={"name": name, **pool})

    def task_order(self, dag_id: str) -> list[str]:
        """Return the DAG's tasks, each after the ones that it waits for."""
        tasks = {
            t["task_id"]: set(t["downstream_task_ids"]) for t in self._call("GET", f"/dags/{dag_id}/tasks")["tasks"]
        }
        ordered: list[str] = []
        while tasks:
            waiting = set().union(*tasks.values())
            ready = sorted(set(tasks) - waiting) or sorted(tasks)
            ordered += ready
            for task in ready:
                del tasks[task]
        return ordered

    def result(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return what a task's job returned; empty where there is nothing."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        answer = self.client.get(path)
        if answer.status_code == 404:
            return {}
        answer.raise_for_status()
        value = answer.json()["value"]
        found: dict[str, Any] = json.loads(value) if isinstance(value, str) else value
        return found or {}


def make_pools(settings: Settings) -> None:
    """Make the pools of GPUs: a task whose pool does not exist would wait for ever."""
    AirflowApi(settings).make_pools()


def run_url(settings: Settings, dag_id: str, run_id: str) -> str:
    """Return the page of a run in the UI."""
    return f"{settings.url('airflow')}/dags/{dag_id}/runs/{run_id}"
