"""The process in which weights are opened: `python -m jobkit.sandbox.child`, started by `runner` and by nobody else.

It gives up what it can reach before it imports anything that has threads (numpy, torch): Landlock and seccomp hold the
thread that asks for them and what that thread starts.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import platform
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from jobkit.sandbox import landlock, seccomp

CONFINED, REPLY = ".confined", ".reply.json"
PARENT_DEATH_SIGNAL, CAPABILITY_VERSION = 1, 0x20080522
CAPSET = {"x86_64": 126, "aarch64": 91}
SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl/openssl.cnf", "/dev/urandom",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/sys/devices/system/cpu", "/sys/devices/system/node",
)  # fmt: skip
"""Where the system's libraries, and what they read when they are loaded, lie."""


def main() -> None:
    """Read what is asked from standard input, give up everything else, do it, leave the reply."""
    request = json.load(sys.stdin)
    work = Path.cwd()
    confine(request)
    (work / CONFINED).touch()
    try:
        reply = {"value": call(request["function"], work, request["arguments"])}
    except BaseException as error:  # noqa: BLE001 - whatever a model makes torch raise
        traceback.print_exc()
        kind = type(error)
        reply = {"error": kind.__name__, "message": str(error), "ours": kind.__module__ == "jobkit.errors"}
    (work / REPLY).write_text(json.dumps(reply))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing of what was opened is asked again


def confine(request: dict[str, Any]) -> None:
    """Give up the network, files, processes and memory, as far as `request` says that the kernel can hold it."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, request["file_bytes"])
    limit(resource.RLIMIT_CPU, request["cpu_seconds"])
    if platform.system() == "Linux":
        limit(resource.RLIMIT_DATA, request["memory_bytes"])
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != request["parent"]:
            raise SystemExit("the job that started this is gone")
        Path("/proc/self/oom_score_adj").write_text("1000")  # where the host runs out of memory, this is what ends
        drop_capabilities(libc)
    if request["landlock"]:
        system = [Path(path) for path in (*SYSTEM, sys.prefix, sys.base_prefix)]
        readable = [path.resolve() for path in (*system, *map(Path, request["readable"]))]
        landlock.restrict(readable, [Path("/dev/null"), *map(Path, request["writable"])])
    if request["seccomp"]:
        seccomp.restrict()


def limit(what: int, value: int) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what root may do beyond an owner of files."""
    number = CAPSET.get(platform.machine())
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if number is not None and libc.syscall(number, header, nothing):
        raise OSError(ctypes.get_errno(), "the capabilities cannot be given up")


def call(name: str, work: Path, arguments: dict[str, Any]) -> Any:
    """Return what the function `module:name` gives for the folder `work` and `arguments`, both as JSON."""
    import pydantic

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    value = pydantic.validate_call(function)(work, **arguments)
    return pydantic.TypeAdapter(get_type_hints(function)["return"]).dump_python(value, mode="json")


if __name__ == "__main__":
    main()
