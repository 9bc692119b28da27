"""Run a function on weights of unknown origin in a process that the kernel holds; only data comes back.

    with runner.run(export_file, {"weights": path, "opset": 17}, reads=[path]) as done:
        bottle.put(key, done.file("model.onnx"))

The function is one of a module: `function(work: Path, **arguments) -> result`. `work` is the folder that it may write
to; arguments and result are whatever pydantic can write as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from jobkit import settings
from jobkit.errors import ConfigurationError, DataValidationError, JobError
from jobkit.sandbox import landlock, seccomp
from jobkit.sandbox.child import CONFINED, REPLY

logger = logging.getLogger("jobkit.sandbox")

SECONDS = 3600
FILE_BYTES = 2**33  # of one file that is written: beyond what four times the weights are
LARGEST_REPLY = 2**24
KEPT_OUTPUT = 2**12
CODE = ("jobkit", "nightshift_common")
PASSED = ("NIGHTSHIFT_JOB_DIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TZ")
"""Variables that the process keeps; `NIGHTSHIFT_JOB_DIR` is how a launcher finds what a job has started."""
ERRORS = {error.__name__: error for error in (DataValidationError, ConfigurationError)}
T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a function in the sandbox left: its result, and files that are there until the block ends.

    Both are data of a stranger: of the right type, and nothing else is known of them.
    """

    value: T
    folder: Path

    def file(self, name: str) -> Path:
        """Return the path of a file that was written.

        Raises:
            DataValidationError: it is not there, or is a link to something else.
        """
        path = self.folder / name
        if not _is_plain_file(path):
            raise DataValidationError(f"opening the weights left no file {name}")
        return path


@contextmanager
def run(
    function: Callable[..., T], arguments: Mapping[str, Any], reads: Sequence[Path], modules: Sequence[str] = ()
) -> Iterator[Done[T]]:
    """Call `function` in the sandbox; yield what it left.

    Args:
        function: of a module of this repository.
        arguments: for it, by name.
        reads: the files that it may read, beside libraries and code.
        modules: code of one's own that it imports, by name (a factory).

    Raises:
        DataValidationError: the function raised it; or the weights took too much time or memory, tried what they may
            not do, or ended the process.
        ConfigurationError: the function raised it; or the kernel cannot hold the process, and NIGHTSHIFT_SANDBOX asks
            for it.
    """
    missing = unprotected()
    with tempfile.TemporaryDirectory(prefix="nightshift-sandbox-", dir=os.environ.get("NIGHTSHIFT_JOB_DIR")) as name:
        base = Path(name).resolve()
        folders = [base / part for part in ("work", "home", "tmp")]
        for folder in (*folders, base / "code"):
            folder.mkdir()
        code = [*link_code(base / "code", (*CODE, function.__module__, *modules))]
        given = sum(path.stat().st_size for path in reads)
        request = {
            "function": f"{function.__module__}:{function.__qualname__}",
            # The process runs in a folder of its own, where a relative path would lead elsewhere.
            "arguments": to_jsonable_python(
                {k: v.absolute() if isinstance(v, Path) else v for k, v in arguments.items()}
            ),
            "readable": [str(path.resolve()) for path in (*reads, *code, base / "code")],
            "writable": [str(folder) for folder in folders],
            "parent": os.getpid(),
            "memory_bytes": available_memory() + given,
            "file_bytes": max(FILE_BYTES, 4 * given),
            "cpu_seconds": SECONDS * (os.cpu_count() or 1),
            "landlock": "Landlock" not in missing,
            "seccomp": "seccomp" not in missing,
        }
        what = reads[0].name if reads else function.__name__
        ended, output = _call(request, base, folders)
        yield Done(_result(function, folders[0], what, ended, output), folders[0])


def unprotected() -> list[str]:
    """Return what this kernel cannot hold the process by; a warning names it.

    Raises:
        ConfigurationError: there is such a thing, and NIGHTSHIFT_SANDBOX asks for all.
    """
    policy = settings.optional(settings.SANDBOX) or "best-effort"
    if policy not in ("require", "best-effort"):
        raise ConfigurationError(f"{settings.SANDBOX} is {policy!r}: require or best-effort")
    found = {"Landlock": landlock.abi() > 0, "seccomp": seccomp.is_available()}
    missing = [name for name, there in found.items() if not there]
    if missing and policy == "require":
        raise ConfigurationError(
            f"weights are not opened here: {' and '.join(missing)} cannot be had, and {settings.SANDBOX} is require. "
            "Linux 5.13 with both is needed (docs/security.md); best-effort opens them with what there is"
        )
    if missing:
        logger.warning(
            "weights are opened without %s, which this system does not have: they could reach what this user can "
            "(docs/security.md)", " and ".join(missing),
        )  # fmt: skip
    return missing


def link_code(folder: Path, modules: Sequence[str]) -> Iterator[Path]:
    """Make the packages of `modules` importable from `folder`, and yield where they are.

    Of a module that is a single file, what lies beside it can be imported too. What Python itself has installed is
    left out: it is found anyway.
    """
    for name in dict.fromkeys(module.partition(".")[0] for module in modules):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            continue
        places = [Path(place) for place in spec.submodule_search_locations or ()]
        if not places and spec.origin and Path(spec.origin).is_file():
            beside = Path(spec.origin).parent
            places = [*beside.glob("*.py"), *(path.parent for path in beside.glob("*/__init__.py"))]
        for place in places:
            if any(place.is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix)):
                continue
            link = folder / place.name
            if not link.exists():
                link.symlink_to(place.resolve())
                yield place


def available_memory() -> int:
    """Return how much memory the host and this container still have, bytes; without bound where neither tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        largest = (group / "memory.max").read_text().strip()
        if largest != "max":
            found.append(int(largest) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(min(found, default=2**62), 2**30)


def _call(request: dict[str, Any], base: Path, folders: Sequence[Path]) -> tuple[str | None, str]:
    """Run the process; return why it did not end by itself, or None, and the last of what it printed."""
    work, home, temporary = folders
    environment = {
        "PYTHONPATH": str(base / "code"), "HOME": str(home), "TMPDIR": str(temporary), "LANG": "C.UTF-8",
        "LOGNAME": "sandbox", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "",
        **{name: os.environ[name] for name in PASSED if name in os.environ},
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", "jobkit.sandbox.child"], cwd=work, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    output = _Tail(stdout)
    try:
        try:
            stdin.write(json.dumps(request).encode())
            stdin.close()
        except BrokenPipeError:  # it ended before it had read; what it printed says why
            pass
        code = process.wait(SECONDS)
        ended = None if code == 0 else _reason(code)
    except subprocess.TimeoutExpired:
        ended = f"took more than {SECONDS} seconds"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return ended, output.text()


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed: it took more memory than there is"
    if code == -signal.SIGXCPU:
        return "took more processor time than it may"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended by itself with {code}"


def _result(function: Callable[..., T], work: Path, what: str, ended: str | None, output: str) -> T:
    """Return the function's result, or raise what it raised."""
    if not _is_plain_file(work / CONFINED):
        raise JobError(f"the process that opens {what} could not be started: {ended}\n{output}")
    reply = _reply(work / REPLY) if ended is None else None
    if reply is not None and "value" in reply:
        try:
            return TypeAdapter[T](get_type_hints(function)["return"]).validate_python(reply["value"])
        except ValidationError as error:
            raise DataValidationError(f"opening {what} gave something else than it should: {error}") from error
    if output:
        logger.warning("what opening %s printed last:\n%s", what, output)
    if reply is None:
        raise DataValidationError(f"{what} was refused: the process that opened it {ended or 'left no reply'}")
    message = _printable(str(reply.get("message")))[:2000]
    if reply.get("ours") is True and (kind := ERRORS.get(str(reply.get("error")))):
        raise kind(message)
    first = message.strip().splitlines()[-1] if message.strip() else "without a word"
    raise DataValidationError(
        f"{what} was refused: opening it ended in {_printable(str(reply.get('error')))[:80]}: {first}. It is opened "
        "without network, files and processes"
    )


def _reply(path: Path) -> dict[str, Any] | None:
    if not _is_plain_file(path) or path.stat().st_size > LARGEST_REPLY:
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_plain_file(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


class _Tail:
    """The last of what a process prints; it may print without end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while part := stream.read1(2**16):  # type: ignore[attr-defined]
                self._kept = (self._kept + part)[-KEPT_OUTPUT:]

    def text(self) -> str:
        """Return it, when the process has ended."""
        self._thread.join()
        lines = _printable(self._kept.decode(errors="replace")).strip().splitlines()
        return "\n".join(f"| {line}" for line in lines)  # no line of it looks like one of a job
