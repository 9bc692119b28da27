"""Runs jobs as processes of this machine that outlive the worker.

Each attempt has a folder `<state>/jobs/<dag>/<run>/<task>/<attempt>/` with `job.json` (what and for whom, no secrets),
`process.json` (written by the job's shell itself, so that there is no moment at which a running job is unknown),
`log`, `exit_code` and `result.json`. The shell leads a session of its own, so that killing the session's group ends
everything that the job started.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from nightshift.errors import JobConfigurationError, JobFailed
from nightshift.launchers.base import Ended, JobSpec, Status
from nightshift_common.task_instance import VARIABLE, TaskInstanceKey

# $$ is the shell, the session's leader. Its start time (field 22 of /proc/PID/stat) tells it from a later process with
# the same number. The exit code is written by the shell, so that a worker that comes later can read it. The shell
# outlives a request to end, which reaches the job as usual: a child does not inherit a trap. What the shell says,
# for instance "Killed", is no line of the job.
WRAPPER = """
set -u
trap : TERM INT HUP
job=$NIGHTSHIFT_JOB_DIR
start=$(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20)
echo "{\\"pid\\": $$, \\"start\\": $start}" > "$job/process.json.new" && mv "$job/process.json.new" "$job/process.json"
(exec "$@" > "$job/log" 2>&1)
code=$?
echo $code > "$job/exit_code.new" && mv "$job/exit_code.new" "$job/exit_code"
"""
POLL_SECONDS = 0.1
CHUNK_BYTES = 1 << 20
NAME_CHARACTERS = 200  # a file system takes 255 bytes
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL; Airflow allows five in all
KILL_SECONDS = 1.0
START_SECONDS = 30.0  # a machine that is busy to its limit; usually 10 ms


def process_launcher() -> ProcessLauncher:
    """Return the launcher of the checkout `NIGHTSHIFT_HOME`, by default this one; state in `NIGHTSHIFT_STATE`."""
    home = Path(os.environ.get("NIGHTSHIFT_HOME") or Path(__file__).resolve().parents[3])
    return ProcessLauncher(home, Path(os.environ.get("NIGHTSHIFT_STATE") or home / ".nightshift"))


class ProcessLauncher:
    """Jobs as processes: `home` is the checkout, whose `.venv/<runtime>` holds the interpreters."""

    def __init__(self, home: Path, state: Path) -> None:
        self.home, self.jobs = home, state / "jobs"

    def start(self, spec: JobSpec) -> str:
        """Start the job in a new folder; return the folder's name below `jobs/`.

        Raises:
            JobConfigurationError: there is no such runtime.
            JobFailed: the machine did not start a shell in time.
        """
        python = self.home / ".venv" / spec.runtime / "bin" / "python"
        if not python.exists():
            raise JobConfigurationError(
                f"the runtime {spec.runtime} is not installed: there is no {python};"
                f" python3.11 -m local.bootstrap {spec.runtime} makes it"
            )
        folder = self._new_attempt(spec.task_instance)
        described = {
            "task_instance": spec.task_instance.to_dict(),
            "module": spec.module,
            "options": spec.options,
            "runtime": spec.runtime,
            "variables": dict(spec.variables),
            "secrets": sorted(spec.secrets),
        }
        _write(folder / "job.json", json.dumps(described, indent=2) + "\n")
        shell = subprocess.Popen(
            ["/bin/sh", "-c", WRAPPER, "job", str(python), "-m", spec.module, *spec.options],
            cwd=self.home,
            env=self._environment(spec, folder, python.parent),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not (folder / "process.json").exists():
            if time.monotonic() > deadline or shell.poll() is not None:
                os.killpg(shell.pid, signal.SIGKILL)
                raise JobFailed(f"no shell for {spec.module} came up in {START_SECONDS:.0f} s in {folder}")
            time.sleep(0.005)
        return folder.relative_to(self.jobs).as_posix()

    def _environment(self, spec: JobSpec, folder: Path, programs: Path) -> dict[str, str]:
        # Airflow's own settings and secrets stay with Airflow.
        inherited = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
        job = {
            "NIGHTSHIFT_JOB_DIR": str(folder),
            VARIABLE: spec.task_instance.to_json(),
            "NIGHTSHIFT_LOG_FORMAT": "json",
            "NIGHTSHIFT_HOME": str(self.home),
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
        return {**inherited, **spec.variables, **spec.secrets, **job}

    def _task_folder(self, task_instance: TaskInstanceKey) -> Path:
        parts = (task_instance.dag_id, task_instance.run_id, task_instance.task_id)
        dag, run, task = (_folder_name(part) for part in parts)
        index = "" if task_instance.map_index < 0 else f"@{task_instance.map_index}"  # no name has a bare @
        return self.jobs / dag / run / f"{task}{index}"

    def _new_attempt(self, task_instance: TaskInstanceKey) -> Path:
        folder = self._task_folder(task_instance)
        number = task_instance.try_number
        while True:
            attempt = folder / f"{number:03d}"
            try:
                attempt.mkdir(parents=True)
            except FileExistsError:
                number += 1  # the same try again: a task that was cleared
            else:
                return attempt

    def find(self, task_instance: TaskInstanceKey, since_try: int = 1) -> str | None:
        """Return the newest attempt that was really started, and that runs or is new enough."""
        for attempt in sorted(self._task_folder(task_instance).glob("[0-9]*"), reverse=True):
            job_id = attempt.relative_to(self.jobs).as_posix()
            if (attempt / "process.json").exists():
                started_by = json.loads((attempt / "job.json").read_text())["task_instance"]["try_number"]
                if started_by >= since_try or self.status(job_id) is Status.RUNNING:
                    return job_id
        return None

    def status(self, job_id: str) -> Status:
        """Return where the job is. Its exit code counts from the moment when its shell has written it."""
        folder = self.jobs / job_id
        if (folder / "exit_code").exists():
            return Status.SUCCEEDED if self.ended(job_id).succeeded else Status.FAILED
        if self._leader(folder) is not None:
            return Status.RUNNING
        if (folder / "exit_code").exists():  # written between the two looks
            return self.status(job_id)
        return Status.FAILED

    def _leader(self, folder: Path) -> psutil.Process | None:
        try:
            known = json.loads((folder / "process.json").read_text())
            process = psutil.Process(known["pid"])
            stat = Path(f"/proc/{known['pid']}/stat").read_text()
            same = int(stat.rsplit(") ", 1)[1].split()[19]) == known["start"]
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, psutil.NoSuchProcess, ValueError, IndexError):
            return None

    def ended(self, job_id: str) -> Ended:
        """Return the recorded exit code; None where the shell was killed with the job."""
        try:
            return Ended(int((self.jobs / job_id / "exit_code").read_text()))
        except (OSError, ValueError):
            return Ended(None)

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yield complete lines as they come, and the rest once the job has ended."""
        path = self.jobs / job_id / "log"
        position, rest = 0, b""
        while True:
            running = self.status(job_id) is Status.RUNNING  # before the read: what was written until then is read
            chunk = b""
            if path.exists():
                with path.open("rb") as handle:
                    handle.seek(position)
                    chunk = handle.read(CHUNK_BYTES)
                position += len(chunk)
                running = running or len(chunk) == CHUNK_BYTES  # there may be more to read
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
            if not running:
                if rest:
                    yield rest.decode(errors="replace").rstrip("\r")
                return
            if len(chunk) < CHUNK_BYTES:
                time.sleep(POLL_SECONDS)

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return `result.json`."""
        try:
            found: dict[str, Any] = json.loads((self.jobs / job_id / "result.json").read_text())
        except FileNotFoundError:
            return None
        return found

    def stop(self, job_id: str) -> None:
        """SIGTERM to all that the job started, in whatever session; SIGKILL three seconds later to the rest."""
        folder = self.jobs / job_id
        processes = self._processes(folder)
        _signal(processes, signal.SIGTERM)
        left = {*_still_running(processes, GRACE_SECONDS), *self._processes(folder)}
        _signal(left, signal.SIGKILL)
        _still_running(left, KILL_SECONDS)

    def _processes(self, folder: Path) -> set[psutil.Process]:
        """Return all that carry the job's folder in their environment, and what they started: the shell, the job, …"""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("NIGHTSHIFT_JOB_DIR") == str(folder):
                    found |= {process, *process.children(recursive=True)}
            except psutil.Error:
                continue
        return found


def _folder_name(part: str) -> str:
    """Return a name that no other part of a key has and that stays in its folder, whatever characters it has."""
    name = quote(part, safe="+~")
    if len(name) > NAME_CHARACTERS:
        return f"{name[:NAME_CHARACTERS]}={hashlib.sha256(part.encode()).hexdigest()[:32]}"
    return name.replace(".", "%2E") if set(name) == {"."} else name


def _still_running(processes: set[psutil.Process], seconds: float) -> set[psutil.Process]:
    """Wait at most `seconds` for `processes` to end; return the others. One that nobody has reaped yet has ended."""
    deadline = time.monotonic() + seconds
    while (left := {process for process in processes if _runs(process)}) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: set[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)
