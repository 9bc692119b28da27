"""How a task may fail: one exception for each kind of exit code; `kind` is a key of `REMEDIES`.

Airflow fails a task at once for an `AirflowFailException`, and tries it again for any other.
"""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from nightshift.failures.remedies import REMEDIES
from nightshift.launchers.base import Ended
from nightshift_common.exit_codes import ExitCode


class JobConfigurationError(AirflowFailException):
    """The configuration or the arguments are wrong; another try would change nothing."""

    kind = "configuration"


class JobDataValidationError(AirflowFailException):
    """The input data failed validation; another try on the same data would change nothing."""

    kind = "data_refused"


class JobTransientError(AirflowException):
    """Something outside the job failed for now; another try may find it back."""

    kind = "unavailable"


class JobFailed(AirflowException):
    """A job crashed or was killed; another try starts it again, and training goes on from its checkpoint."""

    kind = "crashed"


class RunFailed(AirflowFailException):
    """An earlier task failed; the last one repeats that for the run's state, and is no failure of its own."""

    kind = "follows"


def failure(ended: Ended, message: str) -> AirflowException:
    """Return the exception that stands for how a job ended; its text goes on with what to do."""
    kinds: dict[int | None, type[JobConfigurationError | JobDataValidationError | JobTransientError | JobFailed]] = {
        ExitCode.CONFIGURATION: JobConfigurationError,
        ExitCode.DATA_VALIDATION: JobDataValidationError,
        ExitCode.TRANSIENT: JobTransientError,
    }
    exception = kinds.get(ended.exit_code, JobFailed)
    return exception(f"{message}\n{REMEDIES[exception.kind].text}")
