"""A GPU that is too small for the batch: which batch would fit, and the same training with it."""

from __future__ import annotations

import gc
import logging

import torch
from torch.nn import functional

from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from training_jobs.classifier.config import Config, overridden

logger = logging.getLogger("training_jobs.train_classifier")


def smaller_batch(config: Config, model: Classifier, error: torch.OutOfMemoryError, gpus: int = 1) -> Config:
    """Return the configuration with a batch that fits and as many more accumulated batches.

    `gpus` share a batch: what fits is asked of one of them.

    Raises:
        ConfigurationError: training.out_of_memory is `stop`, or not even one picture fits; says which batch would fit.
    """
    batch, accumulated = config.dataset.data_loaders.train_batch_size, config.training.accumulate_grad_batches
    share = largest_that_fits(overridden(config, batch=-(-batch // gpus)), model)
    if share is None:
        raise ConfigurationError(
            f"out of memory with a batch of {batch}, and one picture of {config.dataset.image_size} pixels does not "
            f"fit either: a smaller dataset.image_size or model.backbone_name is needed ({_first_line(error)})"
        ) from error
    fitting = share * gpus
    factor = -(-batch // fitting)
    if config.training.out_of_memory == "stop":
        raise ConfigurationError(
            f"out of memory with a batch of {batch}; {fitting} fits. dataset.data_loaders.train_batch_size {fitting} "
            f"with training.accumulate_grad_batches {accumulated * factor} updates the weights by as many pictures; "
            "training.out_of_memory: accumulate does that by itself"
        ) from error
    logger.warning("out of memory with a batch of %d: going on with %d, accumulated %d times", batch, fitting, factor)
    return overridden(config, batch=fitting, accumulate=accumulated * factor)


def largest_that_fits(config: Config, model: Classifier) -> int | None:
    """Return the largest of 1/2, 1/4, … of the batch with which a training step succeeds, or None."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = config.preprocessing
    model = model.to(device).train()
    batch = config.dataset.data_loaders.train_batch_size
    dtype = {16: torch.float16, "bf16": torch.bfloat16}.get(config.training.precision)
    while batch > 1:
        batch //= 2
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        try:
            with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(torch.zeros(batch, how.channels, how.height, how.width, device=device))
            functional.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.int64, device=device)).backward()
        except torch.OutOfMemoryError:
            continue
        finally:
            model.zero_grad(set_to_none=True)
        # Adam keeps two more values a parameter, which this step did not need: half of what fits is on the safe side.
        return max(1, batch // 2) if device == "cuda" else batch
    return None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
