"""The job contract: a command line from a pydantic model in; log lines, an exit code and one `result.json` out.

    class Arguments(job.Arguments):
        '''What the job does: the text of `--help`.'''
        group: str = Field(description="…")

    def run(arguments: Arguments, context: job.Context) -> Result: ...

    if __name__ == "__main__":
        job.main(Arguments, run)

Airflow's launcher and a person use the same command line. What the launcher adds is in the environment:
`NIGHTSHIFT_JOB_DIR` (where `result.json` goes) and `NIGHTSHIFT_TASK_INSTANCE` (a JSON object with `dag_id`, `run_id`,
`task_id`, `map_index`, `try_number`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobkit import log, settings
from jobkit.bottle import Bottle, open_bottle
from jobkit.errors import ConfigurationError, JobError
from jobkit.files import write_atomic
from jobkit.tracking import Run, task_instance_of_environment
from nightshift_common.exit_codes import ExitCode
from nightshift_common.task_instance import TaskInstanceKey

logger = logging.getLogger("jobkit.job")


class Arguments(BaseSettings):
    """Base of every job's arguments: `--name value` options, parsed and described by pydantic.

    A field without a default is required. Lists and nested models are given as JSON. The environment is not read.
    An empty value of an option that may be left out counts as left out: that is what a template of nothing renders to.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_enforce_required=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the command line and the constructor only."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_values(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {name: value for name, value in values.items() if value != "" or name not in optional}


class StopHere(BaseModel):
    """Why the tasks that follow have nothing to do: a normal outcome, such as 'nothing new' or 'rejected'."""

    model_config = ConfigDict(extra="forbid")

    outcome: str
    reason: str


class Result(BaseModel):
    """Base of every job's result. Its fields are what the next tasks get; `stop_here` skips them all."""

    model_config = ConfigDict(extra="forbid")

    stop_here: StopHere | None = None


A = TypeVar("A", bound=Arguments)


class Context:
    """What a running job has at hand."""

    def __init__(self, directory: Path, task_instance: TaskInstanceKey | None) -> None:
        self.directory = directory
        self.task_instance = task_instance

    @cached_property
    def bottle(self) -> Bottle:
        """The data bottle that `NIGHTSHIFT_BOTTLE` names."""
        return open_bottle()

    @property
    def is_tracked(self) -> bool:
        """Whether the job writes to MLflow: always under Airflow; by hand where `MLFLOW_TRACKING_URI` is set."""
        return self.task_instance is not None or settings.optional(settings.MLFLOW_URI) is not None

    @cached_property
    def tracking(self) -> Run:
        """The job's MLflow run, a child of the DAG run's; made at first use, resumed by a retry."""
        return Run.start(self.task_instance)

    def close(self, succeeded: bool) -> None:
        """End the MLflow run, if one was started."""
        if "tracking" in self.__dict__:
            self.tracking.end(succeeded)


def main(arguments_type: type[A], run: Callable[[A, Context], Result]) -> None:
    """Run a job as a process: parse `sys.argv`, do the work, write `result.json`, exit with the contract's code."""
    # On a busy machine OpenMP threads that spin while they wait take the cores from the thread that they wait for:
    # measured, a training step beside two busy processes takes 31 ms instead of 590. torch reads it when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log.configure()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_run(arguments_type, run, sys.argv[1:]))


def _run(arguments_type: type[A], run: Callable[[A, Context], Result], argv: list[str]) -> int:
    started = time.monotonic()
    try:
        arguments = parse(arguments_type, argv)
        context = Context(_job_directory(), task_instance_of_environment())
        try:
            result = run(arguments, context)
        except BaseException:
            context.close(succeeded=False)
            raise
        context.close(succeeded=True)
        seconds = round(time.monotonic() - started, 3)
        path = context.directory / "result.json"
        write_atomic(path, json.dumps({"result": result.model_dump(mode="json"), "seconds": seconds}) + "\n")
    except JobError as error:
        logger.error(
            "%s: %s",
            type(error).__name__,
            error,
            extra={"event": "error", "exit_code": int(error.exit_code)},
            exc_info=error if error.exit_code == ExitCode.CRASHED else None,
        )
        return int(error.exit_code)
    except Exception:
        logger.exception("the job crashed", extra={"event": "error", "exit_code": int(ExitCode.CRASHED)})
        return int(ExitCode.CRASHED)
    logger.info("done in %.1f s: %s", seconds, path, extra={"event": "done", "result": result.model_dump(mode="json")})
    return int(ExitCode.DONE)


def parse(arguments_type: type[A], argv: list[str]) -> A:
    """Return the arguments of a command line.

    Raises:
        ConfigurationError: an option is unknown, missing or out of bounds; all errors are listed at once.
        SystemExit: `--help` was asked for.
    """
    source: CliSettingsSource[Any] = CliSettingsSource(arguments_type, cli_exit_on_error=False)
    try:
        return CliApp.run(arguments_type, cli_args=argv, cli_settings_source=source)
    except SettingsError as error:
        raise ConfigurationError(f"the command line is not valid: {error}; see --help") from error
    except ValidationError as error:
        problems = [_problem(item["loc"], item["msg"]) for item in error.errors()]
        raise ConfigurationError("the command line is not valid: " + "; ".join(problems) + "; see --help") from error


def _problem(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    return f"--{'.'.join(map(str, location))}: {text}" if location else text


def _job_directory() -> Path:
    given = os.environ.get("NIGHTSHIFT_JOB_DIR")
    path = Path(given) if given else Path(tempfile.mkdtemp(prefix="nightshift-job-"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that a killed job ends its MLflow run and leaves no temporary files."""
    raise SystemExit(128 + number)
