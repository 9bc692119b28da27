"""Nightshift's tables, on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from jobkit import database
from jobkit.database import PipelineRun, completed_run, record_run
from jobkit.errors import ConfigurationError, TransientError
from tests.support import servers


def rows(query: str) -> list[tuple[object, ...]]:
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_the_schema_is_made_once_however_many_start_together(database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(lambda _: rows("SELECT count(*) FROM nightshift.schema_version"), range(16))) == [[(1,)]] * 16
        )
    tables = rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'nightshift' ORDER BY 1")
    assert tables == [("pictures",), ("pipeline_runs",), ("schema_version",)]


def test_a_block_that_fails_leaves_nothing_behind(database_url: str) -> None:
    with pytest.raises(RuntimeError), database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO nightshift.pictures (path) VALUES ('a')")
        raise RuntimeError
    assert rows("SELECT * FROM nightshift.pictures") == []


def test_a_picture_has_one_row_and_a_known_status(database_url: str) -> None:
    insert = "INSERT INTO nightshift.pictures (path, status) VALUES (%s, %s)"
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(insert, ("a.jpg", "approved"))
    for path, status in (("a.jpg", "approved"), ("b.jpg", "perhaps")):
        with pytest.raises(psycopg2.IntegrityError), database.connect() as connection, connection.cursor() as cursor:
            cursor.execute(insert, (path, status))


def test_a_run_has_one_row_and_a_retry_adds_what_it_knows(database_url: str) -> None:
    first = PipelineRun(pipeline="digits", dag_run_id="r1", outcome="failed", snapshot_id="s", fingerprint="f")
    record_run(first)
    record_run(first.model_copy(update={"outcome": "promoted", "model_version": "0.0.1", "snapshot_id": None}))
    found = rows("SELECT outcome, model_version, snapshot_id FROM nightshift.pipeline_runs")
    assert found == [("promoted", "0.0.1", "s")]


@pytest.mark.parametrize("outcome", ["promoted", "rejected"])
def test_a_settled_snapshot_is_found(database_url: str, outcome: str) -> None:
    record_run(PipelineRun(pipeline="digits", dag_run_id="r1", outcome=outcome, snapshot_id="s", fingerprint="f"))
    found = completed_run("digits", "s", "f")
    assert found is not None
    assert (found.dag_run_id, found.outcome) == ("r1", outcome)
    assert found.finished_at is not None


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "failed"},
        {"outcome": "nothing_new"},
        {"pipeline": "other"},
        {"snapshot_id": "t"},
        {"fingerprint": "g"},
    ],
)
def test_a_run_that_settled_something_else_is_not_found(database_url: str, change: dict[str, str]) -> None:
    run = PipelineRun(pipeline="digits", dag_run_id="r1", outcome="promoted", snapshot_id="s", fingerprint="f")
    record_run(run.model_copy(update=change))
    assert completed_run("digits", "s", "f") is None


def test_the_form_of_the_address_that_sqlalchemy_wants_is_understood(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", database_url.replace("postgresql://", "postgresql+psycopg2://"))
    assert rows("SELECT 1") == [(1,)]


def test_a_database_that_is_away_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", f"postgresql://u:p@127.0.0.1:{servers.free_port()}/x")
    with pytest.raises(TransientError, match="cannot be reached"):
        rows("SELECT 1")


def test_a_connection_that_breaks_is_worth_another_try(database_url: str) -> None:
    other = psycopg2.connect(database_url)
    other.autocommit = True
    with pytest.raises(TransientError, match="the database failed"), database.connect() as connection:
        ours = connection.get_backend_pid()
        other.cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (ours,))
        connection.cursor().execute("SELECT 1")
    other.close()


@pytest.mark.parametrize("change", [("a%20password", "wrong"), ("test_", "no_such_database_")])
def test_a_wrong_password_or_name_is_a_configuration_error_that_shows_no_password(
    database_url: str, change: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", database_url.replace(*change))
    with pytest.raises(ConfigurationError) as caught:
        rows("SELECT 1")
    assert "a password" not in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("url", ["not an address", "http://host/x"])
def test_an_address_that_is_none_is_a_configuration_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", url)
    with pytest.raises(ConfigurationError):
        rows("SELECT 1")
