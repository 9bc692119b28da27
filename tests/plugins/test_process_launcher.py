"""What is special to jobs as processes; what every launcher does is in launcher_conformance.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local import airflow
from local.settings import Settings
from nightshift.launchers.base import JobSpec, Status, command_options
from nightshift.launchers.process import ProcessLauncher
from nightshift_common.patience import patience
from nightshift_common.task_instance import TaskInstanceKey
from tests.support.waiting import wait_for

TASK_INSTANCE = TaskInstanceKey("retrain_digits", "manual__2026-01-01T00:00:00+00:00", "train", -1, 1)


@pytest.fixture
def launcher(home: Path, tmp_path: Path) -> Iterator[ProcessLauncher]:
    launcher = ProcessLauncher(home, tmp_path / "state")
    yield launcher
    for process in psutil.process_iter():
        try:
            if process.environ().get("NIGHTSHIFT_JOB_DIR", "").startswith(str(tmp_path)):
                process.kill()
        except psutil.Error:
            continue


def spec(
    marks: Path, how: str = "succeed", task_instance: TaskInstanceKey = TASK_INSTANCE, **changes: object
) -> JobSpec:
    options = command_options({"how": how, "marks": str(marks)})
    fields = {"module": "jobs_for_tests.example", "options": options, "runtime": "jobs", "task_instance": task_instance}
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def job_pid(marks: Path) -> int:
    """Return the number of the one job that ran, once it runs."""
    return int(wait_for(lambda: (marks / "ran").exists() and (marks / "ran").read_text().strip(), "the job"))


def test_names_cannot_lead_out_of_the_folder_of_jobs(launcher: ProcessLauncher, marks: Path) -> None:
    task_instance = TaskInstanceKey("..", "../..", "a/../../b", -1, 1)
    job = launcher.start(spec(marks, task_instance=task_instance))
    list(launcher.follow_logs(job))
    assert (launcher.jobs / job).resolve().is_relative_to(launcher.jobs.resolve())
    assert len(Path(job).parts) == 4
    assert launcher.find(task_instance) == job


def test_stop_ends_the_job_and_all_that_it_started_within_five_seconds(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, "breed"))
    log = launcher.jobs / job / "log"
    wait_for(lambda: log.exists() and "all of them" in log.read_text(), "the grandchild")
    family = [psutil.Process(job_pid(marks)), *psutil.Process(job_pid(marks)).children(recursive=True)]
    assert len(family) == 3
    assert len({os.getsid(process.pid) for process in family}) == 2
    started = time.monotonic()
    launcher.stop(job)
    assert time.monotonic() - started < patience(5)
    assert not [process for process in family if alive(process.pid)]
    assert launcher.status(job) is Status.FAILED
    launcher.stop(job)  # again: nothing happens


def test_a_job_that_ends_on_sigterm_is_not_waited_for_longer(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, "wait"))
    job_pid(marks)
    started = time.monotonic()
    launcher.stop(job)
    assert time.monotonic() - started < patience(2)
    assert launcher.status(job) is Status.FAILED
    assert launcher.ended(job).exit_code == 143


def test_a_job_killed_with_its_shell_has_failed_with_an_unknown_code(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, "wait"))
    job_pid(marks)
    os.killpg(json.loads((launcher.jobs / job / "process.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: launcher.status(job) is Status.FAILED, "the end to show")
    assert launcher.ended(job).exit_code is None
    assert "killed" in launcher.ended(job).describe()
    assert launcher.result(job) is None


def test_a_later_process_with_the_same_number_is_not_taken_for_the_job(launcher: ProcessLauncher, marks: Path) -> None:
    folder = launcher.jobs / launcher.start(spec(marks, "wait"))
    job_pid(marks)
    launcher.stop(folder.relative_to(launcher.jobs).as_posix())
    (folder / "exit_code").unlink()  # as if the shell had been killed, too
    own = Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(") ", 1)[1].split()[19]
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "start": int(own) - 1}))
    assert launcher.status(folder.relative_to(launcher.jobs).as_posix()) is Status.FAILED
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "start": int(own)}))
    assert launcher.status(folder.relative_to(launcher.jobs).as_posix()) is Status.RUNNING


def test_a_folder_tells_what_was_started_and_the_names_of_its_secrets(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, variables={"PLAIN": "shown"}, secrets={"TOKEN": "kuchen-9f3a"}))
    list(launcher.follow_logs(job))
    assert {path.name for path in (launcher.jobs / job).iterdir()} == {
        "job.json", "process.json", "log", "exit_code", "result.json"
    }  # fmt: skip
    described = json.loads((launcher.jobs / job / "job.json").read_text())
    assert described["task_instance"] == TASK_INSTANCE.to_dict()
    assert (described["module"], described["variables"]) == ("jobs_for_tests.example", {"PLAIN": "shown"})
    assert described["secrets"] == ["TOKEN"]


def test_a_job_inherits_no_secret_of_the_local_stack(
    launcher: ProcessLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tmp_path / "stack")
    for name, value in airflow.environment(settings).items():
        if name != "NIGHTSHIFT_STATE":
            monkeypatch.setenv(name, value)
    assert settings.secrets["airflow_jwt"] in os.environ.values(), "what starts the job has them"
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    job = launcher.start(JobSpec("jobs_for_tests.script", [code], "jobs", TASK_INSTANCE))
    (line,) = launcher.follow_logs(job)
    assert json.loads(line)["NIGHTSHIFT_JOB_DIR"]
    assert [name for name, secret in settings.secrets.items() if secret in line] == []


def test_options_keep_their_types() -> None:
    assert command_options(
        {"a": 1, "b": None, "c": "", "d": True, "e": False, "f": [1, 2], "g": {"x": "y"}, "h": 0, "i": 0.5}
    ) == ["--a", "1", "--d", "--no-e", "--f", "[1, 2]", "--g", '{"x": "y"}', "--h", "0", "--i", "0.5"]
