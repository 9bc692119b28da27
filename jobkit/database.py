"""Nightshift's own tables in PostgreSQL: the schema `nightshift`, made when a job first needs it.

`pipeline_runs` says what each run of a pipeline came to. `pictures` holds what segmentation found in each picture, in
the form of the older segmentation's table, with the unique index that it lacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from jobkit import settings
from jobkit.errors import ConfigurationError, TransientError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Outcomes that settle a snapshot: to train on it again would change nothing.
COMPLETED = ("promoted", "rejected", "undecided", "pinned")
_LOCK = 0x6E69676874  # "night": the advisory lock under which the schema is made
_VERSION = 1

# CREATE SCHEMA IF NOT EXISTS would take the right to make schemas even where it is there.
_SCHEMA = """
DO $$ BEGIN IF to_regnamespace('nightshift') IS NULL THEN CREATE SCHEMA nightshift; END IF; END $$;
CREATE TABLE IF NOT EXISTS nightshift.schema_version (version integer NOT NULL);
CREATE TABLE IF NOT EXISTS nightshift.pipeline_runs (
    id bigserial PRIMARY KEY,
    pipeline text NOT NULL,
    dag_run_id text NOT NULL,
    snapshot_id text,
    fingerprint text,
    outcome text NOT NULL,
    model_version text,
    reason text,
    mlflow_run_id text,
    started_at timestamptz,
    finished_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (pipeline, dag_run_id)
);
CREATE INDEX IF NOT EXISTS pipeline_runs_snapshot ON nightshift.pipeline_runs (pipeline, snapshot_id, fingerprint);
CREATE TABLE IF NOT EXISTS nightshift.pictures (
    id bigserial PRIMARY KEY,
    path varchar(255) NOT NULL UNIQUE,
    model_version varchar(50),
    status varchar(50) NOT NULL DEFAULT 'unchecked' CHECK (status IN ('unchecked', 'approved', 'rejected')),
    segments jsonb NOT NULL DEFAULT '{}'
);
"""


class PipelineRun(BaseModel):
    """What a run of a pipeline came to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str
    dag_run_id: str
    outcome: str
    snapshot_id: str | None = None
    fingerprint: str | None = None
    model_version: str | None = None
    reason: str | None = None
    mlflow_run_id: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@contextmanager
def connect() -> Iterator[Connection]:
    """Yield a connection to the database that `NIGHTSHIFT_DATABASE_URL` names, with the schema `nightshift` in place.

    The block is one transaction: it is committed when it ends well and rolled back otherwise.

    Raises:
        ConfigurationError: the address is not valid, or the user may not do this.
        TransientError: the database cannot be reached, or the connection breaks.
    """
    import psycopg2

    url = settings.require(settings.DATABASE_URL).replace("postgresql+psycopg2://", "postgresql://", 1)
    try:
        connection = psycopg2.connect(url, connect_timeout=10, application_name="nightshift")
    except psycopg2.OperationalError as error:
        if "authentication failed" in str(error) or "does not exist" in str(error):
            raise ConfigurationError(f"the database refused {settings.DATABASE_URL}: {error}") from error
        raise TransientError(f"the database cannot be reached: {error}") from error
    except psycopg2.Error as error:
        raise ConfigurationError(f"{settings.DATABASE_URL} is not valid: {error}") from error
    try:
        _create_schema(connection)
        yield connection
        connection.commit()
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise TransientError(f"the database failed: {error}") from error
    except psycopg2.errors.InsufficientPrivilege as error:
        raise ConfigurationError(f"the user of {settings.DATABASE_URL} may not do this: {error}") from error
    finally:
        connection.close()  # rolls back what was not committed


def _create_schema(connection: Connection) -> None:
    """Make the schema unless it is there; two jobs that start together wait for each other."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('nightshift.schema_version') IS NOT NULL")
        if _value(cursor):
            return
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute(_SCHEMA)
        cursor.execute(
            "INSERT INTO nightshift.schema_version SELECT %s"
            " WHERE NOT EXISTS (SELECT 1 FROM nightshift.schema_version)",
            (_VERSION,),
        )
    connection.commit()


def _value(cursor: Any) -> Any:
    row = cursor.fetchone()
    return row[0] if row else None


def completed_run(pipeline: str, snapshot_id: str, fingerprint: str) -> PipelineRun | None:
    """Return the latest run of `pipeline` that settled this snapshot with this fingerprint, or None."""
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM nightshift.pipeline_runs WHERE pipeline = %s AND snapshot_id = %s"  # noqa: S608
            " AND fingerprint = %s AND outcome = ANY(%s) ORDER BY finished_at DESC LIMIT 1",
            (pipeline, snapshot_id, fingerprint, list(COMPLETED)),
        )
        row = cursor.fetchone()
    return PipelineRun(**dict(zip(_COLUMNS, row, strict=True))) if row else None


def record_run(run: PipelineRun) -> None:
    """Write the row of a pipeline's run; written again, it is replaced. What is None leaves the stored value."""
    values = run.model_dump(exclude_none=True)
    columns = list(values)
    updates = [f"{c} = excluded.{c}" for c in columns if c not in ("pipeline", "dag_run_id")]
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO nightshift.pipeline_runs ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"  # noqa: S608
            f" ON CONFLICT (pipeline, dag_run_id) DO UPDATE SET {', '.join(updates)}",
            list(values.values()),
        )


_COLUMNS = list(PipelineRun.model_fields)
