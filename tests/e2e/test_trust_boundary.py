"""Who may do what on the real stack: nothing can be learned from a command line, and no part's role reaches further."""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import psutil
import psycopg2
import pytest

from local import processes
from local.airflow import AirflowApi
from local.components import triton_server
from local.settings import DATABASES, Settings
from local.signing import private_key
from tests.e2e.support import jobs, versions, wait_for
from tests.support.database import run_statement

DAG = "retrain_digits"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|FERNET|_KEY$|KEY_ID$")
# Where each part keeps what is its own, as a table in a database.
TABLES = {
    "airflow": ("airflow", "public.dag_run"),
    "mlflow": ("mlflow", "public.runs"),
    "nightshift": ("nightshift", "nightshift.pipeline_runs"),
    "model_storage": ("nightshift", "model_storage.promotions"),
    "operations": ("nightshift", "operations.failures"),
}
ATTEMPTS = {
    "run a program": "COPY (SELECT 1) TO PROGRAM 'touch /tmp/nightshift-was-here'",
    "read a program": "CREATE TEMP TABLE x (line text); COPY x FROM PROGRAM 'id'",
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "list a folder": "SELECT pg_ls_dir('.')",
    "write a file": "COPY (SELECT 1) TO '/tmp/nightshift-was-here'",
    "import a file": "SELECT lo_import('/etc/passwd')",
    "make a role": "CREATE ROLE intruder SUPERUSER LOGIN",
    "make a database": "CREATE DATABASE intruders",
    "become the superuser": "SET ROLE postgres",
    "change the superuser": "ALTER ROLE postgres PASSWORD 'known'",
    "change the configuration": "ALTER SYSTEM SET archive_command = 'id'",
    "load a library": "LOAD '/tmp/intruder.so'",
    "read passwords": "SELECT * FROM pg_authid",
    "replicate": "SELECT pg_create_physical_replication_slot('intruder')",
    "call a library": "CREATE FUNCTION intrude() RETURNS int LANGUAGE c AS '/tmp/intruder.so', 'intrude'",
    "end another's session": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
}


@pytest.fixture(scope="module")
def night(settings: Settings) -> str:
    """A night whose training is running."""
    api = AirflowApi(settings)
    api.wait_for_dag(DAG)
    run = api.trigger(DAG, {"force": True, "epochs": 2, "publish": False})
    wait_for(lambda: jobs(settings, "pull_dataset"), "the night's first job")
    return run


@pytest.fixture
def filled(settings: Settings, night: str) -> None:
    """Every part has made its tables: a job its own, Airflow's plugin its own."""
    AirflowApi(settings)._call("GET", "/dags")
    wait_for(lambda: _exists(settings, "nightshift"), "the jobs' tables")
    headers = {"Authorization": AirflowApi(settings).client.headers["Authorization"]}
    httpx.get(f"{settings.url('airflow')}/nightshift/failures", headers=headers, timeout=60).raise_for_status()


def _exists(settings: Settings, part: str) -> bool:
    return ask(settings, part, f"SELECT to_regclass('{TABLES[part][1]}') IS NOT NULL") == [(True,)]


def ask(settings: Settings, role: str, statement: str, database: str = "") -> list[tuple[Any, ...]]:
    """Run a statement as a role, in its own database or another."""
    url = settings.database_url(role)
    return run_statement(statement, f"{url.rpartition('/')[0]}/{database}" if database else url)


def is_file(value: str) -> bool:
    """Whether a value is the path of a file; a long one is none."""
    with suppress(OSError):
        return Path(value).exists()
    return False


def secrets_of(settings: Settings, environments: list[dict[str, str]]) -> dict[str, str]:
    """Return all that the stack keeps secret, by its value: what it generated, what its processes were given."""
    found = {value: name for name, value in settings.secrets.items()}
    found[private_key(settings).read_text().splitlines()[1]] = "the key that signs packages"
    for environment in environments:
        for name, value in environment.items():
            if name not in os.environ and SECRET.search(name) and len(value) >= 8 and not is_file(value):
                found[value] = name
            for address in re.findall(r"\w+(?:\+\w+)?://[^\s\"']+", value):
                if password := urlsplit(address).password:
                    found[password] = found[unquote(password)] = f"the password in {name}"
    return found


def test_no_command_line_of_a_night_holds_a_secret_but_triton_s_key(settings: Settings, night: str) -> None:
    """Read as every user of the machine can; each process is looked at from its start to its end."""
    api = AirflowApi(settings)
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    parts: set[str] = set()

    def look() -> bool:
        for process in processes.of_stack(settings.state):
            try:
                environment, line = process.environ(), tuple(process.cmdline())
                children = [tuple(child.cmdline()) for child in process.children()]
            except psutil.Error:  # it ended in between
                continue
            parts.add(environment[processes.COMPONENT])
            for found in (line, *children):
                seen[found] = environment
        return api.run_state(DAG, night) in ("success", "failed")

    wait_for(look, "the night's end", 300)
    modules = {word for line in seen for word in line if word.startswith(("training_jobs.", "conversion_jobs."))}
    assert {"training_jobs.pull_dataset", "training_jobs.train_classifier", "training_jobs.evaluate"} <= modules
    assert parts == {"supervisor", "postgres", "triton", "collect", "model_storage", "mlflow", "airflow"}
    secrets = secrets_of(settings, list(seen.values()))
    assert set(settings.secrets.values()) < set(secrets), "processes were given none beside the generated ones"
    shown = {(name, line[0]) for line in seen for value, name in secrets.items() if any(value in word for word in line)}
    assert not shown
    key = triton_server(settings).key_file.read_text()
    holders = [line[0] for line in seen if any(key in word for word in line)]
    assert {Path(program).name for program in holders} == {"tritonserver"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's database runs as another user")
def test_postgresql_runs_without_capabilities_and_not_as_root(settings: Settings) -> None:
    (server,) = processes.of_stack(settings.state, "postgres")
    for process in (server, *server.children()):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}


def test_each_part_is_signed_in_with_its_own_role_and_none_as_the_superuser(settings: Settings, filled: None) -> None:
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    found: set[tuple[Any, ...]] = set()

    def look() -> bool:
        versions(settings)
        httpx.post(f"{settings.url('mlflow')}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=60)
        statement = f"SELECT DISTINCT usename, datname FROM pg_stat_activity WHERE {others}"
        found.update(ask(settings, "postgres", statement))
        return {("airflow", "airflow"), ("mlflow", "mlflow"), ("model_storage", "nightshift")} <= found

    wait_for(look, "the sessions of the servers", 60)
    assert found <= set(DATABASES.items())


def test_no_role_but_postgres_has_a_right_over_the_server(settings: Settings) -> None:
    rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
    assert ask(settings, "postgres", f"SELECT rolname FROM pg_roles WHERE {rights}") == [("postgres",)]
    members = "SELECT member::regrole::text FROM pg_auth_members WHERE member::regrole::text NOT LIKE 'pg\\_%'"
    assert ask(settings, "postgres", members) == []


@pytest.mark.parametrize("role", DATABASES)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_part_s_role_cannot_leave_the_database(settings: Settings, role: str, attempt: str) -> None:
    with pytest.raises(psycopg2.Error) as refused:
        ask(settings, role, ATTEMPTS[attempt])
    assert isinstance(refused.value, psycopg2.errors.InsufficientPrivilege), refused.value
    assert not Path("/tmp/nightshift-was-here").exists()


@pytest.mark.parametrize("role", DATABASES)
def test_a_part_s_role_reaches_its_own_tables_and_no_other_part_s(settings: Settings, filled: None, role: str) -> None:
    for part, (database, table) in TABLES.items():
        superuser = ask(settings, "postgres", f"SELECT to_regclass('{table}') IS NOT NULL", database)
        assert superuser == [(True,)], f"{table} is not there: this test would see nothing"
        if part == role:
            ask(settings, role, f"SELECT count(*) FROM {table}")
            continue
        for statement in (
            f"SELECT * FROM {table}",
            f"DELETE FROM {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE {table} OWNER TO {role}",
            f"CREATE TABLE {table.partition('.')[0]}.planted (x int)",
        ):
            with pytest.raises(psycopg2.Error, match=r"permission denied|must be owner"):
                ask(settings, role, statement, database)
    for database in {"airflow", "mlflow", "nightshift", "postgres", "template1"} - {DATABASES[role]}:
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            ask(settings, role, "SELECT 1", database)


@pytest.mark.parametrize("role", ["nightshift", "model_storage", "operations"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE SCHEMA planted",
        "CREATE TABLE public.planted (x int)",
        "CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
        "ALTER DATABASE nightshift SET search_path = planted",
        "DROP SCHEMA model_storage CASCADE; DROP SCHEMA nightshift CASCADE; DROP SCHEMA operations CASCADE",
    ],
)
def test_in_a_shared_database_a_part_can_lay_no_trap_for_another(settings: Settings, role: str, statement: str) -> None:
    with pytest.raises(psycopg2.Error, match=r"permission denied|must be owner"):
        ask(settings, role, statement)
