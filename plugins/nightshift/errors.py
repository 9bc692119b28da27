"""How a task may fail: one exception for each kind of exit code in the contract; `kind` is a key of `REMEDIES`."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from nightshift.contract import CONFIGURATION, DATA_REFUSED, TRY_AGAIN_LATER, Ended
from nightshift.remedies import REMEDIES


class JobMisconfigured(AirflowFailException):
    """The configuration or the arguments are wrong; another try would change nothing."""

    kind = "configuration"


class JobRefusedData(AirflowFailException):
    """The input data failed validation; another try on the same data would change nothing."""

    kind = "data_refused"


class JobUnavailable(AirflowException):
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
    kinds: dict[int | None, type[JobMisconfigured | JobRefusedData | JobUnavailable | JobFailed]] = {
        CONFIGURATION: JobMisconfigured,
        DATA_REFUSED: JobRefusedData,
        TRY_AGAIN_LATER: JobUnavailable,
    }
    exception = kinds.get(ended.exit_code, JobFailed)
    return exception(f"{message}\n{REMEDIES[exception.kind].text}")
