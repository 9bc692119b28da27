"""Weights become TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from conversion_jobs.families.probing import probe
from conversion_jobs.families.sources import load_source
from jobkit.model_spec import Output
from nightshift_common.options.training import DetectorTask
from nightshift_common.options.weights import SourceOptions

if TYPE_CHECKING:
    pass

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
        # Where a trace may differ from its module, the graph is made from the checkpoint, and judged by the module.
        module = torch.jit.trace(module, found.example, check_trace=False)
    torch.jit.save(module, str(work / SCRIPT))
    return Imported(
        shape=found.shape, output=found.output, outputs=list(found.outputs), batch=found.batch, notes=list(found.notes)
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
