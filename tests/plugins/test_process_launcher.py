"""Jobs as processes that outlive the worker."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nightshift.errors import JobConfigurationError
from nightshift.launchers.base import JobSpec, Status, command_options
from nightshift.launchers.process import ProcessLauncher
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


def test_a_job_ends_with_its_lines_its_exit_code_and_its_result(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks))
    lines = list(launcher.follow_logs(job))
    assert launcher.status(job) is Status.SUCCEEDED
    assert launcher.ended(job).succeeded
    result = launcher.result(job)
    assert result is not None and result["result"]["runs"] == 1
    assert json.loads(lines[-1])["event"] == "done"


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("configuration", 2, "exit code 2"),
        ("data", 3, "exit code 3"),
        ("later", 75, "exit code 75"),
        ("crash", 1, "exit code 1"),
        ("segfault", 139, "SIGSEGV"),
        ("out_of_memory", 137, "out-of-memory killer"),
    ],
)
def test_each_end_has_its_exit_code(launcher: ProcessLauncher, marks: Path, how: str, code: int, words: str) -> None:
    job = launcher.start(spec(marks, how))
    list(launcher.follow_logs(job))
    assert launcher.status(job) is Status.FAILED
    assert launcher.ended(job).exit_code == code
    assert words in launcher.ended(job).describe()


def test_lines_come_while_the_job_runs(launcher: ProcessLauncher, marks: Path) -> None:
    options = command_options({"how": "wait", "marks": str(marks), "tracking": "http://mlflow/1"})
    lines = launcher.follow_logs(launcher.start(spec(marks, options=options)))
    assert json.loads(next(lines))["url"] == "http://mlflow/1"
    (marks / "go").touch()
    assert json.loads(list(lines)[-1])["event"] == "done"


def test_a_long_log_comes_whole_and_in_order(launcher: ProcessLauncher, marks: Path) -> None:
    (launcher.home / "talks.py").write_text(
        "for n in range(300_000): print(n, 'ä' * 3)\nprint('no end of line', end='')"
    )
    lines = list(launcher.follow_logs(launcher.start(spec(marks, module="talks", options=[]))))
    assert lines == [f"{n} äää" for n in range(300_000)] + ["no end of line"]


def test_another_worker_finds_and_follows_the_job_of_one_that_was_killed(
    launcher: ProcessLauncher, marks: Path
) -> None:
    starter = (
        "import sys; sys.path[:0] = sys.argv[1].split(':'); from pathlib import Path;"
        "from nightshift.launchers.base import JobSpec;"
        "from nightshift_common.task_instance import TaskInstanceKey;"
        "from nightshift.launchers.process import ProcessLauncher;"
        "launcher = ProcessLauncher(Path(sys.argv[2]), Path(sys.argv[3]));"
        "job = launcher.start(JobSpec('jobs_for_tests.example', ['--how', 'wait', '--marks', sys.argv[4]], 'jobs',"
        " TaskInstanceKey(*sys.argv[5:8], -1, 1)));"
        "list(launcher.follow_logs(job))"
    )
    root = Path(__file__).resolve().parents[2]
    plugins = f"{root / 'plugins'}:{root}"
    arguments = [
        plugins,
        str(launcher.home),
        str(launcher.jobs.parent),
        str(marks),
        *list(TASK_INSTANCE.to_dict().values())[:3],
    ]
    worker = subprocess.Popen([sys.executable, "-c", starter, *arguments], start_new_session=True)
    pid = job_pid(marks)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert alive(pid)
    second_try = TaskInstanceKey(TASK_INSTANCE.dag_id, TASK_INSTANCE.run_id, TASK_INSTANCE.task_id, -1, 2)
    job = launcher.find(second_try)
    assert job is not None and launcher.status(job) is Status.RUNNING
    (marks / "go").touch()
    assert json.loads(list(launcher.follow_logs(job))[-1])["event"] == "done"
    assert launcher.status(job) is Status.SUCCEEDED
    assert job_pid(marks) == pid


def test_a_job_is_found_by_its_own_task_instance_only(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks))
    assert launcher.find(TASK_INSTANCE) == job
    for field, value in [
        ("dag_id", "other"),
        ("run_id", TASK_INSTANCE.run_id.replace(":", "_")),
        ("task_id", "x"),
        ("map_index", 0),
    ]:
        assert launcher.find(TaskInstanceKey(**{**TASK_INSTANCE.to_dict(), field: value})) is None, field


def test_names_cannot_lead_out_of_the_folder_of_jobs(launcher: ProcessLauncher, marks: Path) -> None:
    task_instance = TaskInstanceKey("..", "../..", "a/../../b", -1, 1)
    job = launcher.start(spec(marks, task_instance=task_instance))
    list(launcher.follow_logs(job))
    assert (launcher.jobs / job).resolve().is_relative_to(launcher.jobs.resolve())
    assert len(Path(job).parts) == 4
    assert launcher.find(task_instance) == job


def test_the_same_try_again_gets_a_folder_of_its_own(launcher: ProcessLauncher, marks: Path) -> None:
    first, second = launcher.start(spec(marks)), launcher.start(spec(marks))
    assert first != second
    assert launcher.find(TASK_INSTANCE) == second


def test_stop_ends_the_job_and_all_that_it_started_within_five_seconds(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, "breed"))
    log = launcher.jobs / job / "log"
    wait_for(lambda: log.exists() and "all of them" in log.read_text(), "the grandchild")
    family = [psutil.Process(job_pid(marks)), *psutil.Process(job_pid(marks)).children(recursive=True)]
    assert len(family) == 3
    assert len({os.getsid(process.pid) for process in family}) == 2
    started = time.monotonic()
    launcher.stop(job)
    assert time.monotonic() - started < 5
    assert not [process for process in family if alive(process.pid)]
    assert launcher.status(job) is Status.FAILED
    launcher.stop(job)  # again: nothing happens


def test_a_job_that_ends_on_sigterm_is_not_waited_for_longer(launcher: ProcessLauncher, marks: Path) -> None:
    job = launcher.start(spec(marks, "wait"))
    job_pid(marks)
    started = time.monotonic()
    launcher.stop(job)
    assert time.monotonic() - started < 2
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


def test_a_job_that_nobody_knows_has_failed(launcher: ProcessLauncher) -> None:
    assert launcher.find(TASK_INSTANCE) is None
    assert launcher.status("no/such/job/001") is Status.FAILED
    launcher.stop("no/such/job/001")


def test_secrets_reach_the_job_and_no_file(
    launcher: ProcessLauncher, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:its-password@host/db")
    monkeypatch.setenv("__AIRFLOW_SUPERVISOR_FD", "7")
    (launcher.home / "environment.py").write_text(
        "import hashlib, os, time, pathlib, sys\n"
        "names = [name for name in os.environ if 'AIRFLOW' in name]\n"
        "print(hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest(), os.environ['PLAIN'], names)"
    )
    secret = "kuchen-9f3a"
    job = launcher.start(
        spec(marks, module="environment", options=[], variables={"PLAIN": "shown"}, secrets={"TOKEN": secret})
    )
    assert list(launcher.follow_logs(job)) == [f"{hashlib.sha256(secret.encode()).hexdigest()} shown []"]
    written = [path.read_text() for path in launcher.jobs.parent.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert not [text for text in written if secret in text or "its-password" in text]
    described = json.loads((launcher.jobs / job / "job.json").read_text())
    assert described["secrets"] == ["TOKEN"]
    assert secret not in repr(spec(marks, secrets={"TOKEN": secret}))


def test_a_missing_runtime_is_named(launcher: ProcessLauncher, marks: Path) -> None:
    with pytest.raises(JobConfigurationError, match=r"runtime cuda is not installed.*\.venv/cuda/bin/python"):
        launcher.start(spec(marks, runtime="cuda"))
    assert launcher.find(TASK_INSTANCE) is None


def test_options_keep_their_types() -> None:
    assert command_options(
        {"a": 1, "b": None, "c": "", "d": True, "e": False, "f": [1, 2], "g": {"x": "y"}, "h": 0, "i": 0.5}
    ) == ["--a", "1", "--d", "--no-e", "--f", "[1, 2]", "--g", '{"x": "y"}', "--h", "0", "--i", "0.5"]
