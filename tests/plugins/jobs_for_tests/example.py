"""A job that ends in whatever way it is told to, and leaves a mark each time it runs."""

import ctypes
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError, TransientError

logger = logging.getLogger(__name__)
ERRORS = {"configuration": ConfigurationError, "data": DataValidationError, "later": TransientError}
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(120)"
)


class Arguments(job.Arguments):
    """End in some way."""

    how: str = Field("succeed", description="how to end")
    marks: Path = Field(description="folder where each run leaves its process's number, and where to wait for 'go'")
    text: str | None = Field(None, description="given back")
    epochs: int = Field(1, description="given back")
    force: bool = Field(False, description="given back")
    tracking: str | None = Field(None, description="address to announce as the run's")


class Result(job.Result):
    """What the job was given."""

    text: str | None
    epochs: int
    force: bool
    password_sha256: str
    triggered_by: str | None
    runs: int


def run(arguments: Arguments, _context: job.Context) -> Result:
    """Do what `how` says."""
    ran = arguments.marks / "ran"
    with ran.open("a") as handle:
        handle.write(f"{os.getpid()}\n")
    if arguments.tracking:
        logger.info("tracked", extra={"event": "tracking", "run_id": "1", "url": arguments.tracking})
    if arguments.how in ERRORS:
        raise ERRORS[arguments.how](f"a made-up reason for {arguments.how}")
    if action := ACTIONS.get(arguments.how):
        action(arguments)
    result = Result(
        text=arguments.text,
        epochs=arguments.epochs,
        force=arguments.force,
        password_sha256=hashlib.sha256(os.environ.get("NIGHTSHIFT_COLLECT_PASSWORD", "").encode()).hexdigest(),
        triggered_by=os.environ.get("NIGHTSHIFT_TRIGGERED_BY"),
        runs=len(ran.read_text().splitlines()),
    )
    if arguments.how == "stop_here":
        result.stop_here = job.StopHere(outcome="nothing_new", reason="nothing is new here")
    return result


def wait(arguments: Arguments) -> None:
    """Wait until somebody says go."""
    while not (arguments.marks / "go").exists():
        time.sleep(0.05)


def breed(arguments: Arguments) -> None:
    """Start a child, and by it a grandchild in a session of its own that ignores SIGTERM; then wait."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", child, STUBBORN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        logger.info("all of them are up")
        time.sleep(120)


def wait_for_second_run(arguments: Arguments) -> None:
    """Fail for now in the first run."""
    if len((arguments.marks / "ran").read_text().splitlines()) == 1:
        raise TransientError("the server is away")


def tell_secret(_arguments: Arguments) -> None:
    """Fail with a message that holds a secret."""
    raise ConfigurationError(f"{os.environ['NIGHTSHIFT_COLLECT_PASSWORD']} is not accepted")


def fail_until_mended(arguments: Arguments) -> None:
    """Fail until somebody says go."""
    if not (arguments.marks / "go").exists():
        raise ConfigurationError("not mended yet")


ACTIONS: dict[str, Any] = {
    "tell": lambda _: logger.info("the password is %s", os.environ["NIGHTSHIFT_COLLECT_PASSWORD"]),
    "wait": wait,
    "breed": breed,
    "crash": lambda _: {}["no such key"],
    "segfault": lambda _: ctypes.string_at(0),
    "out_of_memory": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "no_result": lambda _: os._exit(0),
    "tell_secret": tell_secret,
    "mended": fail_until_mended,
    "later_once": wait_for_second_run,
}


if __name__ == "__main__":
    job.main(Arguments, run)
