"""The operator in a real Airflow: what its jobs' ends come to, and that jobs outlive workers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from local import airflow as stack
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for

PASSWORD = "kuchen-und-tee-5551"


def job_pids(marks: Path) -> list[int]:
    """Return the process numbers of all jobs that ran, in their order."""
    ran = marks / "ran"
    return [int(line) for line in ran.read_text().split()] if ran.exists() else []


def run_job(airflow: Airflow, marks: Path, how: str, **conf: Any) -> str:
    return airflow.trigger("one_job", how=how, marks=str(marks), **conf)


def test_a_result_becomes_xcoms_and_parameters_keep_their_types(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "succeed", epochs=7, force=True)
    assert airflow.finished("one_job", run) == ("success", {"job": "success"})
    result = airflow.xcom("one_job", run, "job")
    assert (result["epochs"], result["force"], result["stop_here"]) == (7, True, None)
    assert airflow.xcom("one_job", run, "job", "epochs") == 7
    assert result["triggered_by"] == stack.ADMIN
    assert result["password_sha256"] == hashlib.sha256(PASSWORD.encode()).hexdigest()


def test_a_parameter_out_of_bounds_is_refused_before_anything_runs(airflow: Airflow) -> None:
    body = {"logical_date": None, "conf": {"epochs": 0}}
    answer = airflow.client.post("/api/v2/dags/one_job/dagRuns", json=body)
    assert answer.status_code == 400
    assert "less than the minimum of 1" in answer.text


FAILURES = {
    "configuration": (1, "JobConfigurationError", "a made-up reason for configuration (exit code 2)"),
    "data": (1, "JobDataValidationError", "a made-up reason for data (exit code 3)"),
    "later": (2, "JobTransientError", "a made-up reason for later (exit code 75)"),
    "crash": (2, "JobFailed", "KeyError: 'no such key' (exit code 1)"),
    "out_of_memory": (2, "JobFailed", "SIGKILL: often the kernel's out-of-memory killer"),
    "no_result": (2, "JobFailed", "left no result.json"),
}


@pytest.fixture(scope="module")
def failing_runs(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """A run for each way to fail, all at once: the run's id, and where its job leaves its marks."""
    folders = {how: tmp_path_factory.mktemp(how) for how in FAILURES}
    return {how: (run_job(airflow, folder, how), folder) for how, folder in folders.items()}


@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_is_retried_only_where_that_may_help(
    airflow: Airflow, failing_runs: dict[str, tuple[str, Path]], how: str
) -> None:
    run, marks = failing_runs[how]
    tries, exception, words = FAILURES[how]
    assert airflow.finished("one_job", run) == ("failed", {"job": "failed"})
    assert len(job_pids(marks)) == tries
    log = airflow.log("one_job", run, "job", tries)
    assert exception in log
    assert words in log


def test_a_server_that_was_away_for_a_while_fails_no_run(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "later_once")
    assert airflow.finished("one_job", run) == ("success", {"job": "success"})
    assert len(job_pids(marks)) == 2


def test_a_missing_connection_or_field_is_named_and_not_tried_again(airflow: Airflow) -> None:
    run = airflow.trigger("missing_connection")
    assert airflow.finished("missing_connection", run)[0] == "failed"
    log = airflow.log("missing_connection", run, "undefined")
    assert "the connection nightshift_triton is not defined" in log
    log = airflow.log("missing_connection", run, "incomplete")
    assert "the connection nightshift_mlflow lacks extra.url, which becomes the job's MLFLOW_TRACKING_URI" in log
    assert airflow.task("missing_connection", run, "incomplete")["try_number"] == 1


def test_the_link_to_mlflow_is_there_while_the_job_runs_and_after_it(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "wait", tracking="http://mlflow.example/runs/1")
    path = f"/dags/one_job/dagRuns/{run}/taskInstances/job/links"

    def link() -> str | None:
        found: str | None = airflow.call("GET", path)["extra_links"].get("MLflow run")
        return found

    wait_for(link, "the link")
    assert link() == "http://mlflow.example/runs/1"
    assert airflow.states("one_job", run) == {"job": "running"}
    (marks / "go").touch()
    assert airflow.finished("one_job", run)[0] == "success"
    assert link() == "http://mlflow.example/runs/1"


def test_stop_here_skips_what_follows_and_the_last_task_runs(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("chain_of_jobs", how="stop_here", marks=str(marks))
    state, tasks = airflow.finished("chain_of_jobs", run)
    skipped = dict.fromkeys(("second", "third", "fourth"), "skipped")
    assert (state, tasks) == ("success", {"first": "success", **skipped, "last": "success"})
    assert airflow.xcom("chain_of_jobs", run, "first")["stop_here"]["outcome"] == "nothing_new"
    assert len(job_pids(marks)) == 2


def test_a_failure_fails_the_run_although_the_last_task_succeeds(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("chain_of_jobs", how="configuration", marks=str(marks))
    state, tasks = airflow.finished("chain_of_jobs", run)
    not_reached = dict.fromkeys(("second", "third", "fourth"), "upstream_failed")
    assert (state, tasks) == ("failed", {"first": "failed", **not_reached, "last": "success"})


def test_results_go_from_job_to_job_and_a_parameter_can_end_the_chain(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("chain_of_jobs", marks=str(marks), publish=False)
    state, tasks = airflow.finished("chain_of_jobs", run)
    expected = {"first": "success", "second": "success", "third": "skipped", "fourth": "skipped", "last": "success"}
    assert (state, tasks) == ("success", expected)
    assert airflow.xcom("chain_of_jobs", run, "second")["text"] == "täxt"
    assert airflow.xcom("chain_of_jobs", run, "last")["text"] == "succeed"


def test_the_retry_adopts_the_job_of_a_worker_that_was_killed(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "wait")
    (pid,) = wait_for(lambda: job_pids(marks), "the job", 60)
    for worker in workers_of(airflow, run):
        worker.kill()
    task = wait_for(
        lambda: (t := airflow.task("one_job", run, "job"))["try_number"] == 2 and t["state"] == "running" and t,
        "the second try",
        60,
    )
    assert task["pid"] != pid
    assert psutil.pid_exists(pid)
    (marks / "go").touch()
    assert airflow.finished("one_job", run) == ("success", {"job": "success"})
    assert job_pids(marks) == [pid]
    assert airflow.xcom("one_job", run, "job")["runs"] == 1


def test_marking_a_task_as_failed_ends_its_job(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "wait")
    (pid,) = wait_for(lambda: job_pids(marks), "the job", 60)
    path = f"/dags/one_job/dagRuns/{run}/taskInstances/job"
    airflow.call("PATCH", path, json={"new_state": "failed"})
    wait_for(lambda: not psutil.pid_exists(pid), "the job's end", 20)
    assert airflow.finished("one_job", run)[0] == "failed"


def test_secrets_stand_in_no_file_no_log_and_no_database(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "succeed")
    assert airflow.finished("one_job", run)[0] == "success"
    needle = PASSWORD.encode()
    for path in airflow.state.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert needle not in path.read_bytes(), path
    task = airflow.task("one_job", run, "job")
    assert "marks" in json.dumps(task["rendered_fields"])
    assert PASSWORD not in json.dumps(task)
    dumped = dump_of(airflow, ["serialized_dag", "rendered_task_instance_fields", "task_instance", "xcom", "log"])
    assert "jobs_for_tests.example" in dumped
    assert PASSWORD not in dumped


def workers_of(airflow: Airflow, run: str, dag_id: str = "one_job") -> list[psutil.Process]:
    """Return the processes that run Airflow's side of the task: the one that reported itself, and its supervisor."""
    task = psutil.Process(airflow.task(dag_id, run, "job")["pid"])
    supervisor = task.parent()
    assert supervisor is not None
    return [supervisor, task]


def dump_of(airflow: Airflow, tables: list[str]) -> str:
    """Return the content of tables of Airflow's database as text."""
    import psycopg2

    connection = psycopg2.connect(airflow.database.replace("nightshift_", "airflow_"))
    with connection, connection.cursor() as cursor:
        texts = []
        for table in tables:
            cursor.execute(f"SELECT row_to_json(t)::text FROM {table} t")
            texts += [row[0] for row in cursor.fetchall()]
    connection.close()
    return "\n".join(texts)
