"""The sandbox of the tests: the real one, in processes that need not import torch first.

`jobkit.sandbox.runner` starts an interpreter for each file that it opens, which imports torch and timm for seconds. For
tests a server with a bare environment has imported them, and forks one process a request. That process takes the
environment, folder and pipes that the runner gives, and from there runs `jobkit.sandbox.child` itself: it gives up what
it can reach, does one thing, and ends. Jobs never do this: each opens weights once or twice. What the protection is
worth is tested without it (`tests/jobkit/test_sandbox.py`, `tests/conversion_jobs/test_hostile_weights.py`).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ("numpy", "pydantic", "onnx", "torch", "timm")
LARGEST_REQUEST = 2**16
PARENT_DEATH_SIGNAL = 1


class Server:
    """The process that forks the others; it starts at the first request, and ends with this process."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.one_at_a_time = threading.Lock()

    def request(self, message: dict[str, Any], files: Sequence[int]) -> int:
        """Have a process started; return its number."""
        if self._line is None:
            self._line = self._start()
        socket.send_fds(self._line, [json.dumps(message).encode()], files)
        return self.answer()

    def answer(self, seconds: float | None = None) -> int:
        """Return the next number that the server says.

        Raises:
            TimeoutError: it says none in so many seconds.
        """
        assert self._line is not None
        self._line.settimeout(seconds)
        said = self._line.recv(64)
        assert said, "the server of the tests' sandbox has ended"
        return int(said)

    def stop(self) -> None:
        """End it."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait()

    def _start(self) -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
        }  # fmt: skip
        command = [sys.executable, "-P", "-s", "-m", "tests.support.warm_sandbox", str(there.fileno())]
        with there:
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        return here


class WarmProcess:
    """What the runner uses of `subprocess.Popen`."""

    def __init__(self, server: Server, command: list[str], cwd: Path, env: dict[str, str], **pipes: Any) -> None:
        assert command == [sys.executable, "-P", "-s", "-m", "jobkit.sandbox.child"]
        assert pipes == {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True
        }  # fmt: skip
        self._server, self._code = server, None
        (given, stdin), (stdout, printed) = os.pipe(), os.pipe()
        server.one_at_a_time.acquire()
        self.pid = server.request({"cwd": str(cwd), "environment": env, "parent": os.getpid()}, [given, printed])
        os.close(given)
        os.close(printed)
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")

    def wait(self, seconds: float | None = None) -> int:
        """Return its exit code, that of a signal as -signal.

        Raises:
            subprocess.TimeoutExpired: it runs on after so many seconds.
        """
        if self._code is None:
            try:
                self._code = self._server.answer(seconds)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("the sandbox", seconds or 0) from error
            self._server.one_at_a_time.release()
        return self._code

    _code: int | None


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[Server]:
    """The server, started at the first request."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def warm_sandbox(sandbox_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the jobs of a test, in this process, open weights in processes of the server."""
    use(sandbox_server, monkeypatch)


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `jobkit.sandbox.runner` have its processes from the server."""
    from jobkit.sandbox import runner

    names = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")}
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=partial(WarmProcess, server), **names))


def main(descriptor: int) -> None:
    """Serve one request after the other: what comes with each are its standard input and output."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    line, owner = socket.socket(fileno=descriptor), os.getppid()
    for name in IMPORTED:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    while True:
        message, files, _, _ = socket.recv_fds(line, LARGEST_REQUEST, 2)
        if not message:
            return
        # The kernel holds the one thread that a fork has; a pool of threads would be missing in it.
        assert len(list(Path("/proc/self/task").iterdir())) == 1
        number = os.fork()
        if not number:
            serve(json.loads(message), files, owner)
        for file in files:
            os.close(file)
        line.send(str(number).encode())
        line.send(str(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])).encode())


def serve(request: dict[str, Any], files: Sequence[int], owner: int) -> None:
    """Become the process that the runner asked for."""
    os.setsid()
    for target, file in enumerate((files[0], files[1], files[1])):
        os.dup2(file, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.path[:] = [request["environment"]["PYTHONPATH"], *(path for path in sys.path if path != str(ROOT))]

    from jobkit.sandbox import child

    asked = json.load(sys.stdin)
    assert asked["parent"] == request["parent"] == owner
    asked["parent"] = os.getppid()  # the one that must not go before it
    sys.stdin = io.StringIO(json.dumps(asked))
    child.main()


if __name__ == "__main__":
    main(int(sys.argv[1]))
