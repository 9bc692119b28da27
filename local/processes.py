"""Processes of the local stack: started apart from the terminal, found again by a mark in their environment.

Every process that the stack starts, and all that they start in turn, carry `NIGHTSHIFT_STACK=<state folder>` in their
environment. So nothing escapes: not what Airflow's standalone command orphans when it is killed, not a job whose
worker died, not a server whose pid file is gone.

One cannot always be asked for its environment: root's PostgreSQL runs as another user, and where root may not trace
others (a container without CAP_SYS_PTRACE) that is hidden. So what root starts is written down, too, in `run/`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from nightshift_common.patience import patience

MARK = "NIGHTSHIFT_STACK"
COMPONENT = "NIGHTSHIFT_COMPONENT"
JOB = "NIGHTSHIFT_JOB_DIR"


class Patience:
    """A limit of time that grows with the load of the machine."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._started = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether the time is up, at the present load."""
        return self.passed > patience(self.seconds)

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def a_little(self) -> None:
        """Wait a tenth of a second."""
        time.sleep(0.1)


def start(name: str, command: list[str], state: Path, environment: dict[str, str]) -> psutil.Process:
    """Start a component in a session of its own, its output appended to `logs/<name>.log`.

    Args:
        name: the component.
        command: what to run.
        state: the stack's state folder.
        environment: what the process gets beside this process's environment.
    """
    log = state / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment, **marks(state, name)},
        )
    write_down(name, process.pid, state)
    return psutil.Process(process.pid)


def marks(state: Path, name: str) -> dict[str, str]:
    """Return what each process of a component has in its environment."""
    # SPT_NOENV keeps setproctitle, which Airflow uses, from writing its titles over the environment.
    return {MARK: str(state), COMPONENT: name, "SPT_NOENV": "1"}


def write_down(name: str, pid: int, state: Path) -> None:
    """Write down which process root has started as a component."""
    if os.geteuid() == 0:
        note = state / "run" / f"{name}.started"
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"{pid} {_start_ticks(pid)}")


def of_stack(state: Path, component: str | None = None, with_jobs: bool = True) -> list[psutil.Process]:
    """Return the stack's processes, or those of one component; jobs, which may outlive Airflow, with `with_jobs`."""
    return list(_marked(state, component, with_jobs))


def is_job(process: psutil.Process) -> bool:
    """Whether a process of the stack belongs to a job; jobs never run as another user than the stack."""
    try:
        return JOB in process.environ()
    except psutil.AccessDenied:
        return False


def _marked(state: Path, component: str | None, with_jobs: bool) -> Iterator[psutil.Process]:
    started = {path.read_text(): path.stem for path in (state / "run").glob("*.started")}
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = _environment(process, started, state)
        except (psutil.Error, OSError):
            continue
        if environment.get(MARK) != str(state) or (component and environment.get(COMPONENT) != component):
            continue
        if with_jobs or JOB not in environment:
            yield process


def _environment(process: psutil.Process, started: dict[str, str], state: Path) -> dict[str, str]:
    """Return a process' environment; where that is hidden, the marks of what was started: itself, or its parent."""
    try:
        return process.environ()
    except psutil.AccessDenied:
        for pid in (process.pid, process.ppid()):
            if name := started.get(f"{pid} {_start_ticks(pid)}"):
                return {MARK: str(state), COMPONENT: name}
        return {}


def _start_ticks(pid: int) -> str:
    """Return when a process started (field 22 of /proc/PID/stat): a later one of the same number has another."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def stop(processes: Callable[[], list[psutil.Process]], number: int = signal.SIGTERM, patience: float = 10.0) -> None:
    """End what `processes()` finds: ask by the signal `number`, then kill; returns when none is left.

    The processes are looked for again after each round, since one that ends may leave others that it had started.
    """
    _send(processes(), number)
    _wait(processes, patience)
    for _ in range(5):
        left = processes()
        if not left:
            return
        _send(left, signal.SIGKILL)
        _wait(processes, 2.0)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _wait(processes: Callable[[], list[psutil.Process]], patience: float) -> None:
    psutil.wait_procs(processes(), timeout=patience)
