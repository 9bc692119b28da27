"""The parts of the local stack: what each runs, and how it shows that it is healthy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from local import airflow, postgres
from local.settings import HOST, ROOT, LocalStackError, Settings
from local.signing import public_key
from local.triton import TritonServer, cache_mib
from nightshift_common.patience import patience
from nightshift_common.storage_tokens import TOKENS


@dataclass(frozen=True)
class Component:
    """One server of the stack."""

    name: str
    ports: tuple[str, ...]
    command: list[str]
    environment: dict[str, str]
    healthy: Callable[[], bool]
    new_arguments: Callable[[], list[str]] = list  # further ones, made anew at each start
    stop_signal: int = signal.SIGTERM
    patience: float = 10.0


def python(environment: str) -> str:
    """Return the interpreter of one of the environments."""
    return str(ROOT / ".venv" / environment / "bin" / "python")


def all_components(settings: Settings) -> list[Component]:
    """Return the parts in the order in which they start; each may rely on those before it."""
    return [make(settings) for make in _MAKERS.values()]


def component(settings: Settings, name: str) -> Component:
    """Return one part."""
    return _MAKERS[name](settings)


def prepare_databases(settings: Settings) -> None:
    """Make the databases of Airflow, MLflow and Nightshift, and a role for each part."""
    postgres.make_roles(settings.port("postgres"), settings.secrets["postgres"], settings.database_passwords())


def load_digits(settings: Settings) -> None:
    """Put the digits pictures into the collect server's folder; nothing happens where they are there."""
    done = subprocess.run(
        [python("services"), "-m", "services.collect.load_digits", "--directory", str(settings.folder("collect"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise LocalStackError(f"the digits could not be loaded into the collect server:\n{done.stdout}{done.stderr}")


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            # A context for TLS, which nothing here needs, would take 40 ms of a core, ten times a second for each part.
            return httpx.get(url, timeout=patience(5), verify=False, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return ask


def _postgres(settings: Settings) -> Component:
    data = settings.state / "postgres"
    return Component(
        name="postgres",
        ports=("postgres",),
        command=postgres.command(data, settings.port("postgres")),
        environment={},
        healthy=lambda: postgres.answers(settings.database_url("postgres")),
        stop_signal=postgres.STOP_SIGNAL,
    )


def triton_server(settings: Settings) -> TritonServer:
    """Return the stack's Triton, on the model storage's repository."""
    return TritonServer(
        repository=settings.folder("storage"),
        state=settings.folder("triton"),
        http_port=settings.port("triton"),
        grpc_port=settings.port("triton_grpc"),
        metrics_port=settings.port("triton_metrics"),
        log=settings.folder("logs") / "triton.log",
        cache_mib=cache_mib(),
    )


def _triton(settings: Settings) -> Component:
    server = triton_server(settings)
    return Component(
        name="triton",
        ports=("triton", "triton_grpc", "triton_metrics"),
        command=server.command(),
        environment=server.environment(),
        healthy=_answers(f"{settings.url('triton')}/v2/health/ready"),
        new_arguments=server.new_key,
    )


def _collect(settings: Settings) -> Component:
    return Component(
        name="collect",
        ports=("collect",),
        command=[
            python("services"),
            "-m",
            "services.collect",
            "--directory",
            str(settings.folder("collect")),
            "--port",
            str(settings.port("collect")),
        ],
        environment={
            "PYTHONPATH": str(ROOT),
            "NIGHTSHIFT_COLLECT_LOGIN": "nightshift",
            "NIGHTSHIFT_COLLECT_PASSWORD": settings.secrets["collect"],
        },
        healthy=_answers(f"{settings.url('collect')}/health"),
    )


def _model_storage(settings: Settings) -> Component:
    tokens = {
        name: {"token": settings.secrets[f"model_storage_{name}"], "scopes": scopes} for name, scopes in TOKENS.items()
    }
    return Component(
        name="model_storage",
        ports=("model_storage",),
        command=[python("services"), "-m", "services.model_storage"],
        environment={
            "PYTHONPATH": str(ROOT),
            "MODEL_STORAGE_REPOSITORY": str(settings.folder("storage")),
            "MODEL_STORAGE_DATABASE_URL": settings.database_url("model_storage"),
            "MODEL_STORAGE_TRITON_GRPC": f"{HOST}:{settings.port('triton_grpc')}",
            "MODEL_STORAGE_TRITON_KEY_FILE": str(triton_server(settings).key_file),
            "MODEL_STORAGE_MLFLOW_URL": settings.url("mlflow"),
            "MODEL_STORAGE_TOKENS": json.dumps(tokens),
            "MODEL_STORAGE_SIGNATURES": os.environ.get("MODEL_STORAGE_SIGNATURES") or "warn",
            "MODEL_STORAGE_PUBLIC_KEYS": public_key(settings).read_text(),
            "MODEL_STORAGE_HOST": HOST,
            "MODEL_STORAGE_PORT": str(settings.port("model_storage")),
        },
        healthy=_answers(f"{settings.url('model_storage')}/health/ready"),
    )


def _mlflow(settings: Settings) -> Component:
    port = settings.port("mlflow")
    hosts = [f"{name}:{port}" for name in ("localhost", HOST)]
    return Component(
        name="mlflow",
        ports=("mlflow",),
        command=[
            str(Path(python("services")).with_name("mlflow")),
            "server",
            "--host",
            HOST,
            "--port",
            str(port),
            "--workers",
            "1",
            "--artifacts-destination",
            str(settings.folder("mlflow")),
            "--allowed-hosts",
            ",".join(hosts),
        ],
        environment={
            # Here and not in the command line, which every user of this machine can read.
            "MLFLOW_BACKEND_STORE_URI": settings.database_url("mlflow", "+psycopg2"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # halves its start and its memory
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{Path(python('services')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        },
        # Its own /health is green while it cannot reach its database.
        healthy=_answers(f"{settings.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"),
    )


def _airflow(settings: Settings) -> Component:
    return Component(
        name="airflow",
        ports=("airflow", "airflow_logs", "airflow_trigger_logs"),
        command=[str(ROOT / ".venv" / "airflow" / "bin" / "airflow"), "standalone"],
        environment=airflow.environment(settings),
        healthy=lambda: airflow.is_healthy(settings),
        stop_signal=signal.SIGINT,  # on SIGTERM it orphans its children
        patience=15.0,
    )


_MAKERS: dict[str, Callable[[Settings], Component]] = {
    "postgres": _postgres,
    "triton": _triton,
    "collect": _collect,
    "model_storage": _model_storage,
    "mlflow": _mlflow,
    "airflow": _airflow,
}
