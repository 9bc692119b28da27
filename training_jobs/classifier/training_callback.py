"""What happens at the end of every epoch: scores to the tables and to MLflow, checkpoints to the experiment folder."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

from jobkit.bottle import Bottle
from jobkit.experiment import Experiment
from jobkit.progress import EpochLog, Progress
from jobkit.tracking import Run
from training_jobs.classifier.config import Config
from training_jobs.report_kit.pictures import sheet

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from training_jobs.classifier.lightning_module import ClassifierModule

logger = logging.getLogger("training_jobs.train_classifier")

BEST = {"macro_f1": ("val_macro_f1", 1), "accuracy": ("val_accuracy", 1), "loss": ("val_loss", -1)}
SCORE = {"macro_f1": "validation macro F1", "accuracy": "validation accuracy", "loss": "validation loss"}
Row = dict[str, float]
Watch = Callable[[Row], None]
"""Sees each epoch; what it raises ends the training."""


class TrainingCallback(Callback):
    """Keeps the history of a training. Its state travels in `last.ckpt`, so that a resumed training goes on with it.

    Of several processes that train together, the first one keeps it; the others give their part of the scores.
    """

    def __init__(
        self, config: Config, bottle: Bottle, experiment: Experiment, tracking: Run | None, watch: Watch | None = None
    ) -> None:
        self.config, self.bottle, self.experiment, self.tracking = config, bottle, experiment, tracking
        self.watch = watch
        self.rows: list[Row] = []
        self.best_weights: dict[str, Any] | None = None
        self.progress: Progress | None = None
        self.epoch_log: EpochLog | None = None
        self.pictures = 0
        self.epoch_started = self.step_ended = self.waited = self.trained = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.rows = state_dict["rows"]

    @property
    def best(self) -> Row:
        """The row of the best epoch; of equals the first."""
        name, sign = BEST[self.config.training.best_by]
        return max(self.rows, key=lambda row: sign * row[name])

    @property
    def is_stopped(self) -> bool:
        """Whether the last `training.patience` epochs were no better than one before them.

        It follows from the rows, which are in `last.ckpt`, so that a resumed training stops where it would have:
        Lightning's EarlyStopping counts an epoch after that file is written.
        """
        patience = self.config.training.patience
        return patience is not None and bool(self.rows) and len(self.rows) - 1 - self.rows.index(self.best) >= patience

    def on_train_start(self, trainer: Trainer, pl_module: ClassifierModule) -> None:  # type: ignore[override]
        """Start counting batches."""
        batches, done = int(trainer.num_training_batches), trainer.current_epoch
        if trainer.is_global_zero:
            total = batches * self.config.training.epochs
            self.progress = Progress("train", total, "batches", initial=batches * done)
            self.epoch_log = EpochLog(self.config.training.epochs, SCORE[self.config.training.best_by], done)
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.epoch_started = self.step_ended = time.monotonic()
        self.waited, self.pictures = 0.0, 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Count the time since the last step as waiting for pictures."""
        self.waited += time.monotonic() - self.step_ended

    def on_train_batch_end(self, trainer: Trainer, module: Any, _outputs: Any, batch: Any, _index: int) -> None:
        """Show progress, with the mean loss of the epoch so far."""
        self.pictures += len(batch[0]) * trainer.world_size
        if self.progress is not None:
            self.progress.advance(epoch=trainer.current_epoch + 1, loss=lambda: f"{module.running_loss():.4g}")
        self.step_ended = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: ClassifierModule) -> None:  # type: ignore[override]
        """Stop the training clock."""
        self.trained = time.monotonic() - self.epoch_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ClassifierModule) -> None:  # type: ignore[override]
        """Write the epoch down, keep its weights if they are the best, then save what a retry resumes from."""
        pl_module.check_loss()
        rates = {f"lr_{group['part']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        scores = pl_module.epoch_scores()
        if not trainer.is_global_zero:
            pl_module.shown.clear()
            self._stop_early(trainer)
            return
        speed = {
            "pictures_per_second": self.pictures / self.trained,
            "waiting_share": self.waited / self.trained,
            "epoch_seconds": time.monotonic() - self.epoch_started,
        }
        if torch.cuda.is_available():
            speed["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.rows.append({"epoch": trainer.current_epoch, **scores, **rates, **speed})
        if self.config.training.save_metrics:
            self._write_table()
            if self.tracking is not None:
                self.tracking.metrics({**scores, **rates, **speed}, step=trainer.current_epoch)
        for number, pictures in enumerate(pl_module.shown):
            self.bottle.write(f"{self.experiment.folder}/train_batches/{number}.jpg", sheet(pictures.numpy()))
        pl_module.shown.clear()
        self._save(trainer, pl_module)
        self._say_epoch()
        if self.watch is not None:
            self.watch(self.rows[-1])
        self._stop_early(trainer)
        self._start_epoch()

    def _say_epoch(self) -> None:
        """Write the epoch's line to the log: a kill after it costs nothing of the epoch."""
        name, _ = BEST[self.config.training.best_by]
        row, best = self.rows[-1], self.best
        if self.epoch_log is not None:
            epoch, best_epoch = int(row["epoch"]) + 1, int(best["epoch"]) + 1
            self.epoch_log.ended(epoch, row["train_loss"], row[name], best[name], best_epoch)

    def _stop_early(self, trainer: Trainer) -> None:
        """End the training in all processes if the first one, which has the history, says so."""
        if self.config.training.patience is None:
            return
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(
            trainer.is_global_zero and self.is_stopped, all=False
        )
        if self.is_stopped:
            logger.info("stopped after epoch %d: epoch %d is still the best", len(self.rows), self.best["epoch"] + 1)

    def _save(self, trainer: Trainer, module: ClassifierModule) -> None:
        """Save the best weights, then the state to resume from: a kill in between costs an epoch, not the best."""
        keep = self.config.training.save_checkpoints
        if self.best is self.rows[-1]:
            weights = {name: value.detach().cpu().clone() for name, value in module.judged.state_dict().items()}
            self.best_weights = {"state_dict": weights, **self.rows[-1]}
            if keep:
                self.put(self.best_weights, self.experiment.best_checkpoint)
        if keep:
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            self.put(state, self.experiment.last_checkpoint)

    def put(self, content: dict[str, Any], key: str) -> None:
        """Save `content` in the bottle."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.ckpt"
            torch.save(content, path)
            self.bottle.put(key, path)

    def _write_table(self) -> None:
        """Write `csv_logs/metrics.csv`: one row an epoch."""
        lines = [",".join(self.rows[0])] + [",".join(f"{value:.6g}" for value in row.values()) for row in self.rows]
        self.bottle.write(f"{self.experiment.folder}/csv_logs/metrics.csv", "\n".join(lines) + "\n")
