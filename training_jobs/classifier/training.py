"""Training from a configuration to a finished experiment folder."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as lightning
import numpy as np
import torch
import yaml
from torch import Tensor

from jobkit.bottle import Bottle
from jobkit.classifier import Classifier, load_classifier, read_state_dict
from jobkit.errors import DataRefused
from jobkit.modelspec import ModelSpec
from jobkit.paths import ExperimentPaths
from jobkit.tracking import Run
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import loaders
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.journal import Journal
from training_jobs.classifier.module import ClassifierModule
from training_jobs.classifier.provenance import provenance

logger = logging.getLogger("training_jobs.train_classifier")


def train(
    config: Config, examples: Examples, bottle: Bottle, experiment: ExperimentPaths, tracking: Run | None
) -> dict[str, Any]:
    """Train, or go on training from `last.ckpt`; write the experiment folder; return the content of `metrics.json`.

    Raises:
        ConfigurationError: the architecture is unknown, or the loss became NaN or infinite.
        DataRefused: a picture cannot be decoded.
    """
    spec = ModelSpec(
        group=examples.group,
        architecture=config.model.backbone_name,
        labels=examples.labels,
        preprocessing=config.preprocessing,
        snapshot_id=examples.snapshot_id,
    )
    bottle.write(experiment.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    gpu = torch.cuda.is_available()
    checkpoint = _last_checkpoint(bottle, experiment)
    start = int(checkpoint["epoch"]) + 1 if checkpoint else 0
    torch.manual_seed(config.seed)
    module = ClassifierModule(config, _build(config, len(examples.labels)), _class_weights(config, examples))
    journal = Journal(config, bottle, experiment, tracking)
    trainer = _trainer(config, journal, gpu)
    train_loader, val_loader = loaders(config, examples.train, examples.val, start, gpu)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*TF32.*|.*is smaller than the logging.*")
        resume = None
        if checkpoint is not None:
            logger.info("resuming after epoch %d of %d", start, config.training.epochs)
            resume = Path(folder) / "last.ckpt"
            torch.save(checkpoint, resume)
        trainer.fit(module, train_loader, val_loader, ckpt_path=resume, weights_only=True)
    return _finish(config, spec, bottle, experiment, journal)


def _build(config: Config, classes: int) -> Classifier:
    model = Classifier(config.model.backbone_name, classes, config.model.in_channels, pretrained=config.model.pretrained)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _class_weights(config: Config, examples: Examples) -> Tensor | None:
    chosen = config.criterion.class_weights
    if chosen is None:
        return None
    if chosen == "balanced":
        counts = np.asarray(examples.counts, np.float64)
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
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
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _finish(
    config: Config, spec: ModelSpec, bottle: Bottle, experiment: ExperimentPaths, journal: Journal
) -> dict[str, Any]:
    model = load_classifier(bottle.local(experiment.best_checkpoint), spec)
    how = spec.preprocessing
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, torch.zeros(2, how.channels, how.height, how.width), check_trace=False)
        path = Path(folder) / "model.pt"
        torch.jit.save(traced, str(path))
        bottle.put(experiment.torchscript, path)
    best = journal.best
    content = {
        "best_epoch": int(best["epoch"]),
        "epochs": len(journal.rows),
        "metrics": {name: value for name, value in best.items() if name.startswith(("val_", "train_"))},
        "seed": config.seed,
        "snapshot_id": spec.snapshot_id,
        "provenance": provenance(),
    }
    bottle.write(experiment.metrics, json.dumps(content, indent=2) + "\n")  # last: it makes the experiment finished
    return content
