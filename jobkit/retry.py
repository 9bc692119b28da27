"""Asking again: what a job asks of a server outlasts short failures of the other side."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from jobkit.errors import TransientError

logger = logging.getLogger(__name__)

ATTEMPTS = 4
LONGEST_WAIT = 8.0  # seconds between two attempts; Airflow's retry comes after minutes

P = ParamSpec("P")
T = TypeVar("T")


def retried(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `call` returns; call it again after a `TransientError`. It must change nothing, or the same twice.

    Raises:
        TransientError: it failed `ATTEMPTS` times.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(ATTEMPTS),
        reraise=True,
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT),
        before_sleep=before_sleep_log(logger, logging.WARNING),
    )
    try:
        return retrying(call, *args, **kwargs)
    except TransientError as error:
        raise TransientError(f"{error}, {ATTEMPTS} times") from error
