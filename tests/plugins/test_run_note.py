"""What a run came to stands in its note, in Airflow."""

from __future__ import annotations

import pytest

from nightshift.run_note import LIMIT, run_note
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for

TEXT = "rejected: macro_f1 0.1954 against 0.9967\n\n[MLflow run](http://mlflow/#/experiments/1/runs/2)"


def note(airflow: Airflow, run: str) -> str | None:
    found: str | None = airflow.call("GET", f"/dags/noted/dagRuns/{run}")["note"]
    return found


@pytest.mark.parametrize("fail", [False, True])
def test_the_last_task_gives_the_run_its_note_whatever_it_came_to(airflow: Airflow, fail: bool) -> None:
    run = airflow.trigger("noted", note=TEXT, fail=fail)
    assert airflow.finished("noted", run)[0] == ("failed" if fail else "success")
    assert note(airflow, run) == TEXT


def test_a_note_that_a_person_wrote_stays(airflow: Airflow) -> None:
    run = airflow.trigger("noted", note=TEXT)
    assert airflow.finished("noted", run)[0] == "success"
    path = f"/dags/noted/dagRuns/{run}"
    airflow.call("PATCH", path, json={"note": "looked at on Monday"})
    airflow.call("POST", f"{path}/clear", json={"dry_run": False})
    wait_for(lambda: airflow.task("noted", run, "report")["try_number"] == 2, "the second try")
    assert airflow.finished("noted", run)[0] == "success"
    assert note(airflow, run) == "looked at on Monday"


def test_a_long_reason_is_cut_and_the_link_is_kept() -> None:
    result = {"headline": "failed: train", "reason": "word " * 400, "mlflow_url": "http://mlflow"}
    text = run_note(result)
    assert len(text) == LIMIT
    assert text.startswith("failed: train\n\nword") and text.endswith("…\n\n[MLflow run](http://mlflow)")


def test_a_reason_that_the_headline_has_is_not_said_twice() -> None:
    assert run_note({"headline": "failed: train", "reason": "failed: train", "mlflow_url": None}) == "failed: train"
