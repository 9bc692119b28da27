"""`report`: what each run came to, in PostgreSQL and MLflow, whatever happened and however often it is written."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobkit import database, job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, TransientError
from jobkit.tracking import Run
from nightshift_common.task_instance import TaskInstanceKey
from tests.support.proxy import proxy
from tests.training_jobs.test_gate import evaluation, scores
from training_jobs import report

DONE = {"pull_dataset": "success", "train": "success", "deploy_model": "success", "report": "running"}


@pytest.fixture
def task_instance() -> TaskInstanceKey:
    return TaskInstanceKey(dag_id=f"retrain_{uuid.uuid4().hex[:8]}", run_id="scheduled__2026-01-02", task_id="report")


Closer = Callable[..., report.Result]


@pytest.fixture
def close(
    task_instance: TaskInstanceKey, bottle: FolderBottle, tmp_path: Path, database_url: str, mlflow_url: str
) -> Closer:
    """Run the job as Airflow does: options as text, absent ones empty."""

    def run(**options: object) -> report.Result:
        texts = {
            "fingerprint": "f",
            "snapshot_id": "",
            "outcome": "",
            "reason": "",
            "version": "",
            "report": "",
            **options,
        }
        argv = ["--pipeline", "digits"]
        for name, value in texts.items():
            argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        context = job.Context(tmp_path, task_instance)
        return report.run(job.parse(report.Arguments, argv), context)

    return run


def row() -> dict[str, object]:
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(r) FROM nightshift.pipeline_runs r")
        (found,) = cursor.fetchall()
    return dict(found[0])


def parent_of(url: str, task_instance: TaskInstanceKey) -> object:
    return MlflowClient(url).get_run(Run.parent(task_instance).run_id)


@pytest.mark.parametrize(
    ("options", "outcome", "status"),
    [
        ({"version": "0.0.4", "states": DONE}, "promoted", "FINISHED"),
        ({"outcome": "rejected", "reason": "too bad", "states": {"export_onnx": "skipped"}}, "rejected", "FINISHED"),
        ({"outcome": "undecided", "reason": "too few", "states": {"export_onnx": "skipped"}}, "undecided", "FINISHED"),
        ({"states": {"publish_model": "skipped", "deploy_model": None}}, "not_published", "FINISHED"),
        ({"states": {"train": "failed", "evaluate": "upstream_failed"}}, "failed", "FAILED"),
        ({"version": "0.0.4", "states": {**DONE, "deploy_model": "failed"}}, "failed", "FAILED"),
        ({"outcome": "rejected", "states": {"gate": "failed"}}, "failed", "FAILED"),
    ],
)  # fmt: skip
def test_what_a_run_came_to(
    close: Closer,
    task_instance: TaskInstanceKey,
    mlflow_url: str,
    options: dict[str, object],
    outcome: str,
    status: str,
) -> None:
    result = close(snapshot_id="0123456789abcdef", **options)
    assert result.outcome == outcome
    stored = row()
    assert (stored["outcome"], stored["snapshot_id"], stored["fingerprint"]) == (outcome, "0123456789abcdef", "f")
    assert stored["finished_at"] is not None
    parent = parent_of(mlflow_url, task_instance)
    assert stored["mlflow_run_id"] == parent.info.run_id
    assert parent.info.status == status
    assert parent.data.tags["nightshift.outcome"] == outcome


@pytest.mark.parametrize(
    ("options", "champion", "expected"),
    [
        ({"outcome": "rejected", "reason": "too bad"}, 0.9967, "rejected: accuracy 0.1954 against 0.9967"),
        ({"version": "0.0.1", "states": DONE}, None, "promoted: version 0.0.1, accuracy 0.1954"),
        ({"outcome": "rejected", "reason": "too bad", "metric": "f1"}, 0.9967, "rejected: too bad"),
        ({"states": {"export_onnx": "failed"}}, 0.9967, "failed: export_onnx"),
        ({}, 0.9967, "not published: accuracy 0.1954 against 0.9967"),
        (
            {"version": "0.0.4", "states": DONE, "verdict": "undecided: the true gain is between -0.9 and -0.7"},
            0.9967,
            "promoted: version 0.0.4, accuracy 0.1954 against 0.9967; gate: undecided: the true gain is between -0.9 "
            "and -0.7",
        ),
        (
            {"version": "0.0.1", "states": DONE, "verdict": "promote: alone"},
            None,
            "promoted: version 0.0.1, accuracy 0.1954",
        ),
    ],
)
def test_the_headline_has_the_numbers_that_decided(
    close: Closer, bottle: FolderBottle, caplog: pytest.LogCaptureFixture, options: dict[str, object],
    champion: float | None, expected: str,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    found = evaluation(scores("new", 0.1954), scores("0.0.3", champion) if champion else None)
    bottle.write("evaluations/e.json", found.model_dump_json())
    result = close(**{"metric": "accuracy", "report": "evaluations/e.json", **options})
    assert result.headline == expected
    assert expected in caplog.messages
    assert [record.url for record in caplog.records if getattr(record, "event", "") == "tracking"] == [
        result.mlflow_url
    ], "the line by which Airflow links the task to the night's run"


def test_a_failure_names_the_tasks_that_failed(close: Closer) -> None:
    assert close(states={"train": "failed", "gate": "upstream_failed"}).reason == "failed: train"


def test_a_promotion_makes_the_next_night_end_early_and_a_failure_does_not(close: Closer) -> None:
    close(snapshot_id="s", states={"train": "failed"})
    assert database.completed_run("digits", "s", "f") is None
    close(snapshot_id="s", version="0.0.4", states=DONE)
    found = database.completed_run("digits", "s", "f")
    assert found is not None
    assert (found.outcome, found.model_version) == ("promoted", "0.0.4")


def test_writing_it_again_changes_nothing(close: Closer, task_instance: TaskInstanceKey, mlflow_url: str) -> None:
    first = close(snapshot_id="s", version="0.0.4", states=DONE, started_at="2026-01-02T03:04:05+00:00")
    before = row()
    assert close(snapshot_id="s", version="0.0.4", states=DONE, started_at="2026-01-02T03:04:05+00:00") == first
    after = row()
    assert {k: v for k, v in after.items() if k != "finished_at"} == {
        k: v for k, v in before.items() if k != "finished_at"
    }
    assert str(after["started_at"]).startswith("2026-01-02T03:04:05")
    experiment = MlflowClient(mlflow_url).get_experiment_by_name(task_instance.dag_id)
    assert len(MlflowClient(mlflow_url).search_runs([experiment.experiment_id])) == 1


def test_nothing_new_is_a_row_and_no_mlflow_run(close: Closer, task_instance: TaskInstanceKey, mlflow_url: str) -> None:
    assert close(snapshot_id="s", outcome="nothing_new", reason="as last night").outcome == "nothing_new"
    assert row()["reason"] == "as last night"
    assert MlflowClient(mlflow_url).get_experiment_by_name(task_instance.dag_id) is None


def test_the_summary_is_for_people_and_for_programs(
    close: Closer, task_instance: TaskInstanceKey, mlflow_url: str, bottle: FolderBottle, tmp_path: Path
) -> None:
    bottle.write("evaluations/g/s/v.json", evaluation(scores("new", 0.98), scores("0.0.3", 0.95)).model_dump_json())
    Run.start(dataclasses.replace(task_instance, task_id="train")).training_of(
        "models/g/v__1", "g", "0123456789abcdef", str(bottle), {"architecture": "resnet18", "epochs": 20, "batch": 64}
    )
    result = close(
        snapshot_id="s", version="0.0.4", states=DONE, report="evaluations/g/s/v.json", metric="accuracy",
        started_at="2026-01-02T03:04:05+01:00",
    )  # fmt: skip
    assert result.headline == "promoted: version 0.0.4, accuracy 0.9800 against 0.9500"
    parent = parent_of(mlflow_url, task_instance)
    assert result.mlflow_url == f"{mlflow_url}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert parent.info.run_name == "digits 2026-01-02 02:04 promoted"
    assert parent.data.tags["mlflow.note.content"].startswith(f"# digits {result.headline}\n")
    assert {name: parent.data.metrics[name] for name in ("golden/accuracy", "champion/accuracy")} == {
        "golden/accuracy": 0.98, "champion/accuracy": 0.95
    }  # fmt: skip
    assert parent.data.metrics["gain/accuracy"] == pytest.approx(0.03)
    assert parent.data.params == {
        "pipeline": "digits", "gate_metric": "accuracy", "group": "g", "snapshot_id": "0123456789abcdef",
        "experiment": "models/g/v__1", "architecture": "resnet18", "epochs": "20", "batch": "64",
    }  # fmt: skip
    (used,) = parent.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("g", "0123456789abcdef")
    assert json.loads(used.dataset.source)["uri"].startswith(str(bottle))
    api = MlflowClient(mlflow_url)
    text = Path(api.download_artifacts(parent.info.run_id, "summary.md", str(tmp_path))).read_text()
    for expected in (
        "# digits promoted: version 0.0.4, accuracy 0.9800 against 0.9500",
        "version: 0.0.4",
        "| accuracy | 0.9800 | 0.9500 |",
        "| train | success |",
    ):
        assert expected in text
    summary = json.loads(Path(api.download_artifacts(parent.info.run_id, "summary.json", str(tmp_path))).read_text())
    assert (summary["outcome"], summary["version"], summary["states"]["pull_dataset"]) == (
        "promoted",
        "0.0.4",
        "success",
    )


def test_with_mlflow_down_the_row_is_there_and_a_later_try_does_the_rest(
    close: Closer, task_instance: TaskInstanceKey, mlflow_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with proxy(mlflow_url) as line:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", line.url)
        line.cut()
        with pytest.raises(TransientError, match="MLflow"):
            close(snapshot_id="s", version="0.0.4", states=DONE)
        assert row()["outcome"] == "promoted"
        line.mend()
        close(snapshot_id="s", version="0.0.4", states=DONE)
        assert parent_of(mlflow_url, task_instance).info.status == "FINISHED"


def test_an_evaluation_that_is_gone_does_not_keep_a_run_open(
    close: Closer, task_instance: TaskInstanceKey, mlflow_url: str
) -> None:
    assert close(version="0.0.4", states=DONE, report="evaluations/none.json").outcome == "promoted"
    assert parent_of(mlflow_url, task_instance).info.status == "FINISHED"


def test_the_run_of_a_killed_job_is_ended_and_those_of_others_are_left(
    close: Closer, task_instance: TaskInstanceKey, mlflow_url: str
) -> None:
    api = MlflowClient(mlflow_url)
    done, killed = (Run.start(dataclasses.replace(task_instance, task_id=name)) for name in ("pull_dataset", "train"))
    done.end(succeeded=True)
    other = Run.start(dataclasses.replace(task_instance, task_id="train", run_id="another"))
    close(states={"train": "failed"})
    statuses = [api.get_run(run.run_id).info.status for run in (done, killed, other)]
    assert statuses == ["FINISHED", "KILLED", "RUNNING"]


def test_by_hand_there_is_no_run_to_close(context: job.Context, database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_TASK_INSTANCE"):
        report.run(report.Arguments(pipeline="digits"), context)
