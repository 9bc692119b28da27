"""Whole nights on the real stack: Airflow, PostgreSQL, MLflow, collect, model storage, Triton, real digits.

The tests run in the order in which they stand: each goes on with the state that the one before it left, as nights do.
"""

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from local import components, processes, stack
from local.airflow import AirflowApi
from local.run import Retraining, ask_served_model, retrain
from local.settings import ROOT, Settings
from local.supervision import Supervisor
from nightshift_common.patience import patience
from tests.e2e.support import job_logs, jobs, versions, wait_for

DAG = "retrain_digits"
QUICK = {"force": True, "epochs": 2}  # the gate rejects such a model, so the champion stays


@pytest.fixture(scope="module")
def first_night(settings: Settings, console: Console) -> Retraining:
    return retrain(settings, DAG, {}, console)


@pytest.fixture
def api(settings: Settings) -> AirflowApi:
    return AirflowApi(settings)


def wait_for_end(api: AirflowApi, run_id: str, seconds: float = 240) -> str:
    return wait_for(
        lambda: state if (state := api.run_state(DAG, run_id)) in ("success", "failed") else "", run_id, seconds
    )


def wait_for_first_epoch(settings: Settings, run_id: str) -> None:
    first = re.compile(r"epoch 1 of \d+: loss ")  # written after the epoch's checkpoint
    wait_for(lambda: first.search(job_logs(settings, run_id, "train")), "the first epoch")


def mlflow_children(settings: Settings, run_id: str) -> list[dict[str, Any]]:
    base = f"{settings.url('mlflow')}/api/2.0/mlflow"
    experiment = httpx.get(f"{base}/experiments/get-by-name", params={"experiment_name": DAG}).json()["experiment"]
    query = {"experiment_ids": [experiment["experiment_id"]], "filter": f"tags.`nightshift.dag_run` = '{run_id}'"}
    runs: list[dict[str, Any]] = httpx.post(f"{base}/runs/search", json=query).json()["runs"]
    return runs


def test_a_night_ends_with_a_served_model(settings: Settings, first_night: Retraining) -> None:
    assert first_night.state == "success", first_night.failed
    assert first_night.results["evaluate"]["candidate"]["metrics"]["accuracy"] >= 0.97
    assert first_night.results["deploy_model"]["version"] == "0.0.1"
    assert versions(settings) == ["0.0.1"]
    snapshot = first_night.results["pull_dataset"]["snapshot_id"]
    answer = ask_served_model(settings, "digits", "digits", snapshot)
    assert (answer["label"], answer["version"]) == (answer["truth"], "0.0.1")


def test_mlflows_registry_names_the_champion(settings: Settings, first_night: Retraining) -> None:
    model = f"{settings.url('mlflow')}/api/2.0/mlflow/registered-models/get"

    def aliases() -> set[str]:
        found = httpx.get(model, params={"name": "digits"}).json()["registered_model"]
        return {entry["alias"] for entry in found.get("aliases", [])}

    wait_for(lambda: aliases() == {"champion", "champion-onnx"}, "the aliases", 30)


def test_every_job_of_the_night_is_a_child_of_one_mlflow_run(settings: Settings, first_night: Retraining) -> None:
    runs = mlflow_children(settings, first_night.run_id)
    names = {run["info"]["run_name"]: run for run in runs}
    parent = names.pop(next(name for name in names if re.fullmatch(r"digits \d{4}-\d\d-\d\d \d\d:\d\d promoted", name)))
    assert {"train", "evaluate", "gate", "export_onnx", "verify_onnx"} <= set(names)
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in names.values()]
    assert {found["mlflow.parentRunId"] for found in tags} == {parent["info"]["run_id"]}
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}


def test_what_the_night_came_to_stands_in_airflow_and_in_mlflow(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    headline = re.compile(r"promoted: version 0\.0\.1, accuracy (0\.\d{4})")
    note = api.client.get(f"/dags/{DAG}/dagRuns/{first_night.run_id}").json()["note"]
    found = headline.match(note)
    measured = first_night.results["evaluate"]["candidate"]["metrics"]["accuracy"]
    assert found and float(found[1]) == pytest.approx(measured, abs=1e-4)
    assert f"[MLflow run]({settings.url('mlflow')}/#/experiments/" in note
    runs = {run["info"]["run_id"]: run["data"] for run in mlflow_children(settings, first_night.run_id)}
    (parent,) = [run_id for run_id in runs if run_id in note]
    tags = {tag["key"]: tag["value"] for tag in runs[parent]["tags"]}
    assert headline.search(tags["mlflow.note.content"])
    params = {param["key"]: param["value"] for param in runs[parent]["params"]}
    assert params["pipeline"] == "digits" and {"architecture", "epochs", "batch", "snapshot_id"} <= set(params)


def test_a_second_night_without_new_pictures_ends_as_nothing_new_and_trains_nothing(
    settings: Settings, first_night: Retraining, console: Console
) -> None:
    second = retrain(settings, DAG, {}, console)
    assert second.state == "success"
    assert second.results["pull_dataset"]["stop_here"]["outcome"] == "nothing_new"
    assert not job_logs(settings, second.run_id, "train")
    assert versions(settings) == ["0.0.1"]


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_in_the_same_experiment(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    published = versions(settings)
    run_id = api.trigger(DAG, {"force": True, "epochs": 8})
    wait_for_first_epoch(settings, run_id)
    for process in jobs(settings, "train"):
        if process.name() != "sh":
            process.kill()
    assert wait_for_end(api, run_id) == "success"
    assert "resuming after epoch" in job_logs(settings, run_id, "train")
    runs = [run for run in mlflow_children(settings, run_id) if run["info"]["run_name"] == "train"]
    assert len(runs) == 1, "the retry has to go on in the first try's MLflow run"
    assert len(versions(settings)) <= len(published) + 1


@pytest.mark.slow
def test_a_killed_worker_does_not_end_the_job_and_the_retry_adopts_it(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    run_id = api.trigger(DAG, {"force": True, "epochs": 25})
    wait_for_first_epoch(settings, run_id)
    (job,) = [process for process in jobs(settings, "train") if process.name() == "sh"]
    for worker in _workers_of(settings, run_id):
        worker.kill()
    assert wait_for_end(api, run_id) == "success"
    folders = list((settings.state / "jobs").rglob("train/*/process.json"))
    of_run = [path for path in folders if run_id in (path.parent / "job.json").read_text()]
    assert len(of_run) == 1, "the job ran once"
    assert f'"pid": {job.pid},' in of_run[0].read_text()


def _workers_of(settings: Settings, run_id: str) -> list[psutil.Process]:
    """Return the processes that run a task for Airflow just now: LocalExecutor's worker, and the task's own process."""
    found = processes.of_stack(settings.state, "airflow", with_jobs=False)
    titles = {process: " ".join(process.cmdline()).strip() for process in found}
    busy = [p for p, title in titles.items() if title.startswith("airflow worker") and not title.endswith("<idle>")]
    assert busy, titles
    return busy


def test_a_task_marked_as_failed_ends_its_job_within_five_seconds(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    run_id = api.trigger(DAG, {"force": True, "epochs": 500})
    wait_for_first_epoch(settings, run_id)
    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/train"
    api._call("PATCH", path, json={"new_state": "failed"})
    started = time.monotonic()
    wait_for(lambda: not jobs(settings, "train"), "the job's processes to end", seconds=15)
    # Airflow tells the worker with its next heartbeat, up to five seconds later; then the job has five seconds.
    assert time.monotonic() - started < patience(12)
    assert wait_for_end(api, run_id) == "failed"


@pytest.mark.slow
def test_mlflow_down_in_the_middle_is_waited_for_and_no_metric_is_lost(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    run_id = api.trigger(DAG, QUICK)
    wait_for(lambda: jobs(settings, "train"), "the training to start")
    Supervisor(settings).stop_part("mlflow")  # one that is killed is soon there again: too soon for a slow training
    processes.stop(lambda: processes.of_stack(settings.state, "mlflow"))
    wait_for(lambda: _state(api, run_id, "train") == "up_for_retry", "the task to wait for its retry")
    stack.up(settings, print)
    assert wait_for_end(api, run_id) == "success"
    (run,) = [run for run in mlflow_children(settings, run_id) if run["info"]["run_name"] == "train"]
    assert run["data"]["metrics"]


def _state(api: AirflowApi, run_id: str, task_id: str) -> str:
    return next((task["state"] for task in api.tasks(DAG, run_id) if task["task_id"] == task_id), "")


@pytest.mark.slow
def test_airflow_killed_with_all_its_processes_is_started_again_and_the_run_goes_on(
    settings: Settings, first_night: Retraining, api: AirflowApi
) -> None:
    run_id = api.trigger(DAG, {"force": True, "epochs": 40})
    wait_for_first_epoch(settings, run_id)
    for process in processes.of_stack(settings.state, "airflow", with_jobs=False):
        process.kill()
    stack.up(settings, print)
    assert wait_for_end(AirflowApi(settings), run_id) == "success"
    attempts = list((settings.state / "jobs").rglob("train/*/job.json"))
    assert len([path for path in attempts if run_id in path.read_text()]) == 1, "the job ran once and was adopted"


def test_new_and_damaged_pictures_make_a_new_snapshot_with_the_damaged_one_set_aside(
    settings: Settings, first_night: Retraining, console: Console, tmp_path: Path
) -> None:
    table = new_digits(tmp_path)
    command = [components.python("services"), "-m", "services.collect.importers", str(table), "--group", "digits"]
    subprocess.run([*command, "--directory", str(settings.folder("collect"))], check=True, cwd=ROOT)
    published = versions(settings)
    night = retrain(settings, DAG, {}, console)
    assert night.state == "success", night.failed
    pulled = night.results["pull_dataset"]
    before = first_night.results["pull_dataset"]
    assert pulled["snapshot_id"] != before["snapshot_id"]
    assert pulled["transferred"] == 21, "only what is new is fetched"
    assert pulled["pictures"] == before["pictures"] + 20
    assert pulled["refused"].get("corrupt", 0) == before["refused"].get("corrupt", 0) + 1
    if night.results["gate"]["decision"] == "promote":
        assert len(versions(settings)) == len(published) + 1
        assert night.results["deploy_model"]["version"] not in published
        assert night.results["deploy_model"]["previous_version"] in published
    else:
        assert versions(settings) == published


def new_digits(folder: Path) -> Path:
    """Write 20 digits turned by 20 degrees, and one file that is no picture, with a table of their labels."""
    digits = load_digits()
    rows = ["path,label"]
    for index in range(20):
        picture = Image.fromarray((digits.images[index] * 15.9).astype("uint8")).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        picture.rotate(20, resample=Image.Resampling.BICUBIC).save(folder / f"turned_{index}.png")
        rows.append(f"turned_{index}.png,{digits.target[index]}")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    rows.append("damaged.png,3")
    table = folder / "new.csv"
    table.write_text("\n".join(rows) + "\n")
    return table
