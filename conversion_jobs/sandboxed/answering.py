"""Models answer: what a graph is compared with. Inputs and outputs are .npy files, float32 [n, ...]."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from conversion_jobs.families.outputs import flattened
from conversion_jobs.families.probing import probe
from conversion_jobs.families.sources import SourceFile, load_experiment, load_source, load_torchscript
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.onnx.session import OnnxModel, filled
from conversion_jobs.sandboxed.importing import ImportedDetector
from jobkit.errors import DataValidationError
from jobkit.model_spec import DetectorSpec, HeadSpec, NonMaxSuppression, Preprocessing, Spec
from jobkit.sandbox.runner import Done
from nightshift_common.options.weights import SourceOptions

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
AT_ONCE = 8  # inputs in a batch that is free


class Answered(BaseModel):
    """How many outputs were written; of a detector's checkpoint, what it holds."""

    outputs: int
    detector: ImportedDetector | None = None


@contextmanager
def stored(inputs: Array) -> Iterator[Path]:
    """Yield a file with `inputs`, for the functions below."""
    with TemporaryDirectory(prefix="nightshift-inputs-", dir=os.environ.get("NIGHTSHIFT_JOB_DIR")) as folder:
        path = Path(folder) / "inputs.npy"
        np.save(path, inputs)
        yield path


def outputs_of(done: Done[Answered], count: int) -> list[Array]:
    """Return the outputs [count, ...] that a function below left.

    Raises:
        DataValidationError: they are something else.
    """
    found = []
    for number in range(done.value.outputs):
        path = done.file(_name(number))
        try:
            found.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataValidationError(f"the model's outputs cannot be read: {error}") from error
    if not found or any(output.dtype != np.float32 or not output.ndim or len(output) != count for output in found):
        shown = ", ".join(f"{output.dtype} {list(output.shape)}" for output in found)
        raise DataValidationError(f"the model gives {shown or 'nothing'} for {count} inputs")
    return found


def answer_experiment(work: Path, script: Path, spec: Spec, inputs: Path) -> Answered:
    """Write what the graph of `spec` should give for `inputs` [n, ...], by the TorchScript model `script`.

    Raises:
        DataValidationError: the file is not a TorchScript model, or the model itself gives NaN.
    """
    from conversion_jobs.detection import export

    model: Any = load_torchscript(script)
    values = np.load(inputs, allow_pickle=False)
    if isinstance(spec, DetectorSpec):
        return _written(work, export.source_outputs(model, spec, values))
    outputs = _answers(model, values, None if isinstance(spec, HeadSpec) else spec.batch)
    if not all(np.isfinite(output).all() for output in outputs):
        raise DataValidationError(f"{script} itself gives NaN or infinity: training went wrong, not the export")
    return _written(work, outputs)


def answer_graph(work: Path, graph: Path, inputs: Path) -> Answered:
    """Write what the ONNX file `graph` gives for `inputs` [n, ...].

    Raises:
        DataValidationError: ONNX Runtime does not take the file, or it fails on these inputs.
    """
    return _written(work, OnnxModel(graph).run_all(np.load(inputs, allow_pickle=False), AT_ONCE))


def answer_file(
    work: Path, weights: Path, options: SourceOptions, inside: Preprocessing | None, inputs: Path
) -> Answered:
    """Write what the model in `weights` gives for `inputs`, behind the normalization `inside` where there is one.

    Raises:
        DataValidationError, ConfigurationError: see `load_source`.
    """
    from conversion_jobs.onnx.normalization import normalized

    found = probe(load_source(weights, options))
    module = normalized(found.module, inside) if inside else found.module
    return _written(work, _answers(module, np.load(inputs, allow_pickle=False), found.batch))


def answer_detector_file(work: Path, weights: Path, options: SourceOptions, inputs: Path) -> Answered:
    """Write what a graph should give for `inputs`, by the Ultralytics detector in `weights`.

    Raises:
        DataValidationError, ConfigurationError: see `load_detector`.
    """
    from conversion_jobs.detection.export import source_outputs
    from jobkit.detection.torchscript import detector_spec
    from jobkit.detection.ultralytics_weights import load_detector

    detector = load_detector(weights, options.img_size)
    spec = detector_spec(detector.task, detector.labels, "", options.img_size, NonMaxSuppression.of(options))
    answered = _written(work, source_outputs(detector.module, spec, np.load(inputs, allow_pickle=False)))
    found = ImportedDetector(task=detector.task, labels=detector.labels)
    return answered.model_copy(update={"detector": found})


def locate(work: Path, source: SourceFile, spec: Spec, graph: Path, picture: Path, atol: float, rtol: float) -> str:
    """Return where the model of an experiment and the ONNX file `graph` part, for one picture [C, H, W]."""
    from conversion_jobs.verification.first_divergence import first_difference

    model, shown = load_experiment(source, spec), np.load(picture, allow_pickle=False)
    return first_difference(model, split_file(graph), graph.parent, shown, atol, rtol)


def _answers(module: nn.Module, inputs: Array, batch: int | None) -> list[Array]:
    """Return each output for `inputs` [n, ...]; a `batch` that is fixed is filled up with the first inputs."""
    import torch

    size, columns = batch or AT_ONCE, []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            count = len(part)
            given = flattened(module(torch.from_numpy(part if batch is None else filled(part, batch))))
            columns.append([np.asarray(tensor[:count].float().numpy(), np.float32) for tensor in given])
    return [np.concatenate(column) for column in zip(*columns, strict=True)]


def _written(work: Path, outputs: Sequence[Array]) -> Answered:
    for number, output in enumerate(outputs):
        np.save(work / _name(number), output)
    return Answered(outputs=len(outputs))


def _name(number: int) -> str:
    return f"output_{number}.npy"
