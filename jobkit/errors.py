"""Errors that a job may end with; each has its exit code of the contract (`nightshift_common/exit_codes.py`)."""

from __future__ import annotations

from nightshift_common.exit_codes import ExitCode


class JobError(Exception):
    """An error that says what happened, where, and what is valid."""

    exit_code = ExitCode.CRASHED


class ConfigurationError(JobError):
    """The arguments or a configuration file are wrong; running again changes nothing."""

    exit_code = ExitCode.CONFIGURATION


class DataValidationError(JobError):
    """The input data failed validation; running again on the same data changes nothing."""

    exit_code = ExitCode.DATA_VALIDATION


class TransientError(JobError):
    """Something outside the job failed for now: network, storage, database, server."""

    exit_code = ExitCode.TRANSIENT
