"""The person on call sees every failure and what to do about it, and only with a login."""

from __future__ import annotations

import html
import json
import shutil
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from nightshift.errors import JobConfigurationError, JobTransientError, RunFailed, failure
from nightshift.failures import listener, store
from nightshift.failures.remedies import REMEDIES
from nightshift.failures.store import Failure
from nightshift.launchers.base import Ended
from nightshift_common.patience import patience
from tests.plugins.test_job_operator import PASSWORD, job_pids, run_job, workers_of
from tests.plugins.test_operator_and_worker import clear
from tests.support.airflow import Airflow
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
LOST = Failure("lost", "retrain_a", "gone", "http://log", "run 1", "train", -1, 1)


def of_run(airflow: Airflow, run: str) -> list[Failure]:
    return [row.failure for row in store.open_failures(airflow.database) if row.failure.run_id == run]


def page(airflow: Airflow) -> str:
    answer = airflow.client.get("/nightshift/")
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def test_a_failed_task_is_listed_with_its_reason_its_remedy_and_its_log(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "configuration")
    assert airflow.finished("one_job", run)[0] == "failed"
    (found,) = of_run(airflow, run)
    assert (found.kind, found.dag_id, found.task_id, found.try_number) == ("configuration", "one_job", "job", 1)
    assert found.message.endswith("ConfigurationError: a made-up reason for configuration (exit code 2)")
    assert not found.will_retry
    shown = page(airflow)
    assert found.message in shown
    assert REMEDIES["configuration"].text in shown
    assert f'href="{found.log_url}"' in shown
    assert f"/dags/one_job/runs/{run.replace(':', '%3A').replace('+', '%2B')}/tasks/job?try_number=1" in found.log_url
    assert run in {row["run_id"] for row in airflow.client.get("/nightshift/failures").json()}


def test_what_the_latest_pull_left_out_is_shown_until_one_takes_everything(airflow: Airflow) -> None:
    sentence = "1 of 81 pictures were left out: 1 corrupt. For example <torn>.jpg: corrupt: it does not decode."
    for left_out in (sentence.replace("81", "80"), sentence):
        run = airflow.trigger("pulled_data", left_out=left_out)
        assert airflow.finished("pulled_data", run)[0] == "success"
    shown = airflow.client.get("/nightshift/").text
    assert html.escape(sentence) in shown and run in shown and "of 80 pictures" not in shown
    whole = airflow.trigger("pulled_data", left_out="")
    assert airflow.finished("pulled_data", whole)[0] == "success"
    assert "Left out of the latest data" not in page(airflow)


def test_a_task_that_succeeds_after_all_is_no_longer_listed(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "later_once")
    assert airflow.finished("one_job", run)[0] == "success"
    assert rows(airflow, run) == [("unavailable", 1, True, True)]
    assert of_run(airflow, run) == []


def test_a_task_that_is_cleared_and_succeeds_is_no_longer_listed(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "mended")
    assert airflow.finished("one_job", run)[0] == "failed"
    assert [found.kind for found in of_run(airflow, run)] == ["configuration"]
    (marks / "go").touch()
    clear(airflow, "one_job", run, "job")
    wait_for(lambda: not of_run(airflow, run), "the failure to go", 60)


def test_a_worker_that_is_killed_on_its_last_try_is_listed(airflow: Airflow, marks: Path) -> None:
    run = airflow.trigger("never_again", marks=str(marks), how="wait")
    wait_for(lambda: job_pids(marks), "the job", 60)
    for worker in workers_of(airflow, run, "never_again"):
        worker.kill()
    assert airflow.finished("never_again", run)[0] == "failed"
    (found,) = wait_for(lambda: of_run(airflow, run), "the failure")
    assert (found.kind, found.try_number) == ("lost", 1)
    assert REMEDIES["lost"].text in page(airflow)
    (marks / "go").touch()


def test_a_pipeline_that_cannot_be_read_is_listed_until_it_can(airflow: Airflow) -> None:
    file = airflow.home / "configs" / "pipelines" / "unreadable.yaml"
    file.write_text("description: <script>alert(1)</script>\nownr: x\n")
    listed = wait_for(lambda: [row for row in shown(airflow) if row["dag_id"] == "retrain_unreadable"], "it", 60)
    assert listed[0]["title"] == "pipeline cannot be read"
    assert "configs/pipelines/unreadable.yaml:2: ownr: there is no such key" in listed[0]["message"]
    assert "Traceback" not in listed[0]["message"]
    assert "pipeline cannot be read" in page(airflow)
    file.unlink()
    wait_for(lambda: not [row for row in shown(airflow) if row["dag_id"] == "retrain_unreadable"], "it to go", 60)


def test_nobody_sees_the_page_without_a_login(airflow: Airflow) -> None:
    for path in ("/nightshift/", "/nightshift/failures"):
        assert httpx.get(airflow.url + path).status_code == 401
        stranger = {"Authorization": "Bearer made-up"}
        assert httpx.get(airflow.url + path, headers=stranger).status_code in (401, 403)
        cookie = airflow.client.headers["Authorization"].removeprefix("Bearer ")
        assert httpx.get(airflow.url + path, cookies={"_token": cookie}).status_code == 200


def test_the_page_stands_in_the_navigation_of_airflow(airflow: Airflow) -> None:
    (plugin,) = [p for p in airflow.call("GET", "/plugins")["plugins"] if p["name"] == "nightshift"]
    (view,) = plugin["external_views"]
    assert (view["href"], view["destination"], view["url_route"]) == ("/nightshift/", "nav", "nightshift")


def test_what_is_away_does_not_hide_the_rest(airflow: Airflow) -> None:
    assert "Nothing can be read from the model storage" in page(airflow)
    assert "Open failures" in page(airflow)


def shown(airflow: Airflow) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = airflow.client.get("/nightshift/failures").raise_for_status().json()
    return found


def rows(airflow: Airflow, run: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(airflow.database)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT kind, try_number, will_retry, resolved_at IS NOT NULL FROM operations.failures"
            " WHERE run_id = %s ORDER BY try_number",
            (run,),
        )
        found = cursor.fetchall()
    connection.close()
    return found


class TestTable:
    """The table of failures."""

    def kinds(self, url: str) -> list[tuple[str, int]]:
        return [(row.failure.kind, row.failure.try_number) for row in store.open_failures(url)]

    def test_the_first_word_about_an_attempt_stays(self, database_url: str) -> None:
        store.record(database_url, [Failure("data_refused", *("retrain_a", "no", "", "run 1", "train", -1, 1))])
        store.record(database_url, [LOST])
        assert self.kinds(database_url) == [("data_refused", 1)]

    def test_the_last_attempt_of_a_task_is_shown(self, database_url: str) -> None:
        store.record(database_url, [LOST, Failure("crashed", "retrain_a", "x", "", "run 1", "train", -1, 2)])
        assert self.kinds(database_url) == [("crashed", 2)]

    def test_a_success_ends_the_failures_of_its_task_or_of_its_dag_only(self, database_url: str) -> None:
        keys = [
            ("retrain_b", "run 1", "train", -1),
            ("retrain_a", "run 2", "train", -1),
            ("retrain_a", "run 1", "gate", -1),
            ("retrain_a", "run 1", "train", 0),
        ]
        others = [Failure("lost", dag, "x", "", run, task, index, 1) for dag, run, task, index in keys]
        before = datetime.now(UTC)
        store.record(database_url, [LOST, *others])
        store.task_succeeded(database_url, "retrain_a", "run 1", "train", -1)
        assert len(self.kinds(database_url)) == 4
        store.run_succeeded(database_url, "retrain_a", "run 1", before)
        left = [row.failure for row in store.open_failures(database_url)]
        assert {(found.dag_id, found.run_id) for found in left} == {("retrain_b", "run 1"), ("retrain_a", "run 2")}
        store.run_succeeded(database_url, "retrain_a", "run 3", datetime.now(UTC))
        assert [row.failure.dag_id for row in store.open_failures(database_url)] == ["retrain_b"]


class FakeTask:
    """The attributes of a task instance that the listener reads."""

    dag_id, run_id, task_id, map_index, try_number, state = "retrain_a", "run 1", "train", None, 2, "up_for_retry"
    log_url = "http://airflow/log"


def name_database(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    connection = {"conn_type": "generic", "extra": {"url": url}}
    monkeypatch.setenv("AIRFLOW_CONN_NIGHTSHIFT_OPERATIONS", json.dumps(connection))


@pytest.fixture
def stored(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(
        "AIRFLOW_CONN_NIGHTSHIFT_OPERATIONS", json.dumps({"conn_type": "generic", "extra": {"url": database_url}})
    )
    return database_url


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (failure(Ended(2), "a reason"), "configuration", "a reason"),
        (failure(Ended(3), "a reason"), "data_refused", "a reason"),
        (failure(Ended(75), "a reason"), "unavailable", "a reason"),
        (failure(Ended(None), "a reason"), "crashed", "a reason"),
        (KeyError("x"), "other", "KeyError: 'x'"),
        ("Task did not emit heartbeat within time limit", "lost", "Task did not emit heartbeat within time limit"),
        ("the state was manually set to `failed`", "marked", "the state was manually set to `failed`"),
    ],
)
def test_each_error_is_of_a_kind_that_has_a_remedy(stored: str, error: Any, kind: str, message: str) -> None:
    listener.on_task_instance_failed(previous_state=None, task_instance=FakeTask(), error=error)
    (found,) = store.open_failures(stored)
    assert (found.failure.kind, found.failure.message) == (kind, message)
    assert found.failure.will_retry
    assert kind in REMEDIES


def test_a_task_that_only_repeats_an_earlier_failure_is_not_listed(stored: str) -> None:
    listener.on_task_instance_failed(previous_state=None, task_instance=FakeTask(), error=RunFailed("train failed"))
    assert store.open_failures(stored) == []


def test_a_database_that_is_away_or_hangs_fails_nothing_and_holds_nobody_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # accepts, and never answers
    for url in (f"postgresql://u:p@127.0.0.1:{silent.server_port}/x", "postgresql://u:p@127.0.0.1:9/x", "nonsense"):
        name_database(monkeypatch, url)
        started = time.monotonic()
        listener.on_task_instance_failed(previous_state=None, task_instance=FakeTask(), error=JobTransientError("x"))
        assert time.monotonic() - started < patience(listener.PATIENCE_SECONDS + 1)
    monkeypatch.delenv("AIRFLOW_CONN_NIGHTSHIFT_OPERATIONS")
    listener.on_task_instance_failed(previous_state=None, task_instance=FakeTask(), error=JobConfigurationError("x"))
    listener.on_dag_run_failed(dag_run=object(), msg="")
    silent.server_close()


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("Traceback:\n  File x\nnightshift_common.yaml_file.ConfigFileError: a.yaml:1: b\na.yaml:2: c\n",
         "a.yaml:1: b\na.yaml:2: c"),
        ("Traceback:\nKeyError: 'a'\n\nDuring handling:\nTraceback:\nValueError: the last\n", "the last"),
        ("no traceback at all", "no traceback at all"),
    ],
)  # fmt: skip
def test_an_import_error_is_told_without_its_traceback(trace: str, message: str) -> None:
    assert store.import_error_message(trace) == message


def test_no_secret_is_written_down_with_a_failure(airflow: Airflow, marks: Path) -> None:
    run = run_job(airflow, marks, "tell_secret")
    assert airflow.finished("one_job", run)[0] == "failed"
    for log in airflow.state.glob("jobs/one_job/*/job/*/log"):
        if PASSWORD in log.read_text():  # the job's own words, which other tests must not find
            shutil.rmtree(log.parent)
    (found,) = of_run(airflow, run)
    assert "***" in found.message
    assert PASSWORD not in found.message
