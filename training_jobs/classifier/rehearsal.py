"""What can be said before a training: does it run, what will it take, and which learning rate suits it."""

from __future__ import annotations

import logging
import math
import resource
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import LambdaLR

from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError
from jobkit.progress import duration
from training_jobs.classifier import data, gpu_memory, weights
from training_jobs.classifier.config import Config, overridden
from training_jobs.classifier.data import ALONE, Batch, BatchSampler, loaders
from training_jobs.classifier.estimate import Estimate
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.lightning_module import ClassifierModule
from training_jobs.classifier.optimization import build_optimizer
from training_jobs.classifier.training import NOISE, check_shares, class_weights, make_trainer, sound_gradients

logger = logging.getLogger("training_jobs.train_classifier")
UPDATES = 2  # of the weights; the first one warms up, the second one is timed
LOWEST, HIGHEST, RATES = 1e-7, 1.0, 100  # of the range test
SMOOTHING = 0.98  # of the losses, and the two below as in fast.ai's and Lightning's learning-rate finders
DIVERGED = 4.0  # times the lowest smoothed loss
SKIPPED = 10  # first rates, which are too low to tell
T = TypeVar("T")


class Stopwatch(Callback):
    """Takes the time of each batch, with the wait for it."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []
        self.last = time.monotonic()

    def on_train_start(self, *_: Any) -> None:
        """Start."""
        self.last = time.monotonic()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time since the batch before."""
        self._note(self.training)

    def on_validation_start(self, *_: Any) -> None:
        """Leave out what lies between."""
        self.last = time.monotonic()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Note the time since the batch before."""
        self._note(self.validation)

    def _note(self, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        times.append(now - self.last)
        self.last = now


def check(config: Config, examples: Examples, bottle: Bottle, gpus: int = 1) -> Estimate:
    """Build the model, train and validate a few batches of the set, and return what all of it will take.

    Nothing is written. Of several GPUs that train together one is tried, with its share of the batch.

    Raises:
        ConfigurationError: the training would not start, its loss is not finite, or a batch does not fit.
        DataValidationError: a picture that was looked at cannot be decoded.
    """
    if gpus > 1:
        check_shares(config, examples, gpus)
    try:
        return _measured(config, examples, bottle, gpus)
    except torch.OutOfMemoryError as error:
        model = weights.build(config, len(examples.labels), bottle)
        return _measured(gpu_memory.smaller_batch(config, model, error, gpus), examples, bottle, gpus)


def _measured(config: Config, examples: Examples, bottle: Bottle, gpus: int) -> Estimate:
    gpu = torch.cuda.is_available()
    whole, accumulated = config.dataset.data_loaders.train_batch_size, config.training.accumulate_grad_batches
    share = overridden(config, epochs=1, batch=-(-whole // gpus))
    few = replace(
        examples,
        train=_spread(examples.train, share.dataset.data_loaders.train_batch_size * accumulated * UPDATES),
        val=_spread(examples.val, config.dataset.data_loaders.val_batch_size * UPDATES),
    )
    torch.manual_seed(config.seed)
    model = weights.build(config, len(examples.labels), bottle)
    module = ClassifierModule(share, model, class_weights(config, examples))
    started, watch = time.monotonic(), Stopwatch()
    train, val = loaders(share, few.train, few.val, 0, gpu)
    decoded = (time.monotonic() - started) / (len(few.train) + len(few.val))  # seconds a picture
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with _quiet(), sound_gradients(config.training.precision, gpu):
        make_trainer(share, watch, gpu, ALONE, epochs=1).fit(module, train, val)
    module.check_loss()
    step, val_step = _usual(watch.training), _usual(watch.validation)
    how, pictures = config.preprocessing, len(examples.train) + len(examples.val)
    cached = len(examples.train) * how.height * how.width * how.channels
    once = decoded * pictures
    if cached > data.CACHE_BYTES:  # then each epoch decodes them anew, beside the steps where there are workers
        once, cached = 0.0, 0
        loading = decoded * share.dataset.data_loaders.train_batch_size
        step = step + loading if config.dataset.data_loaders.num_workers == 0 else max(step, loading)
    batches = len(BatchSampler(len(examples.train), whole, config.seed, accumulated))
    epoch = batches * step + math.ceil(len(examples.val) / gpus / config.dataset.data_loaders.val_batch_size) * val_step
    if gpu:
        memory = torch.cuda.max_memory_reserved()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + cached
    found = Estimate(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_pictures=len(examples.train), val_pictures=len(examples.val),
        updates_per_epoch=-(-batches // accumulated), step_seconds=step, val_step_seconds=val_step,
        epoch_seconds=epoch, total_seconds=once + epoch * config.training.epochs,
        memory_gib=memory / 2**30, device=torch.cuda.get_device_name() if gpu else f"{data.cores()} CPU cores",
    )  # fmt: skip
    logger.info(
        "it trains: %.1f million parameters, %d pictures to train on and %d to validate; about %s an epoch, %s for all "
        "%d, %.1f GiB of memory, on %s",
        found.parameters / 1e6, found.train_pictures, found.val_pictures, duration(epoch),
        duration(found.total_seconds), config.training.epochs, found.memory_gib, found.device,
        extra={"event": "estimate", **found.model_dump(exclude={"stop_here"})},
    )  # fmt: skip
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOISE)
        yield


def _spread(items: Sequence[T], wanted: int) -> list[T]:
    """Return at most `wanted` of `items`, from all over them."""
    if len(items) <= wanted:
        return list(items)
    return [items[index * len(items) // wanted] for index in range(wanted)]


def _usual(times: Sequence[float]) -> float:
    return statistics.median(times[1:] or times)


class RangeTest(ClassifierModule):
    """Trains with a rate that grows from `LOWEST` to `HIGHEST`; all groups keep their proportion (Smith 2017)."""

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule of the rates."""
        training = self.config.training
        fused = training.precision == 32 or training.max_grad_norm is None
        optimizer = build_optimizer(self.config.optimizer, self.model, fused)
        top = optimizer.param_groups[-1]["lr"]
        schedule = LambdaLR(optimizer, lambda step: rate_of(step) / top)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def check_loss(self) -> None:
        """Go on: that a rate is too high is what is looked for."""


def rate_of(step: int) -> float:
    """Return the rate of the classification layer in `step`."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (RATES - 1)))


class Losses(Callback):
    """Notes the loss at each rate, and ends the test when it diverges."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._average = 0.0

    def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, _batch: Batch, _index: int) -> None:
        """Note the loss of a batch that ends an update."""
        if trainer.global_step <= len(self.losses):
            return
        loss = float(outputs["loss"])
        if math.isfinite(loss):
            self.losses.append(loss)
            self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
            self.smoothed.append(self._average / (1 - SMOOTHING ** len(self.losses)))
        if not math.isfinite(loss) or self.smoothed[-1] > DIVERGED * min(self.smoothed):
            trainer.should_stop = True


@dataclass(frozen=True)
class Rates:
    """What the range test saw."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    """Where the smoothed loss falls most steeply over the logarithm of the rate."""


def find_rate(config: Config, examples: Examples, bottle: Bottle) -> Rates:
    """Try `RATES` rates, one weight update each, on one GPU or the CPU; nothing is written.

    Raises:
        ConfigurationError: at no rate the loss falls.
    """
    gpu, accumulated = torch.cuda.is_available(), config.training.accumulate_grad_batches
    size, batch = len(examples.train), config.dataset.data_loaders.train_batch_size
    batches = len(BatchSampler(size, batch, config.seed, accumulated))
    epochs = -(-RATES // max(1, -(-batches // accumulated)))
    chosen = overridden(config, epochs=epochs)
    chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"frozen_epochs": 0})})
    torch.manual_seed(config.seed)
    model = weights.build(chosen, len(examples.labels), bottle)
    module, seen = RangeTest(chosen, model, class_weights(chosen, examples)), Losses()
    train, _ = loaders(chosen, examples.train, examples.val[:1], 0, gpu)
    with _quiet(), sound_gradients(chosen.training.precision, gpu):
        make_trainer(chosen, seen, gpu, ALONE, epochs, max_steps=RATES, limit_val_batches=0).fit(module, train)
    rates = [rate_of(step) for step in range(len(seen.losses))]
    return Rates(rates, seen.losses, seen.smoothed, suggestion(rates, seen.smoothed))


def suggestion(rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """Return the rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    Raises:
        ConfigurationError: it falls nowhere.
    """
    if len(rates) > SKIPPED + 2:
        slopes = np.gradient(np.asarray(smoothed), np.log(rates))[SKIPPED:-1]
        if slopes.min() < -1e-6:
            return float(rates[SKIPPED + int(slopes.argmin())])
    raise ConfigurationError(
        f"of {len(rates)} learning rates from {LOWEST:g} none makes the loss fall: look at the pictures and labels"
    )
