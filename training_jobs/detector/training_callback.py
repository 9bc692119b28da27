"""What a detector's training leaves after each epoch: its scores, the best weights, and what a retry goes on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from jobkit.bottle import Bottle
from jobkit.experiment import Experiment
from jobkit.progress import EpochLog, Progress
from jobkit.tracking import Run
from nightshift_common.detector import EpochEnd

logger = logging.getLogger("training_jobs.train_detector")
NOT_METRICS = ("epoch", "is_last")


class DetectorCallback:
    """Keeps the history of a training in the experiment's folder, and tells MLflow.

    An epoch is written in the order history, best weights, last weights: killed in between, a training goes on from the
    epoch before and writes that epoch again.
    """

    def __init__(self, bottle: Bottle, experiment: Experiment, epochs: int, tracking: Run | None) -> None:
        self.bottle, self.experiment, self.epochs, self.tracking = bottle, experiment, epochs, tracking
        self.rows: list[dict[str, Any]] = []
        if bottle.exists(experiment.history):
            self.rows = [json.loads(line) for line in bottle.read(experiment.history).splitlines()]
        self._progress: Progress | None = None
        self._epoch_log: EpochLog | None = None

    def go_on_after(self, epoch: int) -> None:
        """Forget what was written of later epochs than the one that the last weights are of."""
        self.rows = [row for row in self.rows if row["epoch"] <= epoch]

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done."""
        return bool(self.rows) and bool(self.rows[-1]["is_last"])

    def started(self, epoch: int, batches: int) -> None:
        """Count batches from here."""
        self._progress = Progress("train", batches * self.epochs, "batches", initial=batches * epoch)
        self._epoch_log = EpochLog(self.epochs, "validation F1", done=epoch)

    def stepped(self, loss: Callable[[], float]) -> None:
        """Count one."""
        if self._progress is not None:
            self._progress.advance(epoch=len(self.rows) + 1, loss=lambda: f"{loss():.4g}")

    def ended(self, epoch: EpochEnd) -> None:
        """Write the epoch down."""
        self.rows.append({"epoch": epoch.epoch, "is_last": epoch.is_last, **epoch.metrics})
        self.bottle.write(self.experiment.history, "".join(json.dumps(row) + "\n" for row in self.rows))
        if epoch.best is not None:
            self.bottle.put(self.experiment.best_weights, epoch.best)
        self.bottle.put(self.experiment.last_weights, epoch.last)
        if self.tracking is not None:
            self.tracking.metrics(dict(epoch.metrics), step=epoch.epoch)
        self._say_epoch()

    def _say_epoch(self) -> None:
        """Write the epoch's line to the log; the loss is the sum of its parts, the best of equals the last."""
        row, best = self.rows[-1], max(self.rows, key=lambda row: (row["val_f1"], row["epoch"]))
        loss = sum(value for name, value in row.items() if name.startswith("train_"))
        if self._epoch_log is not None:
            self._epoch_log.ended(row["epoch"] + 1, loss, row["val_f1"], best["val_f1"], best["epoch"] + 1)

    def row(self, epoch: int) -> dict[str, float]:
        """Return the scores of an epoch; none where it was not written down."""
        found = next((row for row in self.rows if row["epoch"] == epoch), {})
        return {name: value for name, value in found.items() if name not in NOT_METRICS}
