"""The classifier as Lightning trains it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from training_jobs.classifier import config as configuration
from training_jobs.classifier import scores
from training_jobs.classifier.data import Batch
from training_jobs.classifier.mixing import mix
from training_jobs.classifier.optimization import build_optimizer, build_scheduler


class ClassifierModule(lightning.LightningModule):
    """Trains `model` on uint8 batches; keeps the sums that an epoch's scores come from.

    Its state_dict is the model's, under `model.`; everything else that it holds can be made again.
    """

    def __init__(self, config: configuration.Config, model: Classifier, class_weights: Tensor | None) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.classes = model.fc.out_features
        how = config.preprocessing
        shape = (1, how.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(how.mean).mul(255).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(how.std).mul(255).view(shape), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("confusion", torch.zeros(self.classes, self.classes, dtype=torch.int64), persistent=False)
        self.register_buffer(
            "sums", torch.zeros(4, dtype=torch.float64), persistent=False
        )  # train loss, n, val loss, n

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule stepped once a weight update."""
        optimizer = build_optimizer(self.config.optimizer, self.model)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(self.config.scheduler, optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def logits(self, pictures: Tensor) -> Tensor:
        """Return the logits of float32 [N, C, H, W] pictures of values 0..255."""
        logits: Tensor = self.model(pictures.sub(self.mean).div_(self.std))
        return logits

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion for soft targets, float32 [N, K].

        With class weights it is the weighted mean over the pictures, `sum(w * loss) / sum(w)`, where a picture's
        weight is that of its classes in their shares: for hard labels exactly torch's weighted cross entropy.
        """
        smoothing = self.config.criterion.label_smoothing
        if smoothing:
            targets = targets * (1 - smoothing) + smoothing / self.classes
        losses = -(targets * functional.log_softmax(logits.float(), dim=1))
        if self.class_weights is None:
            return losses.sum(1).mean()
        return (losses * self.class_weights).sum() / (targets * self.class_weights).sum()

    def on_train_epoch_start(self) -> None:
        """Seed what the layers draw (dropout, stochastic depth) by (seed, epoch), so that a resumed run draws the same."""
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.current_epoch]).generate_state(1)[0]))
        self.confusion.zero_()
        self.sums.zero_()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of one batch."""
        pictures = _planes(batch[0])
        targets = functional.one_hot(batch[1], self.classes).to(pictures.dtype)
        rng = np.random.default_rng([self.config.seed, self.current_epoch, index, 1])
        pictures, targets = mix(self.config.training.mixing, pictures, targets, rng)
        loss = self.loss(self.logits(pictures), targets)
        if not torch.isfinite(loss):
            raise ConfigurationError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, batch {index}; "
                "try a lower learning rate, training.max_grad_norm, or precision 32"
            )
        self.sums[0] += loss.detach() * len(pictures)
        self.sums[1] += len(pictures)
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count one batch of validation."""
        pictures, labels = _planes(batch[0]), batch[1]
        logits = self.logits(pictures).float()
        self.sums[2] += functional.cross_entropy(logits, labels, reduction="sum")
        self.sums[3] += len(labels)
        cells = labels * self.classes + logits.argmax(1)
        self.confusion += torch.bincount(cells, minlength=self.classes**2).view_as(self.confusion)

    def epoch_scores(self) -> dict[str, float]:
        """Return the scores of the epoch that has just ended."""
        train_loss, trained, val_loss, validated = self.sums.tolist()
        confusion = self.confusion.cpu().numpy()
        return {
            "train_loss": train_loss / max(1, trained), "val_loss": val_loss / max(1, validated),
            "val_accuracy": scores.accuracy(confusion), "val_macro_f1": scores.macro_f1(confusion),
        }  # fmt: skip


def _planes(pictures: Tensor) -> Tensor:
    """Return uint8 [N, H, W, C] as float32 [N, C, H, W], which lies channels-last in memory without a copy of its own."""
    return pictures.permute(0, 3, 1, 2).float()
