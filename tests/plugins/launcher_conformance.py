"""What every launcher has to do: one suite, which a launcher passes with a harness of its own.

A new launcher gets a `Harness`, and a class of tests that inherits `LauncherConformance` and has a fixture `harness`.
What a launcher cannot do by its nature is named in its harness with the reason, and shows as skipped.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from nightshift.errors import JobConfigurationError
from nightshift.launchers.base import JobSpec, Launcher, Status, command_options
from nightshift_common.patience import patience
from nightshift_common.task_instance import TaskInstanceKey
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, SCRIPT = "jobs_for_tests.example", "jobs_for_tests.script"
SECRET = "kuchen-9f3a"
STOP_SECONDS = 5.0  # what Airflow gives a task that is killed
ANY_CHARACTERS = "a/../..:+=&,;'\"\\ $(HOME) %s {x} ünïcödé 写真 \u2028 end."
WORKER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
{prepare}
from nightshift.launchers.base import JobSpec
from nightshift.launchers.registry import launcher
from nightshift_common.task_instance import TaskInstanceKey
fields = json.loads(sys.argv[2])
fields["task_instance"] = TaskInstanceKey(**fields["task_instance"])
jobs = launcher()
for line in jobs.follow_logs(jobs.start(JobSpec(**fields))):
    print(line, flush=True)
"""
WAITS = """
import pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
print(name, "waits", flush=True)
(folder / f"{name} is up").touch()  # last: who sees it may kill this process at once
while not (folder / f"{name} may go").exists(): time.sleep(0.02)
print(name, "goes")
"""


class Harness(Protocol):
    """A launcher with the place where it runs jobs: a machine, a cluster or an engine, which has no GPUs."""

    marks: Path
    """folder where jobs leave marks"""
    marks_in_job: str
    """how a job names that folder"""
    unknown_job: str
    """an id of the right form of a job that nobody started"""
    missing: Mapping[str, Any]
    """fields of a spec for which nothing is installed or named"""
    missing_words: str
    """a pattern of the error's message: what is missing, and what there is or where to look"""
    worker_prepares: str
    """Python code that a worker process runs first, whose environment is this process's"""
    cannot: Mapping[str, str]
    """test -> why this launcher cannot do it"""

    def launcher(self) -> Launcher:
        """Return a new instance, as another worker has it."""

    def alive(self, job_id: str) -> int:
        """Return how many processes of the job there are."""

    def kill_job(self, job_id: str) -> None:
        """Kill the job's own process with SIGKILL, as the kernel does for want of memory."""

    def lose_job(self, job_id: str) -> None:
        """Kill all of the job at once, with what would record its end."""

    def cut(self) -> None:
        """Drop the connections on which logs are read."""

    def written(self) -> str:
        """Return all that the launcher wrote about its jobs, other than what gives a job its environment."""


class Following:
    """Follows a job's lines in a thread, so that a launcher that never ends fails a test and does not hang it."""

    def __init__(self, launcher: Launcher, job_id: str) -> None:
        self.lines: list[str] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(launcher, job_id), daemon=True)
        self._thread.start()

    def _run(self, launcher: Launcher, job_id: str) -> None:
        try:
            for line in launcher.follow_logs(job_id):
                self.lines.append(line)
        except BaseException as error:
            self._error = error

    def until(self, words: str) -> None:
        """Wait for a line with these words."""
        wait_for(lambda: any(words in line for line in list(self.lines)), f"a line with {words!r} in {self.lines}", 30)

    def all(self, seconds: float = 60) -> list[str]:
        """Return all lines once the job has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"follow_logs does not end; last lines: {self.lines[-3:]}"
        if self._error:
            raise self._error
        return self.lines


def followed(launcher: Launcher, job_id: str) -> list[str]:
    """Return all lines of a job, once it has ended."""
    return Following(launcher, job_id).all()


@dataclasses.dataclass
class Bench:
    """A harness, one launcher of it, and the task instance of a test."""

    harness: Harness
    launcher: Launcher
    task_instance: TaskInstanceKey

    def key(self, **changes: Any) -> TaskInstanceKey:
        """Return the task instance with changes."""
        return dataclasses.replace(self.task_instance, **changes)

    def example(self, how: str = "succeed", tracking: str | None = None, **changes: Any) -> JobSpec:
        """Return the example job, which ends in some way."""
        options = command_options({"how": how, "marks": self.harness.marks_in_job, "tracking": tracking})
        fields = {"module": EXAMPLE, "options": options, "runtime": "jobs", "task_instance": self.task_instance}
        return JobSpec(**{**fields, **changes})

    def script(self, code: str, *options: str, **changes: Any) -> JobSpec:
        """Return a job that runs `code` as a Python program."""
        return self.example(module=SCRIPT, options=[code, *options], **changes)

    def waiting(self, name: str, **changes: Any) -> JobSpec:
        """Return a job that waits until the test lets `name` go."""
        return self.script(WAITS, self.harness.marks_in_job, name, **changes)

    def is_up(self, name: str) -> None:
        """Wait until the job `name` runs."""
        wait_for((self.harness.marks / f"{name} is up").exists, f"the job {name}", 30)

    def let_go(self, name: str) -> None:
        """Let the waiting job `name` end."""
        (self.harness.marks / f"{name} may go").touch()

    def runs(self) -> int:
        """Return how often the example job ran."""
        ran = self.harness.marks / "ran"
        return len(ran.read_text().splitlines()) if ran.exists() else 0

    def describe(self, job_id: str) -> tuple[Any, ...]:
        """Return what another worker sees of a job that has ended."""
        other = self.harness.launcher()
        return other.status(job_id), other.ended(job_id), other.result(job_id), followed(other, job_id)


class LauncherConformance:
    """The tests. A subclass, or its module, has the fixture `harness`."""

    @pytest.fixture
    def bench(self, harness: Harness, request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
        """A launcher and a task instance of this test only."""
        tests = {name for name in dir(LauncherConformance) if name.startswith("test_")}
        assert harness.cannot.keys() <= tests, "the harness excuses itself from tests that there are not"
        if reason := harness.cannot.get(request.node.originalname):
            pytest.skip(f"this launcher cannot: {reason}")
        task_instance = TaskInstanceKey("retrain_digits", f"manual__{tmp_path.name}-{os.urandom(4).hex()}", "Train.It")
        return Bench(harness, harness.launcher(), task_instance)

    # a job and its end

    def test_a_job_runs_once_and_its_lines_its_end_and_its_result_come_back(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example(tracking="http://mlflow/1"))
        lines = followed(bench.launcher, job)
        assert [json.loads(line)["event"] for line in lines] == ["tracking", "done"]
        assert bench.launcher.status(job) is Status.SUCCEEDED
        assert bench.launcher.ended(job).exit_code == 0
        result = bench.launcher.result(job)
        assert result is not None and result["result"]["runs"] == 1
        assert bench.runs() == 1

    @pytest.mark.parametrize(
        ("how", "code", "words"),
        [
            ("configuration", 2, "exit code 2"),
            ("data", 3, "exit code 3"),
            ("later", 75, "exit code 75"),
            ("crash", 1, "exit code 1"),
            ("segfault", 139, "SIGSEGV"),
        ],
    )
    def test_each_end_has_its_exit_code(self, bench: Bench, how: str, code: int, words: str) -> None:
        job = bench.launcher.start(bench.example(how))
        followed(bench.launcher, job)
        assert bench.launcher.status(job) is Status.FAILED
        assert bench.launcher.ended(job).exit_code == code
        assert words in bench.launcher.ended(job).describe()
        assert bench.launcher.result(job) is None
        assert bench.runs() == 1

    def test_a_job_that_leaves_no_result_has_none(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example("no_result"))
        followed(bench.launcher, job)
        assert bench.launcher.status(job) is Status.SUCCEEDED
        assert bench.launcher.result(job) is None

    def test_a_job_that_runs_has_no_result_yet(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.waiting("a"))
        assert bench.launcher.status(job) is Status.RUNNING  # from the moment when it has an id
        bench.is_up("a")
        assert bench.launcher.status(job) is Status.RUNNING
        assert bench.launcher.result(job) is None
        bench.let_go("a")
        followed(bench.launcher, job)
        assert bench.launcher.status(job) is Status.SUCCEEDED

    def test_a_job_that_is_killed_has_failed_and_says_by_what(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.waiting("a"))
        bench.is_up("a")
        bench.harness.kill_job(job)
        assert followed(bench.launcher, job) == ["a waits"]
        assert bench.launcher.status(job) is Status.FAILED
        assert bench.launcher.ended(job).exit_code == 137
        assert "SIGKILL: often the kernel's out-of-memory killer" in bench.launcher.ended(job).describe()
        assert bench.launcher.result(job) is None

    def test_a_job_that_is_lost_has_failed_with_an_unknown_code(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.waiting("a"))
        bench.is_up("a")
        following = Following(bench.launcher, job)
        following.until("a waits")
        bench.harness.lose_job(job)
        following.all()
        assert bench.launcher.status(job) is Status.FAILED
        assert bench.launcher.ended(job).exit_code is None
        assert bench.launcher.ended(job).describe()
        assert bench.launcher.result(job) is None
        bench.launcher.stop(job)  # nothing is left to stop
        assert bench.harness.alive(job) == 0

    def test_a_job_that_nobody_knows_has_failed(self, bench: Bench) -> None:
        unknown = bench.harness.unknown_job
        assert bench.launcher.find(bench.task_instance) is None
        assert bench.launcher.status(unknown) is Status.FAILED
        assert bench.launcher.ended(unknown).exit_code is None
        assert bench.launcher.result(unknown) is None
        assert followed(bench.launcher, unknown) == []
        bench.launcher.stop(unknown)

    # its lines

    def test_lines_come_while_the_job_runs(self, bench: Bench) -> None:
        following = Following(bench.launcher, bench.launcher.start(bench.waiting("a")))
        following.until("a waits")
        bench.let_go("a")
        assert following.all() == ["a waits", "a goes"]

    def test_a_long_log_comes_whole_and_in_order(self, bench: Bench) -> None:
        code = "for n in range(100_000): print(n, 'ä' * 3)"
        assert followed(bench.launcher, bench.launcher.start(bench.script(code))) == [
            f"{n} äää" for n in range(100_000)
        ]

    def test_a_line_may_hold_anything_but_its_own_end(self, bench: Bench) -> None:
        lines = [
            "",
            "  spaces  ",
            "50 %\r100 %",
            "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029 separate lines elsewhere",
            "2026-11-21T04:00:00.000000001Z is no timestamp",
            "\x1b[31mred\x1b[0m \x00 写真 👍🏽",
            "x" * 200_000,
            "",
        ]
        code = (
            "import json, sys; sys.stdout.buffer.write(json.loads(sys.argv[1]).replace('LONG', 'x' * 200_000).encode())"
        )
        text = "\n".join([*lines, "Windows\r", "no end of line"]).replace("x" * 200_000, "LONG")
        found = followed(bench.launcher, bench.launcher.start(bench.script(code, json.dumps(text))))
        assert found == [*lines, "Windows", "no end of line"]

    def test_a_line_of_many_bytes_keeps_its_characters(self, bench: Bench) -> None:
        code = "print('x' + '写' * 40_000)"
        assert followed(bench.launcher, bench.launcher.start(bench.script(code))) == ["x" + "写" * 40_000]

    def test_what_is_no_text_is_shown_as_such(self, bench: Bench) -> None:
        code = r"import sys; sys.stdout.buffer.write(b'a \xff b\nnext\n')"
        assert followed(bench.launcher, bench.launcher.start(bench.script(code))) == ["a \ufffd b", "next"]

    @pytest.mark.parametrize("end", ["", "\r"])
    def test_a_last_line_without_an_end_comes_too(self, bench: Bench, end: str) -> None:
        code = f"print('first'); print('no end of line', end={end!r})"
        job = bench.launcher.start(bench.script(code))
        assert followed(bench.launcher, job) == ["first", "no end of line"]

    def test_both_streams_come_whole(self, bench: Bench) -> None:
        code = (
            "import sys, threading\n"
            "def write(stream, name):\n"
            "  for n in range(5000): stream.write(f'{name} {n}\\n'); stream.flush()\n"
            "both = [threading.Thread(target=write, args=a) for a in ((sys.stdout, 'out'), (sys.stderr, 'err'))]\n"
            "[thread.start() for thread in both]; [thread.join() for thread in both]"
        )
        lines = followed(bench.launcher, bench.launcher.start(bench.script(code)))
        for name in ("out", "err"):
            assert [line for line in lines if line.startswith(name)] == [f"{name} {n}" for n in range(5000)]
        assert len(lines) == 10_000

    def test_no_line_is_lost_or_shown_twice_where_the_connection_drops(self, bench: Bench) -> None:
        code = (
            "import pathlib, sys, time\n"
            "for n in range(300):\n"
            "  print(*([n] * 9), sep='\\n', flush=True); time.sleep(0.005)\n"
            "print('x' * 40000)\nprint('no end of line', end='')"
        )
        following = Following(bench.launcher, bench.launcher.start(bench.script(code)))
        for number in (10, 11, 150, 250):
            wait_for(lambda number=number: len(following.lines) > 9 * number, f"line {number}", 30)  # type: ignore[misc]
            bench.harness.cut()
        assert following.all() == [str(n) for n in range(300) for _ in range(9)] + ["x" * 40000, "no end of line"]

    # what it is given

    def test_options_and_variables_arrive_as_they_are(self, bench: Bench) -> None:
        options = [ANY_CHARACTERS, "", "two\nlines", "$$", "$(PLAIN)", "$PLAIN", "--flag", "-1", "*"]
        code = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['PLAIN'], os.environ['OTHER']]))"
        variables = {"PLAIN": ANY_CHARACTERS, "OTHER": "$(PLAIN) $$"}
        job = bench.launcher.start(bench.script(code, *options, variables=variables, secrets={"TOKEN": SECRET}))
        (line,) = followed(bench.launcher, job)
        assert json.loads(line) == [options, ANY_CHARACTERS, "$(PLAIN) $$"]

    def test_a_job_knows_its_task_instance_and_has_a_folder(self, bench: Bench) -> None:
        code = (
            "import json, os, pathlib\n"
            "folder = pathlib.Path(os.environ['NIGHTSHIFT_JOB_DIR']); (folder / 'file').write_text('')\n"
            "names = ('NIGHTSHIFT_TASK_INSTANCE', 'NIGHTSHIFT_LOG_FORMAT', 'PYTHONUNBUFFERED')\n"
            "print(json.dumps([os.environ[name] for name in names]))"
        )
        (line,) = followed(bench.launcher, bench.launcher.start(bench.script(code)))
        assert json.loads(line) == [bench.task_instance.to_json(), "json", "1"]

    def test_secrets_are_in_the_environment_and_nowhere_else(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:its-password@host/db")
        monkeypatch.setenv("__AIRFLOW_SUPERVISOR_FD", "7")
        code = (
            "import hashlib, os\n"
            "names = [name for name in os.environ if 'AIRFLOW' in name]\n"
            "print(hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest(), os.environ['PLAIN'], names)\n"
        )
        given = {"variables": {"PLAIN": "shown", "TOKEN": "not it"}, "secrets": {"TOKEN": SECRET}}
        spec = bench.script(code + WAITS, bench.harness.marks_in_job, "a", **given)
        assert SECRET not in repr(spec)
        job = bench.launcher.start(spec)
        bench.is_up("a")
        assert SECRET not in "\n".join(_command_lines())
        bench.let_go("a")
        assert followed(bench.launcher, job)[0] == f"{hashlib.sha256(SECRET.encode()).hexdigest()} shown []"
        written = bench.harness.written()
        assert SCRIPT in written  # it is what the launcher wrote
        for secret in (SECRET, base64.b64encode(SECRET.encode()).decode(), "its-password"):
            assert secret not in written

    def test_what_is_not_there_is_refused_by_name_and_leaves_nothing(self, bench: Bench) -> None:
        before = bench.harness.written()
        with pytest.raises(JobConfigurationError, match=bench.harness.missing_words):
            bench.launcher.start(bench.example(**bench.harness.missing))
        assert bench.launcher.find(bench.task_instance) is None
        assert bench.harness.written() == before

    def test_a_job_that_wants_one_gpu_if_there_is_one_runs_without(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example(gpus=1))
        followed(bench.launcher, job)
        assert bench.launcher.status(job) is Status.SUCCEEDED

    def test_a_job_for_several_gpus_is_refused_where_there_are_none(self, bench: Bench) -> None:
        before = bench.harness.written()
        with pytest.raises(JobConfigurationError, match=r"asks for 2 GPUs, and this .* has (none|0)"):
            bench.launcher.start(bench.example(gpus=2))
        assert bench.launcher.find(bench.task_instance) is None
        assert bench.harness.written() == before
        assert bench.runs() == 0

    # finding it again

    def test_a_job_is_found_by_its_own_task_instance_only(self, bench: Bench) -> None:
        mapped = bench.key(task_id="map", map_index=0)
        job = bench.launcher.start(bench.example(task_instance=mapped))
        followed(bench.launcher, job)
        for changes in (
            {"dag_id": "other"},
            {"run_id": mapped.run_id.replace("manual", "Manual")},
            {"run_id": mapped.run_id + "0"},
            {"task_id": "ma"},
            {"task_id": "map.0"},
            {"map_index": -1},
            {"map_index": 1},
            {"task_id": "map.0", "map_index": -1},
            {"task_id": "map[0]", "map_index": -1},
            {"task_id": "map@0", "map_index": -1},
        ):
            assert bench.launcher.find(dataclasses.replace(mapped, **changes)) is None, changes  # type: ignore[arg-type]
        assert bench.launcher.find(mapped) == job
        assert bench.launcher.find(dataclasses.replace(mapped, try_number=7)) == job  # the try is no part of it

    def test_an_ended_job_counts_from_its_try_on_and_a_running_one_always(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.waiting("a", task_instance=bench.key(try_number=2)))
        bench.is_up("a")
        assert bench.launcher.find(bench.task_instance, since_try=3) == job  # it runs: it is adopted
        bench.let_go("a")
        followed(bench.launcher, job)
        assert bench.launcher.find(bench.task_instance) == job
        assert bench.launcher.find(bench.task_instance, since_try=2) == job
        assert bench.launcher.find(bench.task_instance, since_try=3) is None  # the task was cleared: it runs again

    def test_the_newest_job_is_found(self, bench: Bench) -> None:
        jobs = []
        for try_number in (1, 1, 2, 2):  # the same try again: a task that was cleared
            jobs.append(bench.launcher.start(bench.script("", task_instance=bench.key(try_number=try_number))))
            assert bench.launcher.find(bench.task_instance) == jobs[-1]
        assert len(set(jobs)) == 4
        for job in jobs:
            followed(bench.launcher, job)
        assert bench.harness.launcher().find(bench.task_instance) == jobs[-1]

    @pytest.mark.parametrize(
        "name", ["..", ".", "../..", "-", "_", ANY_CHARACTERS, "d" * 250, "写" * 250], ids=lambda name: name[:9]
    )
    def test_names_may_have_any_characters(self, bench: Bench, name: str) -> None:
        key = bench.key(dag_id=name, task_id=name, run_id=f"{bench.task_instance.run_id}{name}"[:250])
        job = bench.launcher.start(bench.example(task_instance=key))
        following = followed(bench.launcher, job)
        assert json.loads(following[-1])["event"] == "done"
        assert bench.harness.launcher().find(key) == job
        assert bench.launcher.find(dataclasses.replace(key, task_id=name[:-1] + "x")) is None
        assert bench.launcher.find(dataclasses.replace(key, dag_id=name + "x")) is None

    def test_jobs_side_by_side_do_not_see_each_other(self, bench: Bench) -> None:
        keys = {name: bench.key(map_index=index) for index, name in enumerate(("a", "b", "c"))}
        jobs = {name: bench.launcher.start(bench.waiting(name, task_instance=key)) for name, key in keys.items()}
        for name, job in jobs.items():
            bench.is_up(name)
            assert bench.launcher.find(keys[name]) == job
        bench.launcher.stop(jobs["a"])
        assert bench.launcher.status(jobs["a"]) is Status.FAILED
        assert {bench.launcher.status(jobs[name]) for name in ("b", "c")} == {Status.RUNNING}
        bench.let_go("b")
        assert followed(bench.launcher, jobs["b"]) == ["b waits", "b goes"]
        assert bench.launcher.status(jobs["c"]) is Status.RUNNING
        bench.let_go("c")
        assert followed(bench.launcher, jobs["c"]) == ["c waits", "c goes"]

    def test_the_job_of_a_dead_worker_is_found_and_followed_from_its_first_line(self, bench: Bench) -> None:
        spec = bench.example("wait", tracking="http://mlflow/1", secrets={"TOKEN": SECRET})
        arguments = [json.dumps([str(ROOT / "plugins"), str(ROOT)]), json.dumps(dataclasses.asdict(spec))]
        code = WORKER.format(prepare=bench.harness.worker_prepares)
        command = [sys.executable, "-c", code, *arguments]
        worker = subprocess.Popen(command, start_new_session=True, cwd="/", stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        shown = worker.stdout.readline()
        assert "http://mlflow/1" in shown, "the worker did not start its job"
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        assert not psutil.pid_exists(worker.pid)
        job = bench.launcher.find(bench.key(try_number=2), since_try=2)
        assert job is not None and bench.launcher.status(job) is Status.RUNNING
        following = Following(bench.launcher, job)
        following.until("http://mlflow/1")
        (bench.harness.marks / "go").touch()
        lines = following.all()
        assert lines[0] == shown.rstrip("\n") and json.loads(lines[-1])["event"] == "done"
        assert bench.launcher.status(job) is Status.SUCCEEDED
        assert bench.runs() == 1
        assert bench.launcher.find(bench.key(try_number=2)) == job

    def test_an_ended_job_reads_the_same_to_every_worker_and_every_time(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example(tracking="http://mlflow/1"))
        lines = followed(bench.launcher, job)
        status, ended, result, again = first = bench.describe(job)
        assert (status, ended.exit_code, again) == (Status.SUCCEEDED, 0, lines)
        assert result["result"]["runs"] == 1
        assert bench.describe(job) == first

    # stopping it

    def test_stop_ends_all_that_the_job_started_in_time(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example("breed"))
        following = Following(bench.launcher, job)
        following.until("all of them are up")
        assert bench.harness.alive(job) >= 3  # the last one ignores SIGTERM, in a session of its own
        started = time.monotonic()
        bench.harness.launcher().stop(job)
        assert time.monotonic() - started < patience(STOP_SECONDS)
        assert bench.harness.alive(job) == 0  # when stop returns, the next job may start
        following.all()
        assert bench.launcher.status(job) is Status.FAILED
        assert bench.launcher.result(job) is None
        bench.launcher.stop(job)  # again: nothing happens
        assert bench.launcher.status(job) is Status.FAILED

    def test_stop_lets_a_job_end_itself(self, bench: Bench) -> None:
        code = (
            "import pathlib, signal, sys, time\n"
            "def end(*_): time.sleep(1); (pathlib.Path(sys.argv[1]) / 'goodbye').touch(); sys.exit(7)\n"
            "signal.signal(signal.SIGTERM, end)\n"
        )
        job = bench.launcher.start(bench.script(code + WAITS, bench.harness.marks_in_job, "a"))
        bench.is_up("a")
        bench.launcher.stop(job)
        assert (bench.harness.marks / "goodbye").exists()
        assert bench.launcher.status(job) is Status.FAILED

    def test_a_job_that_was_stopped_keeps_its_lines_and_its_exit_code(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example("wait", tracking="http://mlflow/1"))
        following = Following(bench.launcher, job)
        following.until("http://mlflow/1")
        bench.launcher.stop(job)
        assert bench.launcher.ended(job).exit_code == 143
        assert "http://mlflow/1" in followed(bench.harness.launcher(), job)[0]

    def test_stop_right_after_the_start_leaves_nothing_running(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example("wait"))
        bench.launcher.stop(job)
        assert bench.launcher.status(job) is Status.FAILED
        assert bench.harness.alive(job) == 0
        second = bench.launcher.start(bench.waiting("second", task_instance=bench.key(try_number=2)))
        bench.is_up("second")  # by now, the first one would be up as well
        assert bench.harness.alive(job) == 0
        assert bench.launcher.find(bench.task_instance) == second
        bench.launcher.stop(second)

    def test_stop_changes_nothing_of_a_job_that_has_ended(self, bench: Bench) -> None:
        job = bench.launcher.start(bench.example())
        followed(bench.launcher, job)
        before = bench.describe(job)
        bench.launcher.stop(job)
        assert bench.describe(job) == before
        assert before[0] is Status.SUCCEEDED and before[2] is not None
        assert bench.launcher.find(bench.task_instance) == job


def _command_lines() -> list[str]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found
