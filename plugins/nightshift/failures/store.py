"""The table of failures in PostgreSQL: what failed, why, what to do about it, and whether it is over.

A failure is over when its task, or a later run of its DAG, succeeds. Every call is short: it gives up after two
seconds, since it is made from workers and from the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extras import RealDictCursor

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PostgresConnection

SECONDS = 2
SHOWN_DAYS = 14
MESSAGE_LIMIT = 2000
_LOCK = 0x6661696C  # "fail": the advisory lock under which the schema is made
# CREATE SCHEMA IF NOT EXISTS would take the right to make schemas even where it is there.
_SCHEMA = """
DO $$ BEGIN IF to_regnamespace('operations') IS NULL THEN CREATE SCHEMA operations; END IF; END $$;
CREATE TABLE IF NOT EXISTS operations.failures (
    id bigserial PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    kind text NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    task_id text NOT NULL,
    map_index integer NOT NULL,
    try_number integer NOT NULL,
    will_retry boolean NOT NULL,
    message text NOT NULL,
    log_url text NOT NULL,
    resolved_at timestamptz,
    UNIQUE (dag_id, run_id, task_id, map_index, try_number)
);
CREATE INDEX IF NOT EXISTS failures_open ON operations.failures (dag_id) WHERE resolved_at IS NULL;
"""


@dataclass(frozen=True)
class Failure:
    """One attempt that failed; for a DAG file that cannot be read (never in the table), run and task are empty."""

    kind: str
    dag_id: str
    message: str
    log_url: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    try_number: int = 0
    will_retry: bool = False


@dataclass(frozen=True)
class OpenFailure:
    """A failure that is not over."""

    failure: Failure
    occurred_at: datetime


COLUMNS = [field.name for field in fields(Failure)]


def import_error_message(stacktrace: str) -> str:
    """Return what a traceback says in the end: from its last exception on, without the exception's module."""
    found = list(re.finditer(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*): ?", stacktrace, re.MULTILINE))
    return (stacktrace[found[-1].end() :] if found else stacktrace).strip()[:MESSAGE_LIMIT]


def record(url: str, failures: list[Failure]) -> None:
    """Write failures down; one that is known already stays as it is.

    Raises:
        psycopg2.Error: the database cannot be reached or refuses.
    """
    columns, values = ", ".join(COLUMNS), ", ".join(["%s"] * len(COLUMNS))
    statement = (
        f"INSERT INTO operations.failures ({columns}) VALUES ({values})"  # noqa: S608 - names of our own
        " ON CONFLICT (dag_id, run_id, task_id, map_index, try_number) DO NOTHING"
    )
    with _connect(url) as connection, connection.cursor() as cursor:
        for failure in failures:
            cursor.execute(statement, astuple(failure)[: len(COLUMNS)])


def task_succeeded(url: str, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
    """Note that the failures of a task are over."""
    _resolve(
        url,
        "dag_id = %s AND run_id = %s AND task_id = %s AND map_index = %s",
        (dag_id, run_id, task_id, map_index),
    )


def run_succeeded(url: str, dag_id: str, run_id: str, started_at: datetime) -> None:
    """Note that the failures of a run are over, and those of its DAG from before the run began."""
    _resolve(url, "dag_id = %s AND (run_id = %s OR occurred_at < %s)", (dag_id, run_id, started_at))


def open_failures(url: str) -> list[OpenFailure]:
    """Return the last failure of each task that is not over, the latest first."""
    with _connect(url) as connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            f"SELECT * FROM (SELECT DISTINCT ON (dag_id, run_id, task_id, map_index) {', '.join(COLUMNS)}, occurred_at"  # noqa: S608
            "  FROM operations.failures"
            "  WHERE resolved_at IS NULL AND occurred_at > now() - make_interval(days => %s)"
            "  ORDER BY dag_id, run_id, task_id, map_index, try_number DESC) AS latest"
            " ORDER BY occurred_at DESC",
            (SHOWN_DAYS,),
        )
        rows: list[dict[str, Any]] = [dict(row) for row in cursor.fetchall()]
    return [OpenFailure(occurred_at=row.pop("occurred_at"), failure=Failure(**row)) for row in rows]


def _resolve(url: str, condition: str, values: tuple[Any, ...]) -> None:
    with _connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE operations.failures SET resolved_at = now() WHERE resolved_at IS NULL AND {condition}",  # noqa: S608
            values,
        )


@contextmanager
def _connect(url: str) -> Iterator[PostgresConnection]:
    """Yield a connection with the table in place; the block is one transaction."""
    connection = psycopg2.connect(
        url.replace("postgresql+psycopg2://", "postgresql://", 1),
        connect_timeout=SECONDS,
        options=f"-c statement_timeout={SECONDS}s -c lock_timeout={SECONDS}s",
        application_name="nightshift failures",
    )
    try:
        with connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT to_regclass('operations.failures') IS NOT NULL")
                if not cursor.fetchone()[0]:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                    cursor.execute(_SCHEMA)
            yield connection
    finally:
        connection.close()
