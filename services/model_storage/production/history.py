"""Which version was in production when: the table `model_storage.promotions`, to which rows are only added.

The table `model_storage.canaries` has what was counted so far of a canary that judges itself: a row a model.

The last row of a model about production says what is in production: the truth that Triton is brought to. A canary is
under way where no change of what is in production has followed its row, and a version is pinned where the last row
about pins pins one.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

import psycopg2
import psycopg2.extensions
from psycopg2.extras import Json, RealDictCursor
from pydantic import BaseModel, Field

from services.model_storage.errors import Conflict, Unavailable

logger = logging.getLogger(__name__)

Action = Literal["promote", "rollback", "load", "unload", "canary", "end_canary", "pin", "unpin"]
PRODUCTION: tuple[Action, ...] = ("promote", "rollback", "load", "unload")
CANARY: tuple[Action, ...] = (*PRODUCTION, "canary", "end_canary")  # a change of what is in production ends a canary
PINS: tuple[Action, ...] = ("pin", "unpin")
Text = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]  # PostgreSQL's text has no NUL
IDLE_CONNECTIONS = 4
LOCK_SECONDS = 150  # longer than a load may take: the second of two promotions waits for the first

_LOCK_NAME = "hashtextextended('model_storage:' || %s, 0)"
# CREATE SCHEMA IF NOT EXISTS would take the right to make schemas even where it is there.
_SCHEMA = """
DO $$ BEGIN IF to_regnamespace('model_storage') IS NULL THEN CREATE SCHEMA model_storage; END IF; END $$;
CREATE TABLE IF NOT EXISTS model_storage.promotions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model text NOT NULL,
    action text NOT NULL,
    version text,
    triton_version integer,
    target text,
    previous_version text,
    run_id text,
    snapshot_id text,
    reason text,
    actor text,
    promoted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE model_storage.promotions ADD COLUMN IF NOT EXISTS share real;
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = 'model_storage' AND table_name = 'promotions' AND column_name = 'on_behalf_of'
    ) THEN -- until now an actor was what the caller said of itself
        ALTER TABLE model_storage.promotions ADD COLUMN on_behalf_of text;
        UPDATE model_storage.promotions SET on_behalf_of = actor, actor = NULL;
    END IF;
END $$;
ALTER TABLE model_storage.promotions ADD COLUMN IF NOT EXISTS signed_by text;
ALTER TABLE model_storage.promotions ADD COLUMN IF NOT EXISTS evidence jsonb;
ALTER TABLE model_storage.promotions DROP CONSTRAINT IF EXISTS promotions_action_check;
CREATE INDEX IF NOT EXISTS promotions_of_a_model ON model_storage.promotions (model, id DESC);
CREATE TABLE IF NOT EXISTS model_storage.canaries (model text PRIMARY KEY, judging jsonb NOT NULL);
"""


class Note(BaseModel):
    """Who changes what is in production, and why."""

    reason: Text | None = None
    run_id: Text | None = None
    snapshot_id: Text | None = None
    actor: Text | None = None
    """the name of the token; None where there is no log-in"""
    on_behalf_of: Text | None = None
    """for whom, as the holder of the token says"""


class Promotion(BaseModel):
    """One change; `version` is None from an unloading on, `share` is a canary's share of the requests.

    `actor` is the name of the token that it was made with, `on_behalf_of` whom its holder named.
    """

    id: int
    model: str
    action: Action
    version: str | None
    triton_version: int | None
    target: str | None
    previous_version: str | None
    run_id: str | None
    snapshot_id: str | None
    reason: str | None
    actor: str | None
    promoted_at: datetime
    share: float | None = None
    on_behalf_of: str | None = None
    signed_by: str | None = None
    """Fingerprint of the key that had signed the version; None where it was not signed, and of earlier releases."""
    evidence: dict[str, Any] | None = None
    """What a canary that judges itself had shown then: `canary_judge.Evidence`."""

    @property
    def by(self) -> str:
        """Who made the change, for people."""
        whose = f" on behalf of {self.on_behalf_of}" if self.on_behalf_of else ""
        return f"{self.actor or 'nobody named'}{whose}"


class History:
    """The promotions in PostgreSQL. Every call raises `Unavailable` where the database does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: queue.LifoQueue[psycopg2.extensions.connection] = queue.LifoQueue(IDLE_CONNECTIONS)

    def prepare(self) -> None:
        """Make the schema and the table unless they are there; processes that start together take turns."""
        with self._transaction() as cursor:
            cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK_NAME})", ["(schema)"])
            cursor.execute(_SCHEMA)

    def champion(self, model: str) -> Promotion | None:
        """Return the row that says what is in production; None where nothing is."""
        return _in_production(self.rows(model, actions=PRODUCTION, limit=1))

    def canary(self, model: str) -> Promotion | None:
        """Return the row of the canary that is under way; None where none is."""
        return _under_way(self.rows(model, actions=CANARY, limit=1))

    def pin(self, model: str) -> Promotion | None:
        """Return the row that pins a version; None where none is pinned."""
        return _pinned(self.rows(model, actions=PINS, limit=1))

    def champions(self) -> dict[str, Promotion]:
        """Return what is in production, by model."""
        return {row.model: row for row in self._latest(PRODUCTION) if row.version is not None}

    def canaries(self) -> dict[str, Promotion]:
        """Return the canaries that are under way, by model."""
        return {row.model: row for row in self._latest(CANARY) if row.action == "canary"}

    def rows(
        self, model: str, at: datetime | None = None, limit: int | None = None, actions: Sequence[Action] | None = None
    ) -> list[Promotion]:
        """Return the changes of `model`, the latest first: those up to `at`, and only those among `actions`."""
        query = (
            "SELECT * FROM model_storage.promotions WHERE model = %s AND (%s::text[] IS NULL OR action = ANY(%s))"
            " AND (%s::timestamptz IS NULL OR promoted_at <= %s) ORDER BY id DESC LIMIT %s"
        )
        among = None if actions is None else list(actions)
        return self._read(query, [model, among, among, at, at, limit])

    def judging(self, model: str) -> dict[str, Any] | None:
        """Return what was counted of the last canary of `model` that judges itself; None where there was none."""
        with self._transaction() as cursor:
            return _judging(cursor, model)

    def changed_since(self, number: int) -> tuple[set[str], int]:
        """Return the models with changes after the row `number`, and the number of the last of them."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT model, max(id) AS last FROM model_storage.promotions WHERE id > %s GROUP BY model", [number]
            )
            last: dict[str, int] = {row["model"]: row["last"] for row in cursor.fetchall()}
        return set(last), max(last.values(), default=number)

    def _latest(self, actions: Sequence[Action]) -> list[Promotion]:
        query = (
            "SELECT DISTINCT ON (model) * FROM model_storage.promotions WHERE action = ANY(%s) ORDER BY model, id DESC"
        )
        return self._read(query, [list(actions)])

    @contextmanager
    def change(self, model: str) -> Iterator[Change]:
        """Open a change of what is in production; other processes' changes of the same model wait.

        Raises:
            Conflict: another change of the model takes too long.
        """
        with self._transaction() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_SECONDS}s"])
            try:
                cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK_NAME})", [model])
            except psycopg2.errors.LockNotAvailable as error:
                raise Conflict(f"another change of {model} is under way for more than {LOCK_SECONDS} s") from error
            cursor.execute("SELECT * FROM model_storage.promotions WHERE model = %s ORDER BY id", [model])
            yield Change(cursor, model, [Promotion.model_validate(dict(row)) for row in cursor.fetchall()])

    def check(self) -> None:
        """Raise `Unavailable` where the database does not answer."""
        self._read("SELECT * FROM model_storage.promotions LIMIT 0", [])

    def close(self) -> None:
        """Close the connections that wait for the next call."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def _read(self, query: str, values: list[Any]) -> list[Promotion]:
        with self._transaction() as cursor:
            cursor.execute(query, values)
            return [Promotion.model_validate(dict(row)) for row in cursor.fetchall()]

    @contextmanager
    def _transaction(self) -> Iterator[RealDictCursor]:
        try:
            connection = self._connection()
            try:
                with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
                    yield cursor
            except BaseException:
                connection.close()
                raise
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise Unavailable(f"PostgreSQL does not answer: {str(error).strip()}") from error
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()

    def _connection(self) -> psycopg2.extensions.connection:
        """Return a connection that answers: one that was kept, or a new one."""
        while True:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                return psycopg2.connect(self._url, connect_timeout=5, application_name="model_storage")
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
            except psycopg2.Error:
                connection.close()  # the database was restarted since
            else:
                return connection


class Change:
    """An open change of what is in production. It is there for others once the block of `History.change` ends."""

    def __init__(self, cursor: RealDictCursor, model: str, rows: list[Promotion]) -> None:
        self._cursor, self._model = cursor, model
        self.rows = [row for row in rows if row.action in PRODUCTION]
        """All earlier changes of what is in production, the oldest first."""
        self.canary = _under_way([row for row in rows if row.action in CANARY][-1:])
        """The canary that is under way."""
        self.pin = _pinned([row for row in rows if row.action in PINS][-1:])
        """The row that pins a version."""

    @property
    def champion(self) -> Promotion | None:
        """What is in production before this change."""
        return _in_production(self.rows[-1:])

    def add(
        self,
        action: Action,
        version: str | None,
        number: int | None,
        target: str | None,
        note: Note,
        share: float | None = None,
        signed_by: str | None = None,
        evidence: dict[str, Any] | None = None,
    ) -> Promotion:
        """Write the row of this change, commit it, and return it."""
        previous = self.champion.version if self.champion else None
        values: list[Any] = [self._model, action, version, number, target, previous]
        values += [note.run_id, note.snapshot_id, note.reason, note.actor, share, note.on_behalf_of, signed_by]
        values.append(None if evidence is None else Json(evidence))
        self._cursor.execute(
            "INSERT INTO model_storage.promotions (model, action, version, triton_version, target, previous_version, "
            "run_id, snapshot_id, reason, actor, share, on_behalf_of, signed_by, evidence) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
            values,
        )
        row = Promotion.model_validate(dict(self._cursor.fetchone() or {}))
        self._cursor.connection.commit()
        return row

    def judging(self) -> dict[str, Any] | None:
        """Return what was counted of the last canary that judges itself; None where there was none."""
        return _judging(self._cursor, self._model)

    def keep(self, judging: dict[str, Any] | None) -> None:
        """Keep what was counted of a canary, None: it does not judge itself; in force with the row that is added next.

        Without one it is in force at the end of the change.
        """
        self._cursor.execute("DELETE FROM model_storage.canaries WHERE model = %s", [self._model])
        if judging is not None:
            self._cursor.execute("INSERT INTO model_storage.canaries VALUES (%s, %s)", [self._model, Json(judging)])


def _judging(cursor: RealDictCursor, model: str) -> dict[str, Any] | None:
    cursor.execute("SELECT judging FROM model_storage.canaries WHERE model = %s", [model])
    row = cursor.fetchone()
    return None if row is None else dict(row["judging"])


def _under_way(latest: list[Promotion]) -> Promotion | None:
    return latest[0] if latest and latest[0].action == "canary" else None


def _pinned(latest: list[Promotion]) -> Promotion | None:
    return latest[0] if latest and latest[0].action == "pin" else None


def _in_production(latest: list[Promotion]) -> Promotion | None:
    return latest[0] if latest and latest[0].version is not None else None
