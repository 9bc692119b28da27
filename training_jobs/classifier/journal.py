"""What happens at the end of every epoch: scores to the tables and to MLflow, checkpoints to the experiment folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from jobkit.bottle import Bottle
from jobkit.paths import ExperimentPaths
from jobkit.progress import Progress
from jobkit.tracking import Run
from training_jobs.classifier.config import Config
from training_jobs.classifier.experiment import write_table
from training_jobs.classifier.module import ClassifierModule

BEST = {"macro_f1": ("val_macro_f1", 1), "accuracy": ("val_accuracy", 1), "loss": ("val_loss", -1)}


class Journal(Callback):
    """Keeps the history of a training. Its state travels in `last.ckpt`, so that a resumed training goes on with it."""

    def __init__(self, config: Config, bottle: Bottle, experiment: ExperimentPaths, tracking: Run | None) -> None:
        self.config, self.bottle, self.experiment, self.tracking = config, bottle, experiment, tracking
        self.rows: list[dict[str, float]] = []
        self.progress: Progress | None = None
        self.epoch_started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.rows = state_dict["rows"]

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch; of equals the first."""
        name, sign = BEST[self.config.training.best_by]
        return max(self.rows, key=lambda row: sign * row[name])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start counting batches."""
        batches = int(trainer.num_training_batches)
        self.progress = Progress("train", batches * self.config.training.epochs, "batches",
                                 initial=batches * trainer.current_epoch)  # fmt: skip

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the epoch's clock."""
        self.epoch_started = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Show progress; the scores are those of the epoch before, which cost no wait for the device."""
        if self.progress is not None:
            shown = {"val_macro_f1": f"{self.rows[-1]['val_macro_f1']:.4f}"} if self.rows else {}
            self.progress.advance(epoch=trainer.current_epoch + 1, **shown)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the epoch down, keep its weights if they are the best, then save what a retry resumes from."""
        assert isinstance(pl_module, ClassifierModule)
        scores = pl_module.epoch_scores()
        seconds = time.monotonic() - self.epoch_started
        rates = {f"lr_{index}": group["lr"] for index, group in enumerate(trainer.optimizers[0].param_groups)}
        self.rows.append({"epoch": trainer.current_epoch, **scores, "lr": rates["lr_0"], "seconds": seconds})
        if self.config.training.save_metrics:
            write_table(self.bottle, self.experiment, self.rows)
            if self.tracking is not None:
                self.tracking.metrics({**scores, **rates, "epoch_seconds": seconds}, step=trainer.current_epoch)
        if self.best is self.rows[-1]:
            weights = {name: value.cpu() for name, value in pl_module.model.state_dict().items()}
            self._put({"state_dict": weights, "epoch": trainer.current_epoch, **scores}, self.experiment.best_checkpoint)
        if self.config.training.save_checkpoints:
            self._put(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), self.experiment.last_checkpoint)

    def _put(self, content: dict[str, Any], key: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.ckpt"
            torch.save(content, path)
            self.bottle.put(key, path)
