import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from local import postgres, processes
from local.settings import Settings, port_variable
from tests.support.servers import free_port


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv(port_variable("postgres"), str(free_port()))
    settings = Settings(tmp_path)
    yield settings
    processes.stop(lambda: processes.of_stack(tmp_path), postgres.STOP_SIGNAL)


def start(settings: Settings) -> None:
    data = settings.state / "postgres"
    postgres.initialize(data, settings.secrets["postgres"])
    processes.start("postgres", postgres.command(data, settings.port("postgres")), settings.state, {})
    deadline = time.monotonic() + 20
    while not postgres.answers(settings.database_url("postgres")):
        assert time.monotonic() < deadline, (settings.state / "logs" / "postgres.log").read_text()
        time.sleep(0.05)


def test_databases_are_made_once_and_their_rows_survive_a_kill(settings: Settings) -> None:
    start(settings)
    postgres.create_databases(settings.database_url("postgres"), ["nightshift"])
    with psycopg2.connect(settings.database_url("nightshift")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (value int)")
        cursor.execute("INSERT INTO kept VALUES (7)")
    connection.close()
    server = processes.of_stack(settings.state)
    for process in server:
        process.kill()
    psutil.wait_procs(server, timeout=10)
    start(settings)
    postgres.create_databases(settings.database_url("postgres"), ["nightshift"])
    with psycopg2.connect(settings.database_url("nightshift")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value FROM kept")
        assert cursor.fetchall() == [(7,)]
    connection.close()


def test_a_password_is_asked_for(settings: Settings) -> None:
    start(settings)
    assert not postgres.answers(settings.database_url("postgres").replace(settings.secrets["postgres"], "guess"))


def test_a_cluster_whose_making_was_interrupted_is_made_anew(settings: Settings) -> None:
    data = settings.state / "postgres"
    postgres.initialize(data, settings.secrets["postgres"])
    (data / "ready").unlink()
    shutil.rmtree(data / "cluster" / "global")
    start(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's database runs as another user")
def test_root_s_database_runs_from_a_checkout_that_only_root_can_enter(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = Path(postgres.binary("postgres")).parents[2]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (programs, programs.with_name(f"{programs.name}.libs")):
        subprocess.run(["cp", "-a", str(folder), str(closed)], check=True)
    copy = closed / programs.name / "pginstall18" / "bin"
    monkeypatch.setattr(postgres, "binary", lambda name: str(copy / name))
    start(settings)
