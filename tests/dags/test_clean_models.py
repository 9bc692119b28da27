"""What is special about the DAG that deletes versions."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError


@pytest.fixture
def dag(dags: dict[str, Any]) -> Any:
    return dags["clean_models"]


def test_nothing_is_deleted_before_somebody_turns_it_on(dag: Any) -> None:
    assert dag.is_paused_upon_creation is True
    assert dag.timetable.expression == "30 4 * * *"


def test_the_form_reaches_the_job_and_asks_nothing_of_a_night(dag: Any) -> None:
    (task,) = dag.tasks
    assert task.options_from_params == {"older_than_days": "older_than_days", "dry_run": "dry_run"}
    assert (dag.params["older_than_days"], dag.params["dry_run"]) == (None, False)


@pytest.mark.parametrize(
    ("field", "value"), [("older_than_days", -1), ("older_than_days", "a week"), ("dry_run", "no")]
)
def test_the_form_refuses_what_the_job_would_refuse(dag: Any, field: str, value: object) -> None:
    with pytest.raises(ParamValidationError):
        dag.params.get_param(field).resolve(value)
