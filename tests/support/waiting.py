"""Waiting for a condition, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from nightshift_common.patience import patience

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Return the first true value of `condition`; fail and say `what` was waited for after `seconds`.

    `seconds` are those of a quiet machine; a busy one gets more (`nightshift_common/patience.py`).
    """
    started = time.monotonic()
    while True:
        if value := condition():
            return value
        waited = time.monotonic() - started
        assert waited < patience(seconds), f"waited {waited:.0f} s for {what}"
        time.sleep(0.03)
