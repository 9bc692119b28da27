"""The job contract as Airflow sees it: a job spec goes out; log lines, an exit code and `result.json` come back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from nightshift_common.task_instance import TaskInstanceKey


@dataclass(frozen=True)
class JobSpec:
    """What to run. `secrets` go to the job's environment and nowhere else: no file, no log, no rendered field.

    `gpus` is how many it gets where there are any; the pool's slots are as many.
    """

    module: str
    options: list[str]
    runtime: str
    task_instance: TaskInstanceKey
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    gpus: int = 1


class Status(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Ended:
    """How a job ended; `exit_code` is None where the whole job was killed before anything could record it.

    `reason` is what the launcher knows beyond the code.
    """

    exit_code: int | None
    reason: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether it ended with 0."""
        return self.exit_code == 0

    def describe(self) -> str:
        """Return the end in words."""
        if self.reason:
            return self.reason if self.exit_code is None else f"exit code {self.exit_code}: {self.reason}"
        if self.exit_code is None:
            return "it was killed, and everything that it had started with it"
        if self.exit_code > 128:
            number = self.exit_code - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            hint = ": often the kernel's out-of-memory killer" if name == "SIGKILL" else ""
            return f"it was killed by {name}{hint}"
        return f"exit code {self.exit_code}"


class Launcher(Protocol):
    """Runs jobs somewhere and finds them again. A job's id is a string that another worker understands.

    What each method has to do in all cases is in tests/plugins/launcher_conformance.py, which every launcher passes.
    """

    def start(self, spec: JobSpec) -> str:
        """Start a job apart from this process; return its id."""

    def find(self, task_instance: TaskInstanceKey, since_try: int = 1) -> str | None:
        """Return the id of the newest job of this task instance that runs or that a try from `since_try` on started."""

    def status(self, job_id: str) -> Status:
        """Return where the job is; a job that cannot be found has failed."""

    def ended(self, job_id: str) -> Ended:
        """Return how a job that is not running ended."""

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yield the job's lines from its beginning until it ends, each without its line end."""

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return the content of `result.json`, or None where there is none."""

    def stop(self, job_id: str) -> None:
        """End the job and all that it started, within five seconds; nothing happens if it has ended."""


def command_options(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments: None and "" are left out, True and False become flags, lists and dicts JSON."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is None or value == "":
            continue
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
            arguments += [f"--{name}", text]
    return arguments
