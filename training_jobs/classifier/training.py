"""Training from a configuration to a finished experiment folder."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataRefused
from jobkit.modelspec import ModelSpec
from jobkit.paths import ExperimentPaths
from jobkit.tracking import Run
from training_jobs.classifier import memory, weights
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Batch, loaders
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.finish import finish
from training_jobs.classifier.journal import Journal
from training_jobs.classifier.module import ClassifierModule, LossNotFinite
from training_jobs.classifier.sheets import sheet

logger = logging.getLogger("training_jobs.train_classifier")


def train(
    config: Config, examples: Examples, bottle: Bottle, experiment: ExperimentPaths, tracking: Run | None
) -> dict[str, Any]:
    """Train, or go on training from `last.ckpt`; write the experiment folder; return the content of `metrics.json`.

    Raises:
        ConfigurationError: the architecture is unknown, the loss became NaN or infinite, or a batch does not fit into
            the GPU's memory and training.out_of_memory is `stop`.
        DataRefused: a picture cannot be decoded, or a checkpoint is damaged.
    """
    spec = ModelSpec(
        group=examples.group,
        architecture=config.model.backbone_name,
        labels=examples.labels,
        preprocessing=config.preprocessing,
        snapshot_id=examples.snapshot_id,
    )
    _write_config(config, bottle, experiment)
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    journal = Journal(config, bottle, experiment, tracking)
    try:
        val = fit(config, examples, bottle, experiment, journal)
    except torch.OutOfMemoryError as error:
        config = memory.smaller_batch(config, weights.build(config, len(examples.labels), bottle), error)
        _write_config(config, bottle, experiment)
        journal = Journal(config, bottle, experiment, tracking)
        val = fit(config, examples, bottle, experiment, journal)
    return finish(config, spec, bottle, experiment, journal, val, tracking)


def fit(
    config: Config, examples: Examples, bottle: Bottle, experiment: ExperimentPaths, journal: Journal
) -> DataLoader[Batch]:
    """Train from where the experiment stands; return the validation loader."""
    gpu = torch.cuda.is_available()
    checkpoint = _last_checkpoint(bottle, experiment)
    start = int(checkpoint["epoch"]) + 1 if checkpoint is not None else 0
    torch.manual_seed(config.seed)
    module = ClassifierModule(
        config, weights.build(config, len(examples.labels), bottle), class_weights(config, examples)
    )
    train_loader, val_loader = loaders(config, examples.train, examples.val, start, gpu)
    trainer = _trainer(config, journal, gpu)
    try:
        with _as_file(checkpoint) as resume, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*many workers.*|.*TF32.*|.*LeafSpec.*|.*logging interval.*")
            if resume is not None:
                logger.info("resuming after epoch %d of %d", start, config.training.epochs)
            trainer.fit(module, train_loader, val_loader, ckpt_path=resume, weights_only=True)
    except LossNotFinite as error:
        raise ConfigurationError(f"{error}; the batch is in {_keep_batch(error, bottle, experiment)}") from error
    return val_loader


def _write_config(config: Config, bottle: Bottle, experiment: ExperimentPaths) -> None:
    bottle.write(experiment.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def class_weights(config: Config, examples: Examples) -> Tensor | None:
    """Return a weight a class, float32 [K]: `pictures / (classes * pictures of the class)`, or those of the file.

    Raises:
        ConfigurationError: the file has another number of weights than there are classes.
    """
    chosen = config.criterion.class_weights
    if chosen is None:
        return None
    if chosen == "balanced":
        counts = np.asarray(examples.counts, np.float64)
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    if len(chosen) != len(examples.labels):
        raise ConfigurationError(
            f"criterion.class_weights has {len(chosen)} values, but there are {len(examples.labels)} labels: "
            f"{', '.join(examples.labels)}"
        )
    return torch.tensor(chosen, dtype=torch.float32)


def _trainer(config: Config, journal: Journal, gpu: bool) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    training = config.training
    precision: Any = {16: "16-mixed", "bf16": "bf16-mixed", 32: "32-true"}[training.precision]
    if training.precision == 16 and not gpu:
        logger.warning("training.precision 16 needs a GPU, and there is none here: training with 32")
        precision = "32-true"
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        max_epochs=training.epochs,
        precision=precision,
        accumulate_grad_batches=training.accumulate_grad_batches,
        gradient_clip_val=training.max_grad_norm,
        callbacks=[journal],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _last_checkpoint(bottle: Bottle, experiment: ExperimentPaths) -> dict[str, Any] | None:
    if not bottle.exists(experiment.last_checkpoint):
        return None
    path = bottle.local(experiment.last_checkpoint)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DataRefused(
            f"{experiment.last_checkpoint} is damaged ({str(error).split('.', 1)[0]}); "
            "without it the training starts anew: delete it to do that"
        ) from error
    return content


@contextmanager
def _as_file(checkpoint: dict[str, Any] | None) -> Iterator[Path | None]:
    """Yield the checkpoint as a file of its own: Lightning resumes from files only, and the bottle's may change."""
    if checkpoint is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        torch.save(checkpoint, path)
        yield path


def _keep_batch(error: LossNotFinite, bottle: Bottle, experiment: ExperimentPaths) -> str:
    """Write the batch whose loss was not finite, as a picture and as arrays; return the key of the arrays."""
    pictures, labels = (part.cpu().numpy() for part in error.batch)
    stem = f"{experiment.folder}/train_batches/not_finite_epoch{error.epoch + 1}_batch{error.index + 1}"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pictures=pictures, labels=labels)
    bottle.write(f"{stem}.jpg", sheet(pictures[:64]))
    bottle.write(f"{stem}.npz", buffer.getvalue())
    return f"{stem}.npz"
