"""Several processes that train together, one a GPU, and the one that watches over them.

A process of the job starts them, waits, and is none of them itself: it sees at once that one has died, where the others
would wait for it in a collective operation until that times out, and ends them all.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobkit import log
from jobkit.errors import JobError
from jobkit.files import write_atomic

POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0  # after the first failure: the process that caused it may be slower to report than those it left
PR_SET_PDEATHSIG = 1
START = "import sys; from training_jobs.classifier import ddp_launcher; sys.exit(ddp_launcher.main())"


class ProcessDied(JobError):
    """One of the processes was killed; the task's retry resumes from the last checkpoint."""


class RemoteTraceback(Exception):
    """Where an error arose in another process; the cause of the error as it is raised again."""


@dataclass(frozen=True)
class Report:
    """What a process leaves behind: what its function returned, or the error that it ended with, and when."""

    returned: Any
    error: BaseException | None
    trace: str
    at: float


def run_together(function: Callable[..., Any], world: int, *arguments: Any) -> Any:
    """Run `function(rank, *arguments)` in `world` new processes; return what that of rank 0 returned.

    Their environment is what torch.distributed and Lightning expect of a launcher. Function, arguments and the returned
    value are pickled. Whatever happens, no process is left when this returns.

    Raises:
        ProcessDied: a process was killed; the message says which and by what.
        Exception: what a process raised, the first to fail if there are several.
    """
    with tempfile.TemporaryDirectory(prefix="together-") as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((function, arguments)))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            port = _free_port()
            for rank in range(world):
                processes.append(_start(folder, rank, world, port))
            _wait(processes)
            failure = _failure(folder, processes)
        finally:
            _end(processes)
        if failure is not None:
            raise failure
        return _report(folder, 0).returned  # type: ignore[union-attr] # there is one: nothing failed


def _start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    command = [sys.executable, "-c", START, str(folder), str(rank), str(os.getpid())]
    # In a session of its own, so that what loads its pictures can be ended with it.
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Return when all have ended, or a moment after the first has failed."""
    deadline = float("inf")
    while None in (codes := [_exit_code(process) for process in processes]) and time.monotonic() < deadline:
        if any(codes) and deadline == float("inf"):
            deadline = time.monotonic() + SETTLE_SECONDS
        time.sleep(POLL_SECONDS)


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code, that of a signal as -signal; None while it runs.

    Does not reap it: its number stays its own, so that what it started can still be ended by that.
    """
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _failure(folder: Path, processes: list[subprocess.Popen[bytes]]) -> BaseException | None:
    """Return why they failed: one that was killed, else the first error of the job's own, else the first error."""
    failed = {rank: code for rank, process in enumerate(processes) if (code := _exit_code(process))}
    reports = {rank: _report(folder, rank) for rank in failed}
    for rank, code in failed.items():
        if reports[rank] is None:
            return ProcessDied(f"process {rank} of the {len(processes)} that train together {_in_words(code)}")
    errors = sorted(
        (report for report in reports.values() if report is not None),
        key=lambda report: (not isinstance(report.error, JobError), report.at),
    )
    if not errors:
        return None
    first = errors[0].error
    if first is not None:
        first.__cause__ = RemoteTraceback(f"\n{errors[0].trace}")
    return first


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and left no report"
    name = signal.Signals(-code).name
    hint = " (often the kernel's out-of-memory killer)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _report(folder: Path, rank: int) -> Report | None:
    path = folder / f"report-{rank}"
    if not path.exists():
        return None
    found: Report = pickle.loads(path.read_bytes())  # noqa: S301 - written by our own process
    return found


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End what is left, and what it started: everything that it writes is written atomically."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> int:
    """Be one of the processes; the command line has the call's folder, the rank, and who watches."""
    folder, rank, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with the one that watches over it
    if os.getppid() != parent:
        return 1
    log.configure()
    if rank > 0:
        logging.getLogger().setLevel(logging.WARNING)  # the first one says the rest
    report = _call(folder, rank)
    write_atomic(folder / f"report-{rank}", pickle.dumps(report))
    return 1 if report.error else 0


def _call(folder: Path, rank: int) -> Report:
    try:
        function, arguments = pickle.loads((folder / "call").read_bytes())  # noqa: S301 - written by our own process
        return Report(function(rank, *arguments), None, "", time.monotonic())
    except Exception as error:  # noqa: BLE001 - the one that watches raises it again
        return Report(None, _portable(error), traceback.format_exc(), time.monotonic())


def _portable(error: Exception) -> Exception:
    """Return an error that survives pickling: itself, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever its class does
        return JobError(f"{type(error).__name__}: {error}")
    return error
