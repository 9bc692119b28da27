"""How a job's task may fail: one exception for each kind of exit code in the contract."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from nightshift.contract import CONFIGURATION, DATA_REFUSED, TRY_AGAIN_LATER, Ended


class JobMisconfigured(AirflowFailException):
    """The configuration or the arguments are wrong; another try would change nothing."""


class JobRefusedData(AirflowFailException):
    """The input data failed validation; another try on the same data would change nothing."""


class JobUnavailable(AirflowException):
    """Something outside the job failed for now; another try may find it back."""


class JobFailed(AirflowException):
    """A job crashed or was killed; another try starts it again, and training goes on from its checkpoint."""


WHAT_TO_DO: dict[type[AirflowException], str] = {
    JobMisconfigured: "It is not tried again: put right what is named above, then clear the task.",
    JobRefusedData: "It is not tried again: the data has to change, or the limit that it broke; then clear the task.",
    JobUnavailable: "Nothing is lost. After the last try: look at the server that is named above, then clear the task.",
    JobFailed: "The next try goes on where this one stopped. A crash that comes again is a bug: see the traceback.",
}


def failure(ended: Ended, message: str) -> AirflowException:
    """Return the exception that stands for how a job ended."""
    kinds: dict[int | None, type[AirflowException]] = {
        CONFIGURATION: JobMisconfigured,
        DATA_REFUSED: JobRefusedData,
        TRY_AGAIN_LATER: JobUnavailable,
    }
    kind = kinds.get(ended.exit_code, JobFailed)
    return kind(f"{message}\n{WHAT_TO_DO[kind]}")
