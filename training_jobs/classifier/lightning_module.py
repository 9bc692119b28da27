"""The classifier as Lightning trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from jobkit.classifier import Classifier, averaged
from jobkit.errors import ConfigurationError
from training_jobs.classifier import scores
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Batch
from training_jobs.classifier.mixing import mix
from training_jobs.classifier.optimization import build_optimizer, build_scheduler
from training_jobs.classifier.weights import average_of

SHOWN_BATCHES = 3  # batches of the first epoch that are kept to be looked at


class LossNotFinite(ConfigurationError):
    """The loss became NaN or infinite. Running again would do the same: everything random is seeded."""

    def __init__(self, loss: float, epoch: int, index: int, batch: Batch) -> None:
        super().__init__(
            f"the loss became {loss} in epoch {epoch + 1}, batch {index + 1}; "
            "try a lower learning rate, training.max_grad_norm, or precision 32"
        )
        self.epoch, self.index, self.batch = epoch, index, batch


class ClassifierModule(lightning.LightningModule):
    """Trains `model` on uint8 batches; keeps the sums that an epoch's scores come from.

    Of several processes that train together each keeps those of its part, and has the scores of them all.

    Its state_dict is the model's, under `model.`; what else it holds can be made again, but for the average of the
    weights, which the checkpoint has under `average`.
    """

    mean: Tensor
    std: Tensor
    class_weights: Tensor | None
    tally: Tensor
    sums: Tensor

    def __init__(self, config: Config, model: Classifier, class_weights: Tensor | None) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.classes = model.fc.out_features
        decay = config.training.ema_decay
        # In a list, so that it is no part of the state_dict.
        self._average: list[AveragedModel] = [average_of(model, decay)] if decay is not None else []
        if config.training.compile:
            model.compile()  # in place: wrapping it would put a prefix before every name in the state_dict
        how = config.preprocessing
        shape = (1, how.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(how.mean).mul(255).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(how.std).mul(255).view(shape), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.is_binary = config.criterion.type == "binary_cross_entropy"
        # Of each class the right answers, the answers, and the pictures.
        self.register_buffer("tally", torch.zeros(3, self.classes, dtype=torch.int64), persistent=False)
        # Loss and pictures of training, the same of validation, and the pictures of validation that are wholly right.
        self.register_buffer("sums", torch.zeros(5), persistent=False)
        self.shown: list[Tensor] = []
        self._previous: tuple[Tensor, int, Batch] | None = None

    @property
    def judged(self) -> Classifier:
        """The weights that are validated and kept: the average where there is one."""
        return self._average[0].module if self._average else self.model  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule stepped once a weight update."""
        training = self.config.training
        fused = training.precision == 32 or training.max_grad_norm is None
        optimizer = build_optimizer(self.config.optimizer, self.model, fused)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(self.config.scheduler, optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring the average to the device that trains."""
        for average in self._average:
            average.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the average."""
        if self._average:
            checkpoint["average"] = self._average[0].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the average back."""
        if self._average:
            self._average[0].load_state_dict(checkpoint["average"])

    def on_train_batch_start(self, _batch: Batch, index: int) -> None:
        """Before an epoch's first batch seed what layers draw (dropout, stochastic depth), by (seed, epoch, process).

        A resumed training then draws the same. Not in `on_train_epoch_start`: Lightning leaves that hook out in the
        first epoch after a checkpoint that was saved at an epoch's end.
        """
        if index > 0:
            return
        drawn_by = [self.config.seed, self.current_epoch, *([self.global_rank] if self.global_rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(drawn_by).generate_state(1)[0]))
        self.tally.zero_()
        self.sums.zero_()
        self._freeze(self.current_epoch < self.config.training.frozen_epochs)

    def _freeze(self, frozen: bool) -> None:
        """Stop or start the backbone's learning: that of its weights, and of the statistics of its norms.

        Its weights are in the optimizer all the time, which leaves those without gradients alone.
        """
        self.model.backbone.requires_grad_(not frozen)
        self.model.backbone.train(not frozen)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of one batch."""
        self.check_loss()
        pictures = _planes(batch[0])
        targets = self._vectors(batch[1]).to(pictures.dtype)
        rng = np.random.default_rng([self.config.seed, self.current_epoch, index, 1])
        pictures, targets = mix(self.config.training.mixing, pictures, targets, rng)
        if self.current_epoch == 0 and index < SHOWN_BATCHES:
            self.shown.append(pictures[:64].permute(0, 2, 3, 1).to("cpu", torch.uint8))
        loss = self.loss(self.logits(self.model, pictures), targets)
        self.sums[0] += loss.detach() * len(pictures)
        self.sums[1] += len(pictures)
        self._previous = loss.detach(), index, batch
        return loss

    def check_loss(self) -> None:
        """Raise `LossNotFinite` if the last step's loss was NaN or infinite.

        Looked at one step late: by then a GPU has it, so that looking does not make the next step wait.
        """
        if self._previous is not None and not bool(torch.isfinite(self._previous[0])):
            loss, index, batch = self._previous
            raise LossNotFinite(loss.item(), self.current_epoch, index, batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        for average in self._average:
            average.update_parameters(self.model)

    def on_validation_start(self) -> None:
        """Let all processes validate the same model: a batch norm that is not synchronized knows a part only."""
        if self._processes > 1:
            for statistics in (*self.model.buffers(), *self.judged.buffers()):
                distributed.broadcast(statistics, 0)

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Count one batch of validation, judged as it will be served: averaged over mirror images where they are."""
        pictures, truth = _planes(batch[0]), self._vectors(batch[1])
        flips = self.config.inference.flip_tta
        logits = self.logits(lambda normalized: averaged(self.judged, normalized, flips), pictures).float()
        targets = truth.to(logits.dtype)
        if self.is_binary:
            losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
            shown = (logits >= 0).long()  # a probability of 0.5
        else:
            losses = functional.cross_entropy(logits, targets, reduction="none")
            shown = functional.one_hot(logits.argmax(1), self.classes)
        self.sums[2] += losses.sum()
        self.sums[3] += len(truth)
        self.sums[4] += (shown == truth).all(1).sum()
        self.tally += torch.stack([(truth * shown).sum(0), shown.sum(0), truth.sum(0)])

    def _vectors(self, labels: Tensor) -> Tensor:
        """Return 1 for each class of a picture, int64 [N, K], of class indices [N] or of such vectors."""
        return labels.long() if labels.ndim == 2 else functional.one_hot(labels, self.classes)

    def logits(self, model: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        """Return the logits of float32 [N, C, H, W] pictures of values 0..255, which are normalized in place."""
        return model(pictures.sub_(self.mean).div_(self.std))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion for soft targets, float32 [N, K].

        With class weights it is the weighted mean over the pictures, `sum(w * loss) / sum(w)`, where a picture's
        weight is that of its classes in their shares: for hard labels exactly torch's weighted cross entropy. Of
        several processes each divides by the mean of all their sums of weights: the mean of their losses is that.

        The focal loss is `-sum(target * (1 - p)^gamma * log p)` over the classes: for hard labels that of Lin et al.
        (2017), whose alpha the class weights are; with gamma 0 the cross entropy.

        The binary cross entropy is the mean over pictures and classes; the class weights are torch's `pos_weight`, and
        smoothing brings both answers to a class nearer to each other.
        """
        smoothing = self.config.criterion.label_smoothing
        if self.is_binary:
            smoothed = targets * (1 - smoothing) + smoothing / 2
            logits = logits.float()
            return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.class_weights)
        if smoothing:
            targets = targets * (1 - smoothing) + smoothing / self.classes
        shares = functional.log_softmax(logits.float(), dim=1)
        losses = -(targets * shares)
        if self.config.criterion.type == "focal":
            losses = losses * (1 - shares.exp()).clamp_min(1e-7) ** self.config.criterion.focal_gamma
        if self.class_weights is None:
            return losses.sum(1).mean()
        weight = (targets * self.class_weights).sum()
        return (losses * self.class_weights).sum() / self._summed(weight).div(self._processes)

    def running_loss(self) -> float:
        """Return the mean loss of the epoch's training so far, of this process's pictures; waits for the device."""
        total, pictures = self.sums[:2].tolist()
        return float(total / max(1, pictures))

    def epoch_scores(self) -> dict[str, float]:
        """Return the scores of the epoch that has just ended, over all processes: each has to ask for them."""
        train_loss, trained, val_loss, validated, right = self._summed(self.sums).tolist()
        return {
            "train_loss": train_loss / max(1, trained),
            "val_loss": val_loss / max(1, validated),
            "val_accuracy": right / max(1, validated),
            "val_macro_f1": scores.macro_f1(self._summed(self.tally).cpu().numpy()),
        }

    @property
    def _processes(self) -> int:
        """How many train together."""
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    def _summed(self, values: Tensor) -> Tensor:
        """Return the sum of what all processes have."""
        if self._processes == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total


def _planes(pictures: Tensor) -> Tensor:
    """Return uint8 [N, H, W, C] as float32 [N, C, H, W], channels-last in memory."""
    return pictures.permute(0, 3, 1, 2).float()
