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
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader

from jobkit.bottle import Bottle, open_bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec
from jobkit.tracking import Run, client
from training_jobs.classifier import gpu_memory, weights
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import ALONE, Batch, Part, cores, loaders, validation_loader
from training_jobs.classifier.ddp_launcher import run_together
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.finalize import finish
from training_jobs.classifier.lightning_module import ClassifierModule, LossNotFinite
from training_jobs.classifier.training_callback import Row, TrainingCallback
from training_jobs.report_kit.pictures import sheet

logger = logging.getLogger("training_jobs.train_classifier")
NOISE = ".*many workers.*|.*TF32.*|.*LeafSpec.*|.*logging interval.*|.*no `val_dataloader`.*"
"""Lightning's warnings about what is meant as it is."""


def train(
    config: Config,
    examples: Examples,
    bottle: Bottle,
    experiment: Experiment,
    tracking: Run | None,
    gpus: int = 1,
) -> dict[str, Any]:
    """Train, or go on training from `last.ckpt`; write the experiment folder; return the content of `metrics.json`.

    With `gpus` above 1 as many processes train together, each on a GPU (or on its part of the cores, where there is no
    GPU). They share each batch, so that the steps and the learning rates are those of one GPU.

    Raises:
        ConfigurationError: the architecture is unknown, the loss became NaN or infinite, a batch does not fit into
            the GPU's memory and training.out_of_memory is `stop`, there are fewer GPUs, or they cannot share the batch.
        DataValidationError: a picture cannot be decoded, or a checkpoint is damaged.
        ProcessDied: one of the processes was killed.
    """
    if gpus > 1:
        check_shares(config, examples, gpus)
    origin = weights.initial_weights(config, bottle)
    if tracking is not None and origin is not None:
        tracking.tags({f"initial_weights.{name}": value for name, value in origin.model_dump().items()})
    spec = ModelSpec(
        group=examples.group,
        architecture=config.model.backbone_name,
        arguments=config.model.arguments,
        initial_weights=origin,
        labels=examples.labels,
        output="probabilities" if examples.multi_label else "logits",
        multi_label=examples.multi_label,
        preprocessing=config.preprocessing,
        flip_tta=config.inference.flip_tta,
        snapshot_id=examples.snapshot_id,
    )
    _write_config(config, bottle, experiment)
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    journal = TrainingCallback(config, bottle, experiment, tracking)
    try:
        val = _fit_on(gpus, config, examples, bottle, experiment, journal)
    except torch.OutOfMemoryError as error:
        config = gpu_memory.smaller_batch(config, weights.build(config, len(examples.labels), bottle), error, gpus)
        _write_config(config, bottle, experiment)
        journal = TrainingCallback(config, bottle, experiment, tracking)
        val = _fit_on(gpus, config, examples, bottle, experiment, journal)
    return finish(config, spec, bottle, experiment, journal, val, tracking)


def check_shares(config: Config, examples: Examples, gpus: int) -> None:
    """See that `gpus` processes can train together.

    Raises:
        ConfigurationError: there are fewer GPUs, or the batch or the pictures cannot be shared among them.
    """
    batch, there = config.dataset.data_loaders.train_batch_size, torch.cuda.device_count()
    if 0 < there < gpus:
        raise ConfigurationError(f"--gpus {gpus}: this process sees {there}; the job needs a host or worker with more")
    if batch % gpus:
        lower, upper = batch // gpus * gpus, -(-batch // gpus) * gpus
        valid = f"{lower} or {upper}" if lower else str(upper)
        raise ConfigurationError(f"--gpus {gpus}: a batch of {batch} pictures has no equal shares; {valid} would have")
    if min(len(examples.train), len(examples.val)) < gpus:
        raise ConfigurationError(
            f"--gpus {gpus}: {len(examples.train)} pictures to train on and {len(examples.val)} to validate are too few"
        )
    if there == 0:
        logger.warning("there is no GPU here: %d processes train together on %d cores", gpus, cores())


def _fit_on(
    gpus: int, config: Config, examples: Examples, bottle: Bottle, experiment: Experiment, journal: TrainingCallback
) -> DataLoader[Batch]:
    """Train in this process, or in one for each GPU; return the validation loader."""
    if gpus == 1:
        return fit(config, examples, bottle, experiment, journal)
    run = journal.tracking
    known = (run.run_id, run.experiment_id, run.parent_id) if run else None
    rows, pending = run_together(_fit_part, gpus, gpus, config, examples, str(bottle), experiment, known)
    journal.rows = rows
    if run is not None:
        run.pending += pending
    return validation_loader(config, examples.val, torch.cuda.is_available())


def _fit_part(
    rank: int,
    world: int,
    config: Config,
    examples: Examples,
    bottle_root: str,
    experiment: Experiment,
    run: tuple[str, str, str | None] | None,
) -> tuple[list[Row], list[Any]]:
    """Be one of the processes that train together; return the history, and what MLflow has not taken yet."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, cores() // world))
    bottle = open_bottle(bottle_root)
    tracking = Run(client(), *run) if run and rank == 0 else None
    journal = TrainingCallback(config, bottle, experiment, tracking)
    fit(config, examples, bottle, experiment, journal, Part(rank, world))
    torch.distributed.destroy_process_group()
    return journal.rows, tracking.pending if tracking else []


def fit(
    config: Config,
    examples: Examples,
    bottle: Bottle,
    experiment: Experiment,
    journal: TrainingCallback,
    part: Part = ALONE,
) -> DataLoader[Batch]:
    """Train from where the experiment stands, as `part` of those that train together; return the validation loader."""
    gpu = torch.cuda.is_available()
    checkpoint = _last_checkpoint(bottle, experiment)
    start = int(checkpoint["epoch"]) + 1 if checkpoint is not None else 0
    torch.manual_seed(config.seed)
    model = weights.build(config, len(examples.labels), bottle)
    if gpu and part.world > 1:
        # timm's: torch's own would leave out the activation that timm puts into its batch norms.
        model = convert_sync_batchnorm(model)
    module = ClassifierModule(config, model, class_weights(config, examples))
    train_loader, val_loader = loaders(config, examples.train, examples.val, start, gpu, part)
    if checkpoint is not None:
        journal.load_state_dict(checkpoint["callbacks"][journal.state_key])
    trainer = make_trainer(config, journal, gpu, part, epochs=start if journal.is_stopped else config.training.epochs)
    try:
        with _as_file(checkpoint) as resume, warnings.catch_warnings(), sound_gradients(config.training.precision, gpu):
            warnings.filterwarnings("ignore", message=NOISE)
            if resume is not None:
                logger.info("resuming after epoch %d of %d", start, config.training.epochs)
            trainer.fit(module, train_loader, val_loader, ckpt_path=resume, weights_only=True)
    except LossNotFinite as error:
        raise ConfigurationError(f"{error}; the batch is in {_keep_batch(error, bottle, experiment)}") from error
    if part.rank == 0 and not config.training.save_checkpoints and journal.best_weights is not None:
        journal.put(journal.best_weights, experiment.best_checkpoint)
    return val_loader


def _write_config(config: Config, bottle: Bottle, experiment: Experiment) -> None:
    bottle.write(experiment.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def class_weights(config: Config, examples: Examples) -> Tensor | None:
    """Return a weight a class, float32 [K]: `pictures / (classes * pictures of the class)`, or those of the file.

    Of several labels it is what a yes weighs against a no: pictures without the class / pictures with it.

    Raises:
        ConfigurationError: the file has another number of weights than there are classes.
    """
    chosen = config.criterion.class_weights
    if chosen is None:
        return None
    if chosen == "balanced":
        counts = np.asarray(examples.counts, np.float64)
        if examples.multi_label:  # a class that all pictures show keeps a weight
            without = np.maximum(len(examples.train) - counts, 1)
            return torch.tensor(without / counts, dtype=torch.float32)
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    if len(chosen) != len(examples.labels):
        raise ConfigurationError(
            f"criterion.class_weights has {len(chosen)} values, but there are {len(examples.labels)} labels: "
            f"{', '.join(examples.labels)}"
        )
    return torch.tensor(chosen, dtype=torch.float32)


@contextmanager
def sound_gradients(precision: int | str, gpu: bool) -> Iterator[None]:
    """Leave out oneDNN in bf16 on the CPU: its convolution (torch 2.13) gives wrong gradients for features of 1 x 1.

    The parts of a kernel that see only padding get what stood in memory, now and then NaN; 3 x 3 kernels over what a
    small picture has become are such.
    """
    library: Any = torch.backends.mkldnn
    before = library.enabled
    library.enabled = before and (gpu or precision != "bf16")
    try:
        yield
    finally:
        library.enabled = before


def make_trainer(
    config: Config, callback: Callback, gpu: bool, part: Part, epochs: int, **limits: Any
) -> lightning.Trainer:
    """Return Lightning's trainer as the file says; `limits` are further arguments of it."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    training = config.training
    precision: Any = {16: "16-mixed", "bf16": "bf16-mixed", 32: "32-true"}[training.precision]
    if training.precision == 16 and not gpu:
        logger.warning("training.precision 16 needs a GPU, and there is none here: training with 32")
        precision = "32-true"
    return lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=part.world,
        # Buffers stay each process's own: among them are the sums of its part of the scores.
        # A frozen backbone has no gradients to wait for.
        strategy=DDPStrategy(broadcast_buffers=False, find_unused_parameters=training.frozen_epochs > 0)
        if part.world > 1
        else "auto",
        plugins=LightningEnvironment() if part.world > 1 else None,
        max_epochs=epochs,
        precision=precision,
        accumulate_grad_batches=training.accumulate_grad_batches,
        gradient_clip_val=training.max_grad_norm,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **limits,
    )


def _last_checkpoint(bottle: Bottle, experiment: Experiment) -> dict[str, Any] | None:
    if not bottle.exists(experiment.last_checkpoint):
        return None
    path = bottle.local(experiment.last_checkpoint)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise DataValidationError(
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


def _keep_batch(error: LossNotFinite, bottle: Bottle, experiment: Experiment) -> str:
    """Write the batch whose loss was not finite, as a picture and as arrays; return the key of the arrays."""
    pictures, labels = (part.cpu().numpy() for part in error.batch)
    stem = f"{experiment.folder}/train_batches/not_finite_epoch{error.epoch + 1}_batch{error.index + 1}"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pictures=pictures, labels=labels)
    bottle.write(f"{stem}.jpg", sheet(pictures[:64]))
    bottle.write(f"{stem}.npz", buffer.getvalue())
    return f"{stem}.npz"
