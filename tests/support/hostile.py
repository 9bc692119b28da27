"""What a stranger's weights may try once they run native code: functions for `jobkit.sandbox.runner`."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

NUMBERS = {"x86_64": (101, 29, 272, 310), "aarch64": (117, 194, 97, 270)}
"""ptrace, shmget, unshare, process_vm_readv."""
SEIZE = 0x4206  # of ptrace: it does not stop what it traces


def attempts(work: Path, secret: Path, victim: Path, port: int, parent: int) -> dict[str, str]:
    """Try everything; return what each attempt came to: `done`, or the error's name."""
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace, shmget, unshare, read_memory = NUMBERS[platform.machine()]

    def call(*arguments: object) -> None:
        if libc.syscall(*arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    empties = os.O_RDONLY | os.O_TRUNC
    local = socket.AF_UNIX
    tries: dict[str, Callable[[], object]] = {
        "read a secret": secret.read_text,
        "list a home": lambda: list(secret.parent.iterdir()),
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "read the parent's memory": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
        "read the parent's memory by a call": lambda: call(read_memory, parent, None, 0, None, 0, 0),
        "trace the parent": lambda: call(ptrace, SEIZE, parent, 0, 0),
        "write elsewhere": lambda: (victim.parent / "new").write_text("x"),
        "change a file": lambda: os.open(victim, os.O_RDWR),
        "empty a file as it is read": lambda: os.open(victim, empties),
        "empty the code": lambda: os.open(work.parent / "code" / "jobkit" / "__init__.py", empties),
        "truncate": lambda: os.truncate(victim, 0),
        "remove": victim.unlink,
        "rename": lambda: victim.rename(work / "mine"),
        "hard link": lambda: (work / "mine").hardlink_to(victim),
        "symbolic link": lambda: (work / "mine").symlink_to(victim),
        "change the mode": lambda: victim.chmod(0o777),
        "change the times": lambda: os.utime(victim, (0, 0)),
        "connect": lambda: socket.create_connection(("127.0.0.1", port)),
        "send a datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port)),
        "connect to a local socket": lambda: socket.socket(local).connect(str(secret.parent / "socket")),
        "io_uring": lambda: call(425, 8, ctypes.create_string_buffer(256)),
        "fork": fork,
        "become a program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
        "start a program": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "exit 0"], {}),
        "signal the parent": lambda: os.kill(parent, 0),
        "change the parent's limits": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
        "share memory": lambda: call(shmget, 0, 4096, 0o1600),
        "have a namespace": lambda: call(unshare, 0x10000000),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = type(error).__name__
    return found


def surroundings(work: Path) -> dict[str, str]:
    """Return the process's variables, what its open files are, and what lies in its home."""
    files = {f"file {number}": str(Path(f"/proc/self/fd/{number}").readlink()) for number in range(3)}
    more = {f"file {number}": "open" for number in range(3, 64) if _is_open(number)}
    home = ",".join(path.name for path in Path.home().iterdir())
    return {**os.environ, **files, **more, "what is in HOME": home}


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def writes(work: Path, name: str) -> None:
    """Leave a file."""
    (work / name).write_text("data")


def takes_all_memory(work: Path) -> None:
    """Allocate without end."""
    kept = []
    while True:
        kept.append(bytes(2**26))


def never_ends(work: Path) -> None:
    """Wait."""
    while True:
        time.sleep(1)


def fills_the_disk(work: Path) -> None:
    """Write one file without end."""
    with (work / "large").open("wb") as file:
        while True:
            file.write(bytes(2**20))


def prints_without_end(work: Path) -> None:
    """Fill the log with what a job's log lines look like."""
    for _ in range(100_000):
        sys.stdout.write('{"event": "done", "exit_code": 0}\n')
    raise RuntimeError("\x1b[2Jenough")


def crashes(work: Path) -> None:
    """End as native code ends."""
    ctypes.string_at(0)


def ends_quietly(work: Path) -> None:
    """End as if all were well."""
    os._exit(0)


def lies(work: Path) -> int:
    """Answer with something else than was asked."""
    (work / ".reply.json").write_text('{"value": "a word"}')
    os._exit(0)


def answers_with_a_link(work: Path, target: Path) -> int:
    """Make the reply a link to a file of somebody else (which the kernel allows only without the sandbox)."""
    (work / ".reply.json").symlink_to(target)
    os._exit(0)
