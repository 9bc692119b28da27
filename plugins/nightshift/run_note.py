"""What a run came to, as its note in Airflow: the last task leaves the text, the scheduler makes it the run's note.

A worker has no way to a run's note: Airflow's task API does not have it, and a task's token opens no other. So the text
travels as an XCom to the listener, which runs where the run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "run_note"
LIMIT = 1000  # characters that Airflow keeps of a note


def run_note(result: Mapping[str, Any]) -> str:
    """Return the note, Markdown, of what `training_jobs.report` returned: headline, reason, link to MLflow's run."""
    headline, reason = str(result["headline"]), str(result["reason"])
    link = f"\n\n[MLflow run]({result['mlflow_url']})" if result.get("mlflow_url") else ""
    text = headline if reason in headline else f"{headline}\n\n{reason}"
    room = LIMIT - len(link)
    return (text if len(text) <= room else f"{text[: room - 1]}…") + link


def leave_note(task_instance: Any, text: str) -> None:
    """Leave the note of the run, from one of its tasks."""
    task_instance.xcom_push(key=KEY, value=text)


def set_note(dag_run: Any) -> None:
    """Give a run that has ended the note that its tasks left; a note that a person wrote stays.

    `dag_run` is Airflow's own row: what is set is stored with the state that is being set.
    """
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or (dag_run.dag_run_note is not None and dag_run.dag_run_note.user_id is not None):
        return
    left = (XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == KEY)
    found = session.scalars(select(XComModel).where(*left).order_by(XComModel.timestamp.desc()).limit(1)).first()
    if found is not None:
        dag_run.note = str(XComModel.deserialize_value(found))[:LIMIT]
