"""Progress of long work as log lines of its own, with an estimate of the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger("jobkit.progress")
INTERVAL_SECONDS = 30.0  # a night's log is read by people


def duration(seconds: float) -> str:
    """Return `seconds` for a person: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Counts work done and writes a line at most every `interval` seconds, and one at the end.

    A field that is a function is asked only when a line is written: what it looks at may be dear, as a value on a GPU.
    The estimate assumes that the rest goes at the mean speed so far: `eta = elapsed / done * (total - done)`.
    Work that an earlier attempt has done already is given as `initial` and does not count toward the speed.
    """

    def __init__(
        self, what: str, total: int, unit: str = "items", interval: float = INTERVAL_SECONDS, initial: int = 0
    ) -> None:
        self.what, self.total, self.unit, self.interval = what, total, unit, interval
        self.initial = self.done = initial
        self.started = time.monotonic()
        self.last_line = self.started

    def advance(self, count: int = 1, **fields: object) -> None:
        """Count `count` more units done; `fields` (say `loss=0.1`) are shown on the line."""
        self.done += count
        now = time.monotonic()
        if now - self.last_line >= self.interval or self.done >= self.total:
            self.last_line = now
            shown = {name: value() if callable(value) else value for name, value in fields.items()}
            self._write(now - self.started, shown)

    def _write(self, elapsed: float, fields: dict[str, object]) -> None:
        worked = self.done - self.initial
        eta = elapsed / worked * (self.total - self.done) if worked > 0 else 0.0
        shown = "".join(f" · {name} {value}" for name, value in fields.items())
        state = f"{duration(eta)} left" if self.done < self.total else f"took {duration(elapsed)}"
        logger.info(
            "%s: %d/%d %s%s · %s",
            self.what,
            self.done,
            self.total,
            self.unit,
            shown,
            state,
            extra={
                "event": "progress",
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
                "eta_seconds": round(eta, 1),
                **{f"progress_{k}": v for k, v in fields.items()},
            },
        )


class EpochLog:
    """Writes a line an epoch: the loss, the score by which epochs are judged, the best so far, the time left.

    Args:
        epochs: how many the training has.
        score: the score's name, as a person reads it.
        done: epochs that an earlier attempt has done, which do not count toward the speed.
    """

    def __init__(self, epochs: int, score: str, done: int = 0) -> None:
        self.epochs, self.score, self.done = epochs, score, done
        self.started = time.monotonic()

    def ended(self, epoch: int, loss: float, value: float, best: float, best_epoch: int) -> None:
        """Write the line of an epoch, counted from 1; `loss` is that of training."""
        elapsed = time.monotonic() - self.started
        eta = elapsed / max(1, epoch - self.done) * (self.epochs - epoch)
        is_best = best_epoch == epoch
        logger.info(
            "epoch %d of %d: loss %.4g, %s %.4f (%s), %s",
            epoch,
            self.epochs,
            loss,
            self.score,
            value,
            "the best so far" if is_best else f"best {best:.4f} at epoch {best_epoch}",
            f"{duration(eta)} left" if epoch < self.epochs else f"took {duration(elapsed)}",
            extra={
                "event": "epoch",
                "epoch": epoch,
                "epochs": self.epochs,
                "loss": loss,
                "score": self.score,
                "value": value,
                "best": best,
                "best_epoch": best_epoch,
                "eta_seconds": round(eta, 1),
            },
        )


def track(items: Iterable[T], what: str, total: int, unit: str = "items") -> Iterator[T]:
    """Yield `items`, reporting progress after each one was handled."""
    progress = Progress(what, total, unit)
    for item in items:
        yield item
        progress.advance()
