"""What opens weights of unknown origin reaches nothing: each attack is done for real, first without the sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobkit import settings
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.sandbox import landlock, runner, seccomp
from nightshift_common.patience import patience
from tests.support import hostile, warm_sandbox
from tests.support.warm_sandbox import sandbox_server

__all__ = ["sandbox_server"]

needs_kernel = pytest.mark.skipif(
    not landlock.abi() or not seccomp.is_available(), reason="this kernel has no Landlock, or no seccomp"
)


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    with runner.run(function, arguments, reads=[]) as done:
        return done.value


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A secret in a home, a file of somebody else, sockets that listen, and the job itself."""
    home, files = tmp_path / "home", tmp_path / "files"
    home.mkdir()
    files.mkdir()
    (home / "id_rsa").write_text("a secret")
    (files / "victim").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(home / "socket"))
        local.listen()
        yield {
            "secret": home / "id_rsa", "victim": files / "victim", "port": tcp.getsockname()[1], "parent": os.getpid(),
        }  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("processes", ["of jobs", "of tests"])
def test_nothing_that_native_code_tries_succeeds(
    processes: str, targets: dict[str, Any], sandbox_server: warm_sandbox.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if processes == "of tests":
        warm_sandbox.use(sandbox_server, monkeypatch)
    found = call(hostile.attempts, **targets)
    assert len(found) == 28
    assert {name for name, came_to in found.items() if came_to == "done"} == set()
    victim = targets["victim"]
    assert victim.read_text() == "as it was"
    assert [path.name for path in victim.parent.iterdir()] == ["victim"]


def test_the_same_attempts_succeed_without_the_sandbox(targets: dict[str, Any], tmp_path: Path) -> None:
    """So what fails above fails by it. In a process of its own, which `become a program` ends."""
    (tmp_path / "code" / "jobkit").mkdir(parents=True)
    (tmp_path / "code" / "jobkit" / "__init__.py").touch()
    (tmp_path / "work").mkdir()
    targets["victim"].with_name("spare").write_text("x")
    code = (
        "from pathlib import Path; from tests.support import hostile; import os, sys; os.execv = lambda *_: None\n"
        f"print(hostile.attempts(Path({str(tmp_path / 'work')!r}), Path({str(targets['secret'])!r}), "
        f"Path({str(targets['victim'])!r}), {targets['port']}, os.getppid()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=patience(60)
    )
    found = eval(done.stdout)
    for name in (
        "read a secret", "list a home", "write elsewhere", "change a file", "truncate", "connect",
        "send a datagram", "connect to a local socket", "fork", "start a program", "signal the parent", "share memory",
    ):  # fmt: skip
        assert found[name] == "done", name


def test_secrets_and_open_files_of_the_job_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", "a secret")
    monkeypatch.setenv("NIGHTSHIFT_JOB_DIR", str(tmp_path))
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        found = call(hostile.surroundings)
    assert "a secret" not in found.values()
    assert "open" not in found.values()
    assert found["what is in HOME"] == ""
    assert found["HOME"].startswith(str(tmp_path / "nightshift-sandbox-"))
    assert all(found[f"file {number}"].startswith("pipe:") for number in range(3))
    assert found["NIGHTSHIFT_JOB_DIR"] == str(tmp_path), "by it a launcher finds what a job has started"
    assert [path.name for path in tmp_path.iterdir()] == ["open"], "the sandbox's folder is gone"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (hostile.crashes, "the process that opened it died of SIGSEGV"),
        (hostile.ends_quietly, "the process that opened it left no reply"),
        (hostile.lies, "gave something else than it should"),
        (hostile.prints_without_end, r"ended in RuntimeError: \?\[2Jenough"),
    ],
)
def test_whatever_the_process_does_is_data_that_is_refused(
    function: Callable[..., Any], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataValidationError, match=says):
        call(function)
    assert len(caplog.text) < 10_000
    assert not [line for line in caplog.text.splitlines() if line.startswith("{")], "no line looks like one of the job"


def test_memory_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "available_memory", lambda: 2**29)
    with pytest.raises(DataValidationError, match="MemoryError"):
        call(hostile.takes_all_memory)


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "FILE_BYTES", 2**22)
    monkeypatch.setenv("NIGHTSHIFT_JOB_DIR", str(tmp_path))
    with pytest.raises(DataValidationError, match="File too large"):
        call(hostile.fills_the_disk)
    assert not list(tmp_path.iterdir())


def test_time_without_end_is_refused_and_nothing_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SECONDS", 3)
    with pytest.raises(DataValidationError, match="took more than 3 seconds"):
        call(hostile.never_ends)
    assert not sandboxed_children()


def sandboxed_children() -> list[str]:
    """Return the sandboxes that this process has running, or has left as zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            line = (folder / "cmdline").read_text()
            if int(parent) == os.getpid() and (not line or "jobkit.sandbox" in line):
                found.append(f"{folder.name} {line}")
    return found


def test_a_file_that_is_a_link_is_not_taken_for_what_was_written(tmp_path: Path) -> None:
    with runner.run(hostile.writes, {"name": "model.pt"}, reads=[]) as done:
        assert done.file("model.pt").read_text() == "data"
        (tmp_path / "secret").write_text("a secret")
        (done.folder / "link.pt").symlink_to(tmp_path / "secret")
        (done.folder / "hard.pt").hardlink_to(tmp_path / "secret")
        for name in ("link.pt", "hard.pt", "nothing.pt"):
            with pytest.raises(DataValidationError, match=f"left no file {name}"):
                done.file(name)


@pytest.mark.parametrize("policy", ["", "best-effort", "require"])
def test_a_kernel_without_a_sandbox_is_said_or_refused(
    policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setenv(settings.SANDBOX, policy)
    if policy == "require":
        with pytest.raises(ConfigurationError, match="Landlock cannot be had, and NIGHTSHIFT_SANDBOX is require"):
            call(hostile.surroundings)
        return
    assert call(hostile.surroundings)
    assert "weights are opened without Landlock, which this system does not have" in caplog.text


def test_without_landlock_a_reply_that_is_a_link_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reply").write_text('{"value": 1}')
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(DataValidationError, match="left no reply"):
        call(hostile.answers_with_a_link, target=tmp_path / "reply")


def test_an_unknown_policy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.SANDBOX, "off")
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_SANDBOX is 'off': require or best-effort"):
        call(hostile.surroundings)


@pytest.mark.parametrize("machine", sorted(seccomp.ARCHITECTURES))
def test_the_filter_is_one_that_the_kernel_takes(machine: str) -> None:
    instructions = seccomp.program(machine)
    assert len(instructions) < 4096
    for position, (code, if_true, if_false, _) in enumerate(instructions):
        if code in (seccomp.EQUAL, seccomp.AT_LEAST, seccomp.ANY_BIT):
            assert position + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1] == (seccomp.RETURN, 0, 0, seccomp.ALLOW)
