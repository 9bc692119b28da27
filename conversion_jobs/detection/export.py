"""Export and verification of detectors, from the TorchScript that they were imported as."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.detection.agreement import BoxAgreement, mask_agreement
from conversion_jobs.onnx.exported import Exported, refuse_older_opset
from conversion_jobs.onnx.graph import append_metadata, interface, read_graph
from conversion_jobs.onnx.non_max_suppression import suppress
from conversion_jobs.verification.checks import Check, Close, Cosine, Finite, Verdict
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import DetectorSpec
from nightshift_common.boxes import detections, suppressed
from nightshift_common.options.conversion import Exporter

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
RAW = {"detect": ["raw"], "segment": ["raw", "coefficients", "protos"]}
BOXES = BoxAgreement(0.98, 0.01)  # an FP32 graph: boxes that differ stand at the edge of a threshold
MASK_IOU = 0.95
SUPPRESSION_OPSET = 13  # where Split and Unsqueeze take sizes and axes as inputs


def export_detector(
    model: nn.Module, spec: DetectorSpec, path: Path, opset: int, metadata: dict[str, str], exporter: Exporter = "auto"
) -> Exported:
    """Write a detector, which is TorchScript, to `path` as ONNX, with non-maximum suppression where the spec asks.

    Raises:
        DataValidationError: the model cannot be exported, or gives something else than a detector of these classes.
        ConfigurationError: the options ask for another exporter, or for an opset that is too old for the suppression.
    """
    import onnx
    import torch

    if exporter == "dynamo":
        raise ConfigurationError("--exporter dynamo: a detector is handed over as TorchScript, which it does not take")
    if spec.suppression is not None and opset < SUPPRESSION_OPSET:
        raise ConfigurationError(
            f"non-maximum suppression in the graph needs opset {SUPPRESSION_OPSET} (Split, Unsqueeze), not "
            f"{opset}: ask for a newer one, or leave --nms out"
        )
    how, names = spec.preprocessing, RAW[spec.task]
    example = torch.zeros(2, how.channels, how.height, how.width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's notes; verification tries several batch sizes
            torch.onnx.export(
                model, (example,), str(path), input_names=["input"], output_names=names, opset_version=opset,
                dynamic_axes={name: {0: "N"} for name in ("input", *names)}, dynamo=False,
            )  # fmt: skip
    except (RuntimeError, TypeError, ValueError) as error:
        refuse_older_opset(error, opset)
        reason = str(error).strip().splitlines()[0]
        raise DataValidationError(
            f"the detector cannot be exported for [N, 3, {how.height}, {how.width}]: {reason}"
        ) from error
    graph = onnx.load(str(path))
    with torch.inference_mode():
        found = model(example)
    outputs = found if isinstance(found, tuple) else (found,)
    if len(outputs) != len(names) or outputs[0].shape[1] != 4 + len(spec.labels):
        shapes = ", ".join(str(list(output.shape)) for output in outputs)
        raise DataValidationError(f"the model gives {shapes}: no {spec.task}or of {len(spec.labels)} classes")
    for value, output in zip(graph.graph.output, outputs, strict=True):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims[1:], output.shape[1:], strict=True):
            dim.dim_value = size
    if spec.suppression is not None:
        suppress(graph, spec.suppression)
    onnx.save(graph, str(path))
    append_metadata(path, metadata)
    found = interface(read_graph(path))
    if not found.has_free_batch:
        raise DataValidationError("the exported graph has a fixed batch")
    return Exported(exporter="torchscript", opset=found.opset)


def source_outputs(model: Any, spec: DetectorSpec, inputs: Array) -> list[Array]:
    """Return what the graph of `spec` should give for `inputs` [n, 3, H, W], by the TorchScript model.

    Raises:
        DataValidationError: the model itself gives NaN.
    """
    import torch

    parts = []
    # Few calls: the executor that optimizes TorchScript as it runs takes longer than it saves.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        for picture in inputs:
            found = model(torch.from_numpy(picture[None]))
            parts.append([output.float().numpy() for output in (found if isinstance(found, tuple) else (found,))])
    outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if not all(np.isfinite(output).all() for output in outputs):
        raise DataValidationError("the source model itself gives NaN or infinity: training went wrong, not the export")
    if spec.suppression is None:
        return outputs
    how, anchors = spec.suppression, outputs[0].shape[2]
    most = min(how.max_detections, anchors * len(spec.labels))
    found = [detections(outputs[0], how.confidence_threshold, how.iou_threshold, most)]
    if spec.task == "segment":
        kept = np.zeros((len(inputs), most, outputs[1].shape[1]), np.float32)
        for row, raw, coefficients in zip(kept, outputs[0], outputs[1], strict=True):
            chosen = suppressed(raw, how.confidence_threshold, how.iou_threshold, most).anchors
            row[: len(chosen)] = coefficients[:, chosen].T
        found += [kept, outputs[2]]
    return found


@dataclass(frozen=True)
class CloseRaw:
    """`Close` for raw outputs: what is allowed of scores in 0..1 is allowed of boxes in thousands of pixels."""

    atol: float
    rtol: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Report the largest share of the tolerance that a value uses up; outputs are [n, 4 + classes, anchors]."""
        unit = np.ones((source.shape[1], 1), np.float32)
        unit[:4] = 1e-3
        return Close(self.atol, self.rtol).judge(source * unit, converted * unit, pictures)


def detector_checks(spec: DetectorSpec, atol: float, rtol: float) -> list[Check]:
    """Return what the first output of a graph is held to. Detections may change places, so only boxes are compared."""
    if spec.suppression is not None:
        return [Finite(), BOXES]
    return [Finite(), CloseRaw(atol, rtol), Cosine(0.9999), BOXES]


def mask_verdicts(
    spec: DetectorSpec, source: list[Array], converted: list[Array], pictures: list[str]
) -> list[Verdict]:
    """Return the verdict on a segmenter's masks; none for a detector."""
    return [mask_agreement(source, converted, pictures, MASK_IOU)] if spec.task == "segment" else []
