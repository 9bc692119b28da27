"""Weights become TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from conversion_jobs.families.probing import probe
from conversion_jobs.families.sources import load_source
from conversion_jobs.onnx.agreement import script_disagreement, wanted_of
from jobkit.errors import DataValidationError
from jobkit.model_spec import Output
from nightshift_common.options.training import DetectorTask
from nightshift_common.options.weights import SourceOptions

if TYPE_CHECKING:
    from torch import nn

SCRIPT = "model.pt"


class Imported(BaseModel):
    """A model float32 [N, *shape] -> `outputs`, sizes without the batch, the first of which is `output`.

    `batch` is the one batch size that it takes, None: any; `notes` say what its owner should know.
    """

    shape: tuple[int, ...]
    output: Output
    outputs: list[tuple[int, ...]]
    batch: int | None
    notes: list[str]


class ImportedDetector(BaseModel):
    """What a detector's checkpoint holds: the task, and the class of each score."""

    task: DetectorTask
    labels: list[str]


def import_source(work: Path, weights: Path, options: SourceOptions) -> Imported:
    """Write the model in `weights` to `work` as TorchScript.

    Raises:
        DataValidationError, ConfigurationError: see `load_source`, `probe`.
    """
    import torch

    found = probe(load_source(weights, options))
    module = found.module
    if not isinstance(module, torch.jit.ScriptModule):
        traced = torch.jit.trace(module, found.example, check_trace=False)
        # Of these the graph is made from the checkpoint: there verification compares the two.
        if options.family not in ("classifier", "vit", "factory"):
            refuse_wrong_trace(module, traced, found.shape, found.batch)
        module = traced
    torch.jit.save(module, str(work / SCRIPT))
    return Imported(
        shape=found.shape, output=found.output, outputs=list(found.outputs), batch=found.batch, notes=list(found.notes)
    )


def refuse_wrong_trace(module: nn.Module, traced: nn.Module, shape: tuple[int, ...], batch: int | None) -> None:
    """See that a trace, which is all that is handed over, answers as its module at batch sizes that were not traced.

    Raises:
        DataValidationError: it does not: branches and Python's numbers are constants in a trace.
    """
    if (reason := script_disagreement(wanted_of(module, shape, batch), traced)) is not None:
        raise DataValidationError(
            f"the model cannot be traced: {reason}. Branches that depend on values, and sizes taken as Python's "
            "numbers, are constants in a trace: script it with torch.jit.script, and import it as torchscript"
        )


def import_detector(work: Path, weights: Path, img_size: tuple[int, int]) -> ImportedDetector:
    """Write the Ultralytics detector in `weights` to `work` as TorchScript, for pictures of `img_size` (height, width).

    Raises:
        DataValidationError, ConfigurationError: see `load_detector`.
    """
    from jobkit.detection.torchscript import traced
    from jobkit.detection.ultralytics_weights import load_detector

    detector = load_detector(weights, img_size)
    traced(detector, img_size).save(str(work / SCRIPT))
    return ImportedDetector(task=detector.task, labels=detector.labels)
