"""Triggers a retraining through Airflow's REST API, shows how it goes, and asks the served model one question."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rich.console import Console
from rich.live import Live
from rich.table import Table

from local.airflow import AirflowApi, run_url
from local.components import python, triton_server
from local.job_environment import variables
from local.settings import ROOT, LocalStackError, Settings
from nightshift_common.patience import patience

RUN_SECONDS = 1800.0
FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
STYLE = {
    "success": "green",
    "failed": "red",
    "upstream_failed": "red",
    "skipped": "dim",
    "running": "cyan",
    "up_for_retry": "yellow",
}


@dataclass
class Retraining:
    """One finished run: its state and what its jobs returned."""

    dag_id: str
    run_id: str
    state: str
    seconds: float
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """The tasks that failed, each with what its job said last; empty where there was no job."""


def retrain(settings: Settings, dag_id: str, conf: dict[str, Any], console: Console) -> Retraining:
    """Trigger the DAG and follow it to its end.

    Raises:
        LocalStackError: Airflow does not know the DAG, or the run takes longer than half an hour of a quiet machine.
    """
    api = AirflowApi(settings)
    api.wait_for_dag(dag_id)
    order = api.task_order(dag_id)
    before = api.unfinished_runs(dag_id)
    started = time.monotonic()
    run_id = api.trigger(dag_id, conf)
    url = run_url(settings, dag_id, run_id)
    waits = f" after {', '.join(before)}, since one night runs at a time" if before else ""
    console.print(f"[bold]{dag_id}[/] is running{waits}: {url}", soft_wrap=True)
    tasks = _follow(api, settings, dag_id, run_id, order, console)
    state = _final_state(api, dag_id, run_id)
    finished = Retraining(dag_id, run_id, state, time.monotonic() - started)
    finished.results = {
        task: api.result(dag_id, run_id, task) for task in order if tasks.get(task, {}).get("state") == "success"
    }
    failed = [task for task in order if tasks.get(task, {}).get("state") == "failed"]
    finished.failed = {task: _what_went_wrong(_job_log(settings, dag_id, task, run_id)) for task in failed}
    return finished


def _follow(
    api: AirflowApi, settings: Settings, dag_id: str, run_id: str, order: list[str], console: Console
) -> dict[str, dict[str, Any]]:
    started = time.monotonic()
    shown: dict[str, str] = {}
    with Live(console=console, refresh_per_second=4, transient=False, auto_refresh=False) as live:
        while True:
            tasks = {task["task_id"]: task for task in api.tasks(dag_id, run_id)}
            if console.is_terminal:
                live.update(_table(settings, dag_id, run_id, order, tasks), refresh=True)
            else:
                _print_changes(order, tasks, shown)
            if tasks and all(task["state"] in FINAL for task in tasks.values()):
                return tasks
            if (waited := time.monotonic() - started) > patience(RUN_SECONDS):
                raise LocalStackError(
                    f"{dag_id} is still running after {waited / 60:.0f} min: {run_url(settings, dag_id, run_id)}"
                )
            time.sleep(0.5)


def _final_state(api: AirflowApi, dag_id: str, run_id: str) -> str:
    started = time.monotonic()
    while (state := api.run_state(dag_id, run_id)) not in ("success", "failed"):
        if time.monotonic() - started > patience(60):
            break
        time.sleep(0.1)
    return state


def _print_changes(order: list[str], tasks: dict[str, dict[str, Any]], shown: dict[str, str]) -> None:
    for task_id in order:
        task = tasks.get(task_id)
        state = (task or {}).get("state") or "waiting"
        if task is not None and state != shown.get(task_id) and state in FINAL | {"running", "up_for_retry"}:
            shown[task_id] = state
            duration = (
                f" in {task['duration']:.1f} s" if state in ("success", "failed") and task.get("duration") else ""
            )
            print(f"  {task_id}: {state}{duration}", flush=True)


def _table(settings: Settings, dag_id: str, run_id: str, order: list[str], tasks: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2), show_header=False)
    for task_id in order:
        task = tasks.get(task_id) or {}
        state = task.get("state") or "waiting"
        seconds = f"{task['duration']:.1f} s" if task.get("duration") else ""
        progress = _last_progress(settings, dag_id, task_id) if state == "running" else ""
        table.add_row(task_id, f"[{STYLE.get(state, 'white')}]{state}[/]", seconds, progress)
    return table


def _last_progress(settings: Settings, dag_id: str, task_id: str) -> str:
    """Return the last progress line of a running job, read from its log."""
    for line in reversed(_job_log(settings, dag_id, task_id).splitlines()[-50:]):
        if '"progress"' in line or '"epoch"' in line:
            try:
                return str(json.loads(line)["message"])
            except (ValueError, KeyError):
                continue
    return ""


def _job_log(settings: Settings, dag_id: str, task_id: str, run_id: str | None = None) -> str:
    """Return what the newest job of a task printed, in one run or in any; empty where there was none."""
    runs = (settings.state / "jobs" / dag_id).glob("*")
    logs = [log for run in runs if run_id in (None, unquote(run.name)) for log in run.glob(f"{task_id}/*/log")]
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return newest.read_text(errors="replace") if newest else ""


def ask_served_model(settings: Settings, model_name: str, group: str, snapshot_id: str) -> dict[str, Any]:
    """Send one real golden picture through Triton; return `{picture, truth, label, probability, version, ms}`.

    Raises:
        LocalStackError: the model is not served.
    """
    return _predict(settings, "--model_name", model_name, "--group", group, "--snapshot_id", snapshot_id)


def ask_about(settings: Settings, model_name: str, picture: str) -> dict[str, Any]:
    """Send a picture, a file or an address, to a served model; return what `conversion_jobs.predict` does.

    Raises:
        LocalStackError: in a sentence, why there is no answer.
    """
    if not model_name or not picture:
        raise LocalStackError("say which model and which picture: make predict MODEL=digits PICTURE=7.jpg")
    if not triton_server(settings).is_ready():
        raise LocalStackError("Triton does not run here, so no model answers: make up starts it (make status looks)")
    if not picture.startswith(("http://", "https://")):
        picture = str(Path(picture).expanduser().absolute())
    return _predict(settings, "--model_name", model_name, "--picture", picture)


def _predict(settings: Settings, *arguments: str) -> dict[str, Any]:
    folder = settings.folder("run") / "predict"
    environment = {
        **os.environ,
        **variables(settings),
        "NIGHTSHIFT_STORAGE_TOKEN": settings.secrets["model_storage_evaluate"],
        "NIGHTSHIFT_JOB_DIR": str(folder),
        "NIGHTSHIFT_LOG_FORMAT": "json",
    }
    environment.pop("MLFLOW_TRACKING_URI")  # nothing to track
    command = [python("jobs"), "-m", "conversion_jobs.predict", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise LocalStackError(_what_went_wrong(done.stdout) or f"no answer:\n{done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads((folder / "result.json").read_text())["result"]
    return answer


def _what_went_wrong(log: str) -> str:
    """Return the message of the error that a job ended with; empty where its log has none."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("event") == "error":
            return str(entry["message"])
    return ""
