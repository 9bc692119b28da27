"""What is in production, for those who ask on behalf of clients: from PostgreSQL, or as it was last known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.model_storage.errors import Unavailable
from services.model_storage.production.history import History, Promotion

PAUSE_SECONDS = 2.0  # after a failure PostgreSQL is not asked for so long: an attempt may take five


@dataclass(frozen=True)
class Known:
    """What is in production of a model, and its canary; None: nothing."""

    champion: Promotion | None
    canary: Promotion | None
    stale_seconds: float | None = None
    """how long ago that was known, where PostgreSQL does not answer"""


class LastKnown:
    """Remembers what is in production; safe to use from several threads."""

    def __init__(self, history: History, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._history, self._seconds, self._now = history, seconds, now
        self._found: dict[str, tuple[float, Known]] = {}
        self._failed_at = -PAUSE_SECONDS

    def refresh(self) -> None:
        """Learn what is in production of all models, so that it is known of those that nobody has asked for yet.

        Raises:
            Unavailable: PostgreSQL does not answer.
        """
        at = self._now()
        champions, canaries = self._history.champions(), self._history.canaries()
        gone = dict.fromkeys(self._found, (at, Known(None, None)))
        self._found = gone | {model: (at, Known(row, canaries.get(model))) for model, row in champions.items()}

    def of(self, model: str) -> Known:
        """Return what is in production.

        Raises:
            Unavailable: PostgreSQL does not answer, and what was known is too old, or nothing was.
        """
        at = self._now()
        cause: Unavailable | None = None
        if at - self._failed_at >= PAUSE_SECONDS:
            try:
                known = Known(self._history.champion(model), self._history.canary(model))
            except Unavailable as error:
                self._failed_at, cause = at, error
            else:
                if known.champion is not None or model in self._found:  # a stranger's names are not remembered
                    self._found[model] = (at, known)
                return known
        since, last = self._found.get(model, (at, None))
        if last is None or at - since > self._seconds:
            raise cause or Unavailable("PostgreSQL does not answer, and what was in production is not known any more")
        return Known(last.champion, last.canary, round(at - since, 1))
