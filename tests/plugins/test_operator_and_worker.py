"""One job a task, whatever happens to its worker, to the task and to the run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil
import psycopg2

from nightshift_common.patience import patience
from tests.plugins.test_job_operator import PASSWORD, job_pids, run_job, workers_of
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for


def execute(airflow: Airflow, statement: str) -> int:
    """Run a statement on Airflow's database; return the number of rows that it met."""
    connection = psycopg2.connect(airflow.database.replace("nightshift_", "airflow_"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return int(cursor.rowcount)
    finally:
        connection.close()


def clear(airflow: Airflow, dag_id: str, run: str, task_id: str) -> None:
    body = {"dry_run": False, "dag_run_id": run, "task_ids": [task_id], "only_failed": False, "reset_dag_runs": True}
    airflow.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)


def tries(airflow: Airflow, run: str) -> int:
    return int(airflow.task("one_job", run, "job")["try_number"])


def test_a_task_that_is_cleared_after_its_success_runs_again(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "succeed")
    assert airflow.finished("one_job", run)[0] == "success"
    clear(airflow, "one_job", run, "job")
    wait_for(lambda: tries(airflow, run) == 2, "the second life", 30)
    assert airflow.finished("one_job", run)[0] == "success"
    assert len(job_pids(marks)) == 2
    assert airflow.xcom("one_job", run, "job")["runs"] == 2


def test_a_job_that_ended_while_nobody_knew_its_id_is_not_run_again(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "wait")
    wait_for(lambda: job_pids(marks), "the job", 60)
    stored = f"FROM task_state_store WHERE run_id = '{run}'"
    wait_for(lambda: execute(airflow, f"SELECT key {stored}") == 1, "the job's id")
    for worker in workers_of(airflow, run):
        worker.kill()
    execute(airflow, f"DELETE {stored}")  # as if the worker had died before it could store the id
    (marks / "go").touch()
    assert airflow.finished("one_job", run) == ("success", {"job": "success"})
    assert tries(airflow, run) == 2
    assert len(job_pids(marks)) == 1


def test_ending_a_task_ends_a_stubborn_family_within_five_seconds(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "breed")
    (pid,) = wait_for(lambda: job_pids(marks), "the job", 60)
    family = wait_for(lambda: (f := psutil.Process(pid).children(recursive=True)) and len(f) == 2 and f, "its children")
    wait_for(lambda: "all of them are up" in airflow.log("one_job", run, "job"), "the grandchild")
    supervisor = workers_of(airflow, run)[0]
    supervisor.terminate()  # as a worker is asked to end; it passes that on to the task
    started = time.monotonic()
    wait_for(lambda: not any(alive(process) for process in family), "the family's end", 10)
    assert time.monotonic() - started < patience(5)
    airflow.call("PATCH", f"/dags/one_job/dagRuns/{run}", json={"state": "failed"})


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_secret_that_a_job_prints_is_hidden_in_the_tasks_log(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "tell")
    assert airflow.finished("one_job", run)[0] == "success"
    printed = [path for path in (airflow.state / "jobs").rglob("log") if PASSWORD in path.read_text()]
    try:
        assert len(printed) == 1
        assert "the password is ***" in airflow.log("one_job", run, "job")
        assert PASSWORD not in airflow.log("one_job", run, "job")
    finally:
        for path in printed:
            shutil.rmtree(path.parent)


def test_the_last_tasks_own_failure_fails_the_run(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("closed_by_last", marks=str(marks), last="configuration")
    assert airflow.finished("closed_by_last", run) == (
        "failed",
        {"work": "success", "more": "success", "close": "failed"},
    )


def test_the_last_task_runs_in_a_run_that_a_person_has_marked_as_failed(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("closed_by_last", marks=str(marks), how="wait")
    (pid,) = wait_for(lambda: job_pids(marks), "the job", 60)
    airflow.call("PATCH", f"/dags/closed_by_last/dagRuns/{run}", json={"state": "failed"})
    wait_for(lambda: not psutil.pid_exists(pid), "the job's end", 20)
    wait_for(lambda: airflow.states("closed_by_last", run)["close"] == "success", "the last task", 60)
    assert airflow.states("closed_by_last", run)["more"] in ("skipped", "upstream_failed")
