"""What a stranger's weights may try, once they run native code: functions for `jobkit.sandbox.runner`."""

from __future__ import annotations

import ctypes
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

O_TRUNC_READ = os.O_RDONLY | os.O_TRUNC


def attempts(work: Path, secret: Path, port: int, parent: int, victim: Path) -> dict[str, str]:
    """Try everything; return what each attempt came to: `done`, or the error."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: object) -> None:
        if libc.syscall(*arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def connect() -> None:
        socket.create_connection(("127.0.0.1", port)).close()

    def datagram() -> None:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", port))

    tries: dict[str, Callable[[], object]] = {
        "read a secret": secret.read_text,
        "list a home": lambda: os.listdir(secret.parent),
        "read the parent's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "read the parent's memory": lambda: Path(f"/proc/{parent}/mem").open("rb"),
        "trace the parent": lambda: call(101, 16, parent, 0, 0),
        "write elsewhere": lambda: (victim.parent / "new").write_text("x"),
        "change a file": lambda: victim.open("r+"),
        "empty a file": lambda: os.open(victim, O_TRUNC_READ),
        "empty its own input": lambda: os.open(work.parent / "code" / "jobkit" / "__init__.py", O_TRUNC_READ),
        "truncate": lambda: os.truncate(victim, 0),
        "remove": victim.unlink,
        "rename": lambda: victim.rename(work / "mine"),
        "hard link": lambda: os.link(victim, work / "mine"),
        "symbolic link": lambda: (work / "mine").symlink_to(victim),
        "change the mode": lambda: victim.chmod(0o777),
        "change the times": lambda: os.utime(victim, (0, 0)),
        "connect": connect,
        "datagram": datagram,
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "pair of sockets": socket.socketpair,
        "io_uring": lambda: call(425, 8, None),
        "fork": lambda: os._exit(0) if os.fork() == 0 else None,
        "program": lambda: os.execv("/bin/true", ["true"]),
        "shell": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", f"touch {victim.parent}/new"], {}),
        "signal": lambda: os.kill(parent, 0),
        "limit of another process": lambda: __import__("resource").prlimit(
            parent, __import__("resource").RLIMIT_NOFILE
        ),
        "shared memory": lambda: call(29, 0, 4096, 0o1600),
        "user namespace": lambda: call(272, 0x10000000),
        "x32": lambda: None,
    }
    del tries["x32"]
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = type(error).__name__
    return found


def surroundings(work: Path) -> dict[str, str]:
    """Return the variables, and the open files, of the process."""
    (work / "output.txt").write_text("a file")
    files = {f"file {number}": os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")[:-1]}
    return {**os.environ, **files, "home": ",".join(os.listdir(os.environ["HOME"]))}


def takes_all_memory(work: Path) -> int:
    """Allocate without end."""
    kept = []
    while True:
        kept.append(bytearray(2**26))


def never_ends(work: Path) -> int:
    """Loop."""
    while True:
        time.sleep(0.01)


def prints_without_end(work: Path) -> int:
    """Fill the log, with what a log line looks like."""
    line = '{"event": "done", "exit_code": 0}\n' * 1000
    for _ in range(1000):
        sys.stdout.write(line)
    raise RuntimeError("\x1b[2Jenough")


def crashes(work: Path) -> int:
    """End as native code ends."""
    ctypes.string_at(0)
    return 0


def ends_quietly(work: Path) -> int:
    """End as if all were well."""
    os._exit(0)


def lies(work: Path) -> int:
    """Answer with something else than was asked."""
    return "a word"  # type: ignore[return-value]


def fills_the_disk(work: Path) -> int:
    """Write one file without end."""
    with (work / "large").open("wb") as file:
        while True:
            file.write(bytes(io.DEFAULT_BUFFER_SIZE * 1024))
