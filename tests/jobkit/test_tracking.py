"""MLflow tracking against a real MLflow server."""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from jobkit import tracking
from jobkit.errors import ConfigurationError, TransientError
from jobkit.tracking import Run, task_instance_of_environment
from nightshift_common.task_instance import TaskInstanceKey
from tests.support import servers
from tests.support.proxy import Proxy, proxy
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def api(mlflow_url: str) -> MlflowClient:
    return MlflowClient(mlflow_url)


@pytest.fixture
def task_instance() -> TaskInstanceKey:
    return TaskInstanceKey(
        dag_id=f"retrain_{uuid.uuid4().hex[:8]}", run_id="manual__2026-01-02T03:04:05+00:00", task_id="train"
    )


@pytest.fixture
def line(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The line to the server, which a test can cut."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with proxy(mlflow_server) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.url)
        yield found


def runs_of(api: MlflowClient, dag_id: str) -> list[StoredRun]:
    experiment = api.get_experiment_by_name(dag_id)
    return [] if experiment is None else list(api.search_runs([experiment.experiment_id]))


def test_a_job_is_a_child_of_the_dag_runs_run(api: MlflowClient, task_instance: TaskInstanceKey) -> None:
    run = Run.start(task_instance)
    stored = api.get_run(run.run_id)
    assert stored.info.run_name == "train"
    assert stored.info.status == "RUNNING"
    parent = api.get_run(stored.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == task_instance.run_id
    assert parent.info.experiment_id == stored.info.experiment_id
    assert run.parent_run().run_id == parent.info.run_id
    lock = (ROOT / "requirements" / "jobs.txt").read_bytes()
    assert stored.data.tags["nightshift.lock_sha256"] == hashlib.sha256(lock).hexdigest()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert stored.data.tags["mlflow.source.git.commit"].removesuffix("-dirty") == head.strip()
    run.end(succeeded=True)
    assert api.get_run(run.run_id).info.status == "FINISHED"


def test_a_run_names_who_asked_for_it_and_what_made_it(
    api: MlflowClient, task_instance: TaskInstanceKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(run_id: str) -> list[str]:
        tags = api.get_run(run_id).data.tags
        return [tags[f"mlflow.{name}"] for name in ("user", "source.name", "source.type")]

    scheduled = Run.start(task_instance)
    assert scheduled.parent_id is not None
    made_by = "pytest.__main__"  # what this process is
    assert named(scheduled.run_id) == ["airflow", made_by, "JOB"]
    assert named(scheduled.parent_id) == ["airflow", task_instance.dag_id, "JOB"]
    monkeypatch.setenv("NIGHTSHIFT_TRIGGERED_BY", "ada")
    triggered = Run.start(dataclasses.replace(task_instance, **{"run_id": f"{task_instance.run_id}_by_ada"}))
    assert triggered.parent_id is not None
    assert named(triggered.run_id) == ["ada", made_by, "JOB"]
    assert named(triggered.parent_id) == ["ada", task_instance.dag_id, "JOB"]
    assert named(Run.start(None).run_id) == [getpass.getuser(), made_by, "JOB"]


def test_a_retry_resumes_its_run(api: MlflowClient, task_instance: TaskInstanceKey) -> None:
    first = Run.start(task_instance)
    first.metrics({"loss": 1.0}, step=1)
    first.end(succeeded=False)
    assert api.get_run(first.run_id).info.status == "FAILED"
    second = Run.start(dataclasses.replace(task_instance, **{"try_number": 2}))
    assert second.run_id == first.run_id
    assert api.get_run(first.run_id).info.status == "RUNNING"
    second.metrics({"loss": 0.5}, step=2)
    second.end(succeeded=True)
    stored = api.get_run(first.run_id)
    assert stored.data.tags["nightshift.try_number"] == "2"
    assert [(m.step, m.value) for m in api.get_metric_history(first.run_id, "loss")] == [(1, 1.0), (2, 0.5)]
    assert len(runs_of(api, task_instance.dag_id)) == 2


def test_tasks_mapped_tasks_and_dag_runs_have_runs_of_their_own(
    api: MlflowClient, task_instance: TaskInstanceKey
) -> None:
    others = [{"task_id": "evaluate"}, {"map_index": 0}, {"map_index": 1}, {"run_id": "scheduled__2026-01-03"}]
    found = {Run.start(dataclasses.replace(task_instance, **change)).run_id for change in [{}, *others]}
    assert len(found) == 5
    parents = {Run.parent(dataclasses.replace(task_instance, **change)).run_id for change in [{}, *others]}
    assert len(parents) == 2
    assert not parents & found


def test_jobs_that_start_together_agree_on_one_parent(api: MlflowClient, task_instance: TaskInstanceKey) -> None:
    with ThreadPoolExecutor(6) as pool:
        started = list(pool.map(lambda n: Run.start(dataclasses.replace(task_instance, **{"map_index": n})), range(6)))
    assert len({run.parent_id for run in started}) == 1
    names = sorted(run.info.run_name for run in runs_of(api, task_instance.dag_id))
    assert names == sorted([task_instance.run_id, *(f"train[{n}]" for n in range(6))])


def test_parameters_are_logged_flat_however_many_and_a_changed_one_does_not_fail_the_retry(
    api: MlflowClient, task_instance: TaskInstanceKey
) -> None:
    run = Run.start(task_instance)
    run.params({"optimizer": {"type": "adamw", "lr": 4e-4}, "long": "x" * 7000} | {f"p{n}": n for n in range(150)})
    run.params({"optimizer": {"type": "adamw", "lr": 1e-3}})
    stored = api.get_run(run.run_id).data
    assert stored.params["optimizer.lr"] == "0.0004"
    assert stored.tags["retry.optimizer.lr"] == "0.001"
    assert (len(stored.params), len(stored.params["long"])) == (153, 6000)
    assert "retry.optimizer.type" not in stored.tags


def test_metrics_survive_a_server_that_is_away_for_a_while(
    api: MlflowClient,
    task_instance: TaskInstanceKey,
    line: Proxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run.start(task_instance)
    run._last_flush = float("-inf")  # as after two seconds
    line.cut()
    run.metrics({"loss": 1.0}, step=1)
    assert "kept and sent later" in caplog.text
    run.metrics({"loss": 0.5}, step=2)
    line.mend()
    run.end(succeeded=True)
    assert [m.value for m in api.get_metric_history(run.run_id, "loss")] == [1.0, 0.5]


def test_a_job_whose_metrics_cannot_be_delivered_is_no_success(task_instance: TaskInstanceKey, line: Proxy) -> None:
    run = Run.start(task_instance)
    run.metrics({"loss": 1.0})
    line.cut()
    with pytest.raises(TransientError):
        run.end(succeeded=True)
    run.end(succeeded=False)  # a failed job's own error is what counts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_logged_as_it_is(
    api: MlflowClient, task_instance: TaskInstanceKey, value: float
) -> None:
    run = Run.start(task_instance)
    run.metrics({"loss": value, "accuracy": 0.5})
    run.end(succeeded=True)
    assert api.get_run(run.run_id).data.metrics["accuracy"] == 0.5
    assert len(api.get_metric_history(run.run_id, "loss")) == 1


def test_thousands_of_values_arrive(api: MlflowClient, task_instance: TaskInstanceKey) -> None:
    run = Run.start(task_instance)
    run.metrics({f"class/{n}/f1": n / 2500 for n in range(2500)})
    run.end(succeeded=True)
    assert len(api.get_run(run.run_id).data.metrics) == 2500


def test_what_a_training_takes_of_the_machine_is_logged_and_a_retry_goes_on_with_it(
    api: MlflowClient, task_instance: TaskInstanceKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    memory, steps = "system/system_memory_usage_percentage", []
    for attempt in (1, 2):
        run = Run.start(dataclasses.replace(task_instance, **{"try_number": attempt}))

        def more(known: int = len(steps), run_id: str = run.run_id) -> bool:
            return len(api.get_metric_history(run_id, memory)) > known

        with run.system_metrics():
            wait_for(more, "system metrics", 60)
        steps = [metric.step for metric in api.get_metric_history(run.run_id, memory)]
        assert steps == list(range(len(steps)))
    assert 0 < api.get_run(run.run_id).data.metrics[memory] <= 100
    assert "system/cpu_utilization_percentage" in api.get_run(run.run_id).data.metrics


def test_without_system_metrics_the_work_goes_on(
    task_instance: TaskInstanceKey, mlflow_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    run, done = Run.start(task_instance), []
    with run.system_metrics():
        done.append(True)
    assert done and "no system metrics: " in caplog.text


def test_artifacts_arrive_through_the_server(api: MlflowClient, task_instance: TaskInstanceKey, tmp_path: Path) -> None:
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "a.txt").write_text("in a folder")
    (tmp_path / "b.txt").write_text("alone")
    run = Run.start(task_instance)
    run.artifact(tmp_path / "b.txt")
    run.artifact(tmp_path / "sheets", "sheets")
    run.dictionary({"a": 1, "path": Path("x")}, "report.json")
    assert sorted(f.path for f in api.list_artifacts(run.run_id)) == ["b.txt", "report.json", "sheets"]
    fetched = api.download_artifacts(run.run_id, "report.json", str(tmp_path))
    assert json.loads(Path(fetched).read_text()) == {"a": 1, "path": "x"}
    assert [f.path for f in api.list_artifacts(run.run_id, "sheets")] == ["sheets/a.txt"]


def test_names_with_quotes_and_other_letters_are_found_again(api: MlflowClient) -> None:
    task_instance = TaskInstanceKey(
        dag_id=f"ночь_{uuid.uuid4().hex[:6]}", run_id='o\'clock "two" 100%_', task_id="train"
    )
    assert Run.start(task_instance).run_id == Run.start(task_instance).run_id


def test_an_experiment_that_a_person_deleted_is_restored(api: MlflowClient, task_instance: TaskInstanceKey) -> None:
    first = Run.start(task_instance)
    api.delete_experiment(first.experiment_id)
    again = Run.start(task_instance)
    assert again.experiment_id == first.experiment_id
    assert api.get_experiment(first.experiment_id).lifecycle_stage == "active"


def test_a_job_by_hand_has_a_run_too(api: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.start(None)
    assert run.parent_run() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    assert Run.start(None).run_id == run.run_id


def test_the_link_is_one_that_a_browser_can_open(
    mlflow_url: str, task_instance: TaskInstanceKey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_MLFLOW_UI", "https://mlflow.example/base/")
    caplog.set_level("INFO")
    run = Run.start(task_instance)
    assert run.url == f"https://mlflow.example/base/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    (record,) = [r for r in caplog.records if getattr(r, "event", "") == "tracking"]
    assert (record.run_id, record.url) == (run.run_id, run.url)


def test_a_server_that_is_not_there_is_worth_another_try(
    task_instance: TaskInstanceKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(TransientError):
        Run.start(task_instance)


@pytest.mark.parametrize("uri", ["", "./mlruns"])
def test_an_address_that_is_no_server_is_a_configuration_error(
    task_instance: TaskInstanceKey, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigurationError):
        Run.start(task_instance)


JOB = """
from jobkit import job

class Arguments(job.Arguments):
    '''Log, then end.'''
    fail: bool = False

def run(arguments, context):
    context.tracking.metrics({"value": 1.0})
    if arguments.fail:
        raise RuntimeError("on purpose")
    return job.Result()

job.main(Arguments, run)
"""


@pytest.mark.parametrize(("options", "status"), [([], "FINISHED"), (["--fail"], "FAILED")])
def test_a_jobs_run_ends_as_the_job_does(
    api: MlflowClient, task_instance: TaskInstanceKey, tmp_path: Path, options: list[str], status: str
) -> None:
    (tmp_path / "example.py").write_text(JOB)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NIGHTSHIFT_TASK_INSTANCE": task_instance.to_json()}
    done = subprocess.run(
        [sys.executable, "example.py", *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert all(json.loads(line)["message"] for line in done.stdout.splitlines()), "only log lines go to standard output"
    child = next(r for r in runs_of(api, task_instance.dag_id) if r.info.run_name == "train")
    assert (child.info.status, child.data.metrics) == (status, {"value": 1.0})


def test_the_task_instance_comes_from_the_environment(
    task_instance: TaskInstanceKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTSHIFT_TASK_INSTANCE", raising=False)
    assert task_instance_of_environment() is None
    monkeypatch.setenv("NIGHTSHIFT_TASK_INSTANCE", task_instance.to_json())
    assert task_instance_of_environment() == task_instance
    assert tracking.DAG_RUN_TAG == "nightshift.dag_run"
