"""PostgreSQL and Redis of the cluster as real containers: who may do what, and what an earlier release left there."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from local.settings import DATABASES
from tests.containers import cluster as clusters
from tests.support.database import run_statement
from tests.support.waiting import wait_for

pytestmark = pytest.mark.container

# What release 0.1.0 made on an empty volume: the role nightshift owned all that jobs and the model storage had.
EARLIER = """
CREATE ROLE airflow LOGIN PASSWORD 'old'; CREATE DATABASE airflow OWNER airflow;
CREATE ROLE mlflow LOGIN PASSWORD 'old'; CREATE DATABASE mlflow OWNER mlflow;
CREATE ROLE nightshift LOGIN PASSWORD 'old'; CREATE DATABASE nightshift OWNER nightshift;
\\connect nightshift
SET ROLE nightshift;
CREATE SCHEMA nightshift;
CREATE TABLE nightshift.pipeline_runs (id bigserial PRIMARY KEY, outcome text);
CREATE TABLE nightshift.failures (id bigserial PRIMARY KEY, kind text);
INSERT INTO nightshift.failures (kind) VALUES ('lost');
CREATE SCHEMA model_storage;
CREATE TABLE model_storage.promotions (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, version text);
INSERT INTO model_storage.promotions (version) VALUES ('0.0.1');
"""
OWN = {
    "nightshift": "nightshift.pipeline_runs",
    "model_storage": "model_storage.promotions",
    "operations": "operations.failures",
}


@dataclass
class Servers:
    """The two containers, and the values of their `.env`."""

    project: str
    folder: Path
    values: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` on them; return what it printed."""
        return clusters.compose(self.project, self.folder, *arguments)

    def ask(self, role: str, statement: str, database: str = "") -> list[tuple[Any, ...]]:
        """Run a statement as a role, by TCP."""
        password = self.values["POSTGRES_PASSWORD" if role == "postgres" else f"{role.upper()}_DB_PASSWORD"]
        return run_statement(
            statement, host="127.0.0.1", port=self.values["NIGHTSHIFT_POSTGRES_PORT"], user=role, password=password,
            dbname=database or DATABASES.get(role, role),
        )  # fmt: skip


@pytest.fixture(scope="module")
def servers(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A volume of the earlier release, taken over by two starts of this one."""
    folder = tmp_path_factory.mktemp("databases")
    found = Servers(f"nightshift-test-{uuid.uuid4().hex[:6]}", folder, clusters.write_env(folder))
    try:
        found.compose("up", "--detach", "--wait", "postgres", "redis")
        psql = ["exec", "-T", "postgres", "psql", "--username", "postgres", "--set", "ON_ERROR_STOP=1"]
        found.compose(*psql, *(part for line in _statements() for part in ("--command", line)))
        for _ in range(2):
            found.compose("run", "--rm", "--quiet-pull", "databases")
        yield found
    finally:
        found.compose("down", "--volumes", "--timeout", "5", "--remove-orphans")


def _statements() -> list[str]:
    """Return what psql runs one after another: each line of `EARLIER`, and what stands on a line in parts."""
    lines = [line for line in EARLIER.strip().splitlines() if line]
    return [part for line in lines for part in ([line] if line.startswith("\\") else line.split("; "))]


def test_what_an_earlier_release_left_belongs_to_its_part_and_is_kept(servers: Servers) -> None:
    assert servers.ask("operations", "SELECT kind FROM operations.failures") == [("lost",)]
    assert servers.ask("model_storage", "SELECT version FROM model_storage.promotions") == [("0.0.1",)]
    statement = "INSERT INTO model_storage.promotions (version) VALUES ('0.0.2') RETURNING id"
    assert servers.ask("model_storage", statement) == [(2,)]
    servers.ask("nightshift", "INSERT INTO nightshift.pipeline_runs (outcome) VALUES ('promoted')")


def test_no_role_but_postgres_has_a_right_over_the_server(servers: Servers) -> None:
    rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
    assert servers.ask("postgres", f"SELECT rolname FROM pg_roles WHERE {rights}") == [("postgres",)]


@pytest.mark.parametrize("role", DATABASES)
@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "CREATE ROLE intruder SUPERUSER",
        "CREATE DATABASE intruders",
        "SET ROLE postgres",
        "ALTER SYSTEM SET archive_command = 'id'",
    ],
)
def test_a_part_s_role_cannot_leave_the_database(servers: Servers, role: str, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        servers.ask(role, statement)


@pytest.mark.parametrize("role", DATABASES)
def test_a_part_s_role_reaches_its_own_tables_and_no_other_part_s(servers: Servers, role: str) -> None:
    for part, table in OWN.items():
        if part == role:
            servers.ask(role, f"SELECT * FROM {table}")
            continue
        for statement in (f"SELECT * FROM {table}", f"DELETE FROM {table}", f"DROP TABLE {table}"):
            with pytest.raises(psycopg2.Error, match="permission denied"):
                servers.ask(role, statement, "nightshift")
    for database in {"airflow", "mlflow", "nightshift", "postgres", "template1"} - {DATABASES[role]}:
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            servers.ask(role, "SELECT 1", database)


def test_redis_asks_for_its_password_and_no_command_line_shows_one(servers: Servers) -> None:
    ping = ["exec", "-T", "--env", "REDISCLI_AUTH=", "redis", "redis-cli", "ping"]
    assert "NOAUTH" in servers.compose(*ping)
    wait_for(lambda: "PONG" in servers.compose("exec", "-T", "redis", "redis-cli", "ping"), "redis", 30)
    lines = servers.compose("top", "postgres", "redis")
    assert "redis-server" in lines and "postgres" in lines
    assert not [name for name, value in servers.values.items() if name.endswith("PASSWORD") and value in lines]


def test_redis_keeps_its_data_and_ends_when_it_is_asked_to(servers: Servers) -> None:
    servers.compose("exec", "-T", "redis", "redis-cli", "set", "kept", "7")
    servers.compose("stop", "redis")
    done = servers.compose("ps", "--all", "--format", "{{.ExitCode}}", "redis")
    assert done.strip() == "0", "it was killed"
    servers.compose("up", "--detach", "--wait", "redis")
    assert servers.compose("exec", "-T", "redis", "redis-cli", "get", "kept").strip() == "7"


def test_the_password_of_redis_is_not_in_what_the_engine_was_told_to_run(servers: Servers) -> None:
    container = servers.compose("ps", "--quiet", "redis").strip()
    command = ["docker", "inspect", "--format", "{{.Config.Cmd}} {{.Path}} {{.Args}}", container]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "requirepass" in done.stdout
    assert servers.values["REDIS_PASSWORD"] not in done.stdout
