"""Errors that a job may end with, each mapped to an exit code of the contract.

| exit code | class             | what Airflow does                                   |
|-----------|-------------------|-----------------------------------------------------|
| 0         | none              | pushes the result, goes on                          |
| 2         | `ConfigurationError` | fails at once, no retry                          |
| 3         | `DataRefused`     | fails at once, no retry                             |
| 75        | `TryAgainLater`   | retries with back-off (75 is EX_TEMPFAIL, sysexits.h) |
| other     | anything else     | retries; training resumes from its checkpoint       |
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of a job."""

    DONE = 0
    CRASHED = 1
    CONFIGURATION = 2
    DATA_REFUSED = 3
    TRY_AGAIN_LATER = 75


class JobError(Exception):
    """An error that says what happened, where, and what is valid."""

    exit_code = ExitCode.CRASHED


class ConfigurationError(JobError):
    """The arguments or a configuration file are wrong; running again changes nothing."""

    exit_code = ExitCode.CONFIGURATION


class DataRefused(JobError):
    """The input data failed validation; running again on the same data changes nothing."""

    exit_code = ExitCode.DATA_REFUSED


class TryAgainLater(JobError):
    """Something outside the job failed for now: network, storage, database, server."""

    exit_code = ExitCode.TRY_AGAIN_LATER
