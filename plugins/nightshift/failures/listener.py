"""Writes every failure down as it happens, and that it is over; gives a run its note. Never fails what it listens to.

A task that was killed with its worker and has no try left fires no hook of its own: the failed run's hook looks for
such tasks. All writing goes through `_write`, in a thread of its own: the scheduler's database session belongs to its
thread, and a database that hangs may hold nobody for longer than a few seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk._shared.secrets_masker import redact
from airflow.sdk.exceptions import AirflowTaskTimeout

from nightshift import connections
from nightshift.failures import store
from nightshift.failures.remedies import REMEDIES
from nightshift.failures.store import Failure
from nightshift.run_note import set_note

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 5.0


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:
    """Write a failed attempt down, whether it will be retried or not."""
    kind = _kind(error)
    if kind != "follows":
        message = _message(error, kind)
        _safely(lambda: _of_task(task_instance, kind, message), lambda url, found: store.record(url, [found]))


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:
    """Note that the earlier attempts of the task are over."""
    if task_instance.try_number > 1:
        _safely(
            lambda: (task_instance.dag_id, task_instance.run_id, task_instance.task_id, _map_index(task_instance)),
            lambda url, key: store.task_succeeded(url, *key),
        )


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Write down the run's failed tasks that had no chance to do so themselves, and give the run its note."""
    _note(dag_run)
    _safely(lambda: _lost_tasks(dag_run), store.record)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Write down that the run's failures are over, and the DAG's earlier ones; give the run its note."""
    _note(dag_run)
    _safely(
        lambda: (dag_run.dag_id, dag_run.run_id, dag_run.start_date),
        lambda url, run: store.run_succeeded(url, *run),
    )


def _note(dag_run: Any) -> None:
    """Give the run its note, here: it is stored with the run's state, in the session of this thread."""
    try:
        set_note(dag_run)
    except Exception:
        log.exception("a run has no note")


def _safely(look: Callable[[], Any], write: Callable[[str, Any], None]) -> None:
    """Look at Airflow's objects here, in their own thread; write in another. Whatever fails is only logged."""
    try:
        found = look()
        if not found:
            return
        writer = threading.Thread(target=_write, args=(write, found), name="nightshift-failures", daemon=True)
        writer.start()
        writer.join(PATIENCE_SECONDS)
    except Exception:
        log.exception("a failure could not be written down")


def _write(write: Callable[[str, Any], None], found: Any) -> None:
    try:
        write(connections.operations_url(), found)
    except Exception as error:  # noqa: BLE001 - what it listens to goes on
        log.warning("a failure could not be written down: %s", error)


def _of_task(task_instance: Any, kind: str, message: str) -> Failure:
    state = getattr(task_instance, "state", None)
    return Failure(
        kind=kind,
        dag_id=task_instance.dag_id,
        run_id=task_instance.run_id,
        task_id=task_instance.task_id,
        map_index=_map_index(task_instance),
        try_number=task_instance.try_number,
        will_retry=str(getattr(state, "value", state)) == "up_for_retry",
        message=message,
        log_url=task_instance.log_url,
    )


def _map_index(task_instance: Any) -> int:
    return -1 if task_instance.map_index is None else int(task_instance.map_index)


def _lost_tasks(dag_run: Any) -> list[Failure]:
    from sqlalchemy.orm import object_session

    message = "the task ended without a word: its worker was killed, or its machine went away"
    found = dag_run.get_task_instances(state=["failed"], session=object_session(dag_run))
    # A task that ended with a word has its row already, which stays.
    return [_of_task(task, "lost", message) for task in found]


def _kind(error: Any) -> str:
    if isinstance(error, AirflowTaskTimeout):
        return "timed_out"
    if isinstance(error, BaseException):
        return str(getattr(error, "kind", "other"))
    return "marked" if "manually" in str(error) else "lost"


def _message(error: Any, kind: str) -> str:
    text = str(error) or type(error).__name__
    if kind in ("other", "timed_out"):
        text = f"{type(error).__name__}: {text}"
    remedy = REMEDIES[kind].text if kind in REMEDIES else ""
    return str(redact(text.removesuffix(f"\n{remedy}")))[: store.MESSAGE_LIMIT]
