"""The end of a training: TorchScript, final scores, report, and `metrics.json`, which makes the experiment finished."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax  # type: ignore[import-untyped]
from torch import nn
from torch.utils.data import DataLoader

from jobkit.bottle import Bottle
from jobkit.classifier import load_classifier, served
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec
from jobkit.provenance import provenance
from jobkit.tracking import Run
from nightshift_common.picture_preparation import SHOWN
from training_jobs.classifier import html_report, scores
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Batch, Pictures
from training_jobs.classifier.temperature import fit_temperature, negative_log_likelihood
from training_jobs.classifier.training_callback import TrainingCallback
from training_jobs.scoring.metrics import calibration_error
from training_jobs.scoring.multi_label import average_precisions


def finish(
    config: Config,
    spec: ModelSpec,
    bottle: Bottle,
    experiment: Experiment,
    journal: TrainingCallback,
    val: DataLoader[Batch],
    tracking: Run | None,
) -> dict[str, Any]:
    """Write what later steps need from the best epoch's checkpoint, as it lies in the bottle; return `metrics.json`.

    The scores are those of the model that is handed over: averaged over mirror images and calibrated, where it is.
    """
    model = load_classifier(bottle.local(experiment.best_checkpoint), spec)
    truth, outputs = predict(served(model, spec), spec, val)
    if config.inference.temperature_scaling:
        spec = spec.model_copy(update={"calibration": fit_temperature(outputs, truth)})
        bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    _write_torchscript(served(model, spec), spec, bottle, experiment)
    probabilities, tally, metrics = (_several_labels if spec.multi_label else _one_label)(spec, truth, outputs)
    best = journal.best
    made = {"command": "training_jobs.train_classifier", "seed": config.seed, **provenance("jobs", "timm", "lightning")}
    content: dict[str, Any] = {
        "best_epoch": int(best["epoch"]),
        "epochs": len(journal.rows),
        "metrics": {
            **{name: value for name, value in best.items() if name.startswith("train_")},
            **metrics,
        },
        "per_class": scores.table(spec.labels, tally),
        "best_by": config.training.best_by,
        "throughput": {name: best[name] for name in html_report.SPEED if name in best},
        "group": spec.group,
        "snapshot_id": spec.snapshot_id,
        "provenance": made,
    }
    pictures = val.dataset
    if not isinstance(pictures, Pictures):
        raise TypeError(f"the validation set is {type(pictures).__name__}, not Pictures")
    page = html_report.page(config, spec, experiment.folder, journal.rows, content, truth, probabilities, pictures)
    bottle.write(f"{experiment.folder}/report.html", page)
    if tracking is not None:
        tracking.metrics({f"best_{name}": value for name, value in content["metrics"].items()}, step=int(best["epoch"]))
        for key in (f"{experiment.folder}/report.html", experiment.config):
            tracking.artifact(bottle.local(key))
        tracking.dictionary(content, "metrics.json")
    bottle.write(experiment.metrics, json.dumps(content, indent=2) + "\n")  # last: it makes the experiment finished
    return content


Scored = tuple[NDArray[np.float32], NDArray[np.int64], dict[str, float]]


def _one_label(spec: ModelSpec, truth: NDArray[np.int64], logits: NDArray[np.float32]) -> Scored:
    """Return probabilities [N, K], what `scores.tally_of` counts, and the metrics; `truth` is int64 [N]."""
    calibrated = logits.astype(np.float64) / spec.temperature
    probabilities = softmax(calibrated, axis=1).astype(np.float32)
    confusion = scores.confusion_matrix(truth, probabilities)
    tally = scores.tally_of(confusion)
    metrics = {
        "val_loss": negative_log_likelihood(calibrated, truth),
        "val_accuracy": scores.accuracy(confusion),
        "val_macro_f1": scores.macro_f1(tally),
        "val_ece": calibration_error(truth, probabilities.astype(np.float64)),
    }
    return probabilities, tally, metrics


def _several_labels(_spec: ModelSpec, truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Scored:
    """Return the same for `truth` of 0 or 1, [N, K]; a class without validation pictures is left out of the means."""
    shown, exact = probabilities >= SHOWN, np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    tally = scores.tallied(truth, shown)
    known = tally[2] > 0
    ranked = average_precisions(truth, exact)[known]
    metrics = {
        "val_loss": float(-np.where(truth == 1, np.log(exact), np.log1p(-exact)).mean()),
        "val_accuracy": float((shown == truth).all(axis=1).mean()),
        "val_macro_f1": scores.macro_f1(tally),
        "val_map": float(ranked.mean()) if ranked.size else 0.0,
    }
    return probabilities, tally, metrics


def _write_torchscript(model: nn.Module, spec: ModelSpec, bottle: Bottle, experiment: Experiment) -> None:
    how = spec.preprocessing
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about every shape that a backbone looks at
        example = torch.zeros(2, how.channels, how.height, how.width)
        path = Path(folder) / "model.pt"
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))
        bottle.put(experiment.torchscript, path)


@torch.inference_mode()
def predict(model: nn.Module, spec: ModelSpec, val: DataLoader[Batch]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return true classes, int64 [N], and outputs, float32 [N, K], of the validation pictures in order.

    Of several labels the first is 0 or 1, [N, K].
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    how = spec.preprocessing
    mean = torch.tensor(how.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(how.std, device=device).view(1, -1, 1, 1)
    truth, outputs = [], []
    for pictures, labels in val:
        planes = pictures.to(device).permute(0, 3, 1, 2).float().div_(255)
        outputs.append(model(planes.sub_(mean).div_(std)).cpu().numpy())
        truth.append(labels.numpy().astype(np.int64))
    model.to("cpu")
    return np.concatenate(truth), np.concatenate(outputs)
