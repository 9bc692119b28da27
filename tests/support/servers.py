"""The real servers that tests talk to, each in a process of its own on a free port of the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from nightshift_common.patience import patience

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / ".venv" / "services" / "bin"
START_SECONDS = 60  # a server that ends is noticed at once


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of the loopback interface that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def free_port() -> int:
    """Return a port that nothing listens on now."""
    return free_ports(1)[0]


@contextmanager
def running(
    command: list[str], log: Path, healthy: Callable[[], bool], stop_signal: int = signal.SIGTERM, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; the block starts when the server is healthy."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        started = time.monotonic()
        while not healthy():
            assert process.poll() is None, f"{command[0]} ended:\n{log.read_text()}"
            limit = patience(START_SECONDS)
            assert time.monotonic() - started < limit, f"{command[0]} is not healthy:\n{log.read_text()}"
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, stop_signal)  # MLflow's server does not pass a signal on to its workers
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> Callable[[], bool]:
    """Return a function that says whether a GET of `url` succeeds."""

    def ask() -> bool:
        try:
            return httpx.get(url, timeout=5, verify=False).is_success  # a context for TLS takes 40 ms of a core
        except httpx.HTTPError:
            return False

    return ask


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL; yield the address of its database `postgres`."""
    port, password = free_port(), "a password"
    prepare = "postgres.initialize(data, sys.argv[2]); print(json.dumps(postgres.command(data, int(sys.argv[3]))))"
    command = json.loads(_local_postgres(prepare, folder, password, str(port)))
    url = f"postgresql://postgres:{password.replace(' ', '%20')}@127.0.0.1:{port}/postgres"

    def healthy() -> bool:
        import psycopg2

        try:
            psycopg2.connect(url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    try:
        with running(command, folder / "postgres.log", healthy, signal.SIGINT):
            yield url
    finally:
        _local_postgres("postgres.remove(data)", folder)  # root's may lie outside of `folder`


def _local_postgres(code: str, folder: Path, *arguments: str) -> str:
    """Run code with `local.postgres` in the environment that has its programs; return what it printed."""
    start = "import json, pathlib, sys; from local import postgres; data = pathlib.Path(sys.argv[1]);"
    done = subprocess.run(
        [str(SERVICES / "python"), "-c", start + code, str(folder / "postgres"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def mlflow(folder: Path, port: int | None = None) -> Iterator[str]:
    """Run an MLflow server on an SQLite database in `folder`; yield its address."""
    port = port or free_port()
    command = [
        *(str(SERVICES / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{SERVICES}{os.pathsep}{os.environ['PATH']}",
    }
    url = f"http://127.0.0.1:{port}"
    # nothing is lost: SQLite is done with a request when it is answered; a clean stop takes ten seconds
    with running(command, folder / "mlflow.log", answers(f"{url}/health"), signal.SIGKILL, **environment):
        yield url


@contextmanager
def collect(folder: Path, login: str, password: str) -> Iterator[str]:
    """Run the collect reference server on `folder`; yield its address."""
    port = free_port()
    command = [str(SERVICES / "python"), "-m", "services.collect", "--directory", str(folder), "--port", str(port)]
    environment = {"NIGHTSHIFT_COLLECT_LOGIN": login, "NIGHTSHIFT_COLLECT_PASSWORD": password}
    url = f"http://127.0.0.1:{port}"
    with running(command, folder.parent / "collect.log", answers(f"{url}/health"), **environment):
        yield url


@contextmanager
def s3(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Run moto's S3 server, which keeps everything in memory, on an address of this machine; yield its URL."""
    port = free_port()
    command = [str(ROOT / ".venv" / "jobs" / "bin" / "moto_server"), "-H", host, "-p", str(port)]
    url = f"http://{host}:{port}"
    with running(command, folder / "s3.log", answers(f"{url}/moto-api/")):
        yield url
