"""A torch module becomes an ONNX file with a free batch, which says what it is. Only the sandbox does that."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversion_jobs.detection.export import export_detector
from conversion_jobs.onnx.agreement import graph_disagreement, wanted_of
from conversion_jobs.onnx.exported import Exported, refuse_older_opset
from conversion_jobs.onnx.graph import append_metadata, compact_json, interface, read_graph
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.onnx.streamed_export import add_weights, is_streamed, without_weights
from conversion_jobs.onnx.torch_export import export_captured
from jobkit.errors import DataValidationError
from jobkit.model_spec import DetectorSpec, Spec, described_input, input_shape
from nightshift_common.options.conversion import Exporter, ExporterName

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT = "input"


def export(
    model: nn.Module, spec: Spec, path: Path, opset: int, origin: dict[str, str], exporter: Exporter = "auto"
) -> Exported:
    """Write the model of `spec` to `path` as ONNX.

    The file tells what it is: labels, preprocessing, snapshot and `origin` stand in its `metadata_props`.

    Raises:
        DataValidationError: the graph does not have the interface of `spec`.
    """
    metadata = origin | spec_metadata(spec)
    if isinstance(spec, DetectorSpec):
        return export_detector(model, spec, path, opset, metadata, exporter)
    made = export_module(
        model, input_shape(spec), path, output=spec.output, opset=opset, metadata=metadata, exporter=exporter
    )
    found = interface(split_file(path)).outputs[0]
    if spec.labels and found.shape != (None, len(spec.labels)):
        raise DataValidationError(f"the exported graph gives {found}, not [?, {len(spec.labels)}] (one a label)")
    return made


def export_module(
    model: nn.Module, shape: tuple[int, ...], path: Path, *, output: str, opset: int, metadata: dict[str, str],
    exporter: Exporter = "auto",
) -> Exported:  # fmt: skip
    """Write `model` (evaluation mode, one input float32 [N, *shape], one output [N, ...]) to `path` as ONNX.

    The batch is free. The same weights and arguments give the same bytes. With `auto` the graph is that of the
    exporter on TorchScript; where that fails, or its graph does not answer as the model does, of the newer one.

    Raises:
        DataValidationError: the model cannot be exported, or no graph of it has a free batch and answers as it does.
    """
    wanted = wanted_of(model, shape)
    refused: dict[ExporterName, str] = {}
    tried: tuple[ExporterName, ...] = ("torchscript", "dynamo") if exporter == "auto" else (exporter,)
    for name in tried:
        reason = _made(name, model, shape, path, output, opset) or graph_disagreement(wanted, path)
        if reason is None:
            append_metadata(path, metadata)
            return Exported(exporter=name, opset=interface(split_file(path)).opset, refused=refused)
        refused[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise DataValidationError(f"the model cannot be exported for an input of [N, {_sizes(shape)}]: {reasons}")


def _made(
    exporter: ExporterName, model: nn.Module, shape: tuple[int, ...], path: Path, output: str, opset: int
) -> str | None:
    """Write what `exporter` makes of `model` to `path`; return why it is no graph with a free batch, or None.

    Raises:
        DataValidationError: the model needs a newer opset.
    """
    import torch

    example = torch.zeros(2, *shape)  # a batch of 1 would be taken for a constant
    try:
        if exporter == "dynamo":
            if isinstance(model, torch.jit.ScriptModule):
                return "the model is TorchScript, which torch.export does not take"
            export_captured(model, example, path, INPUT, [output], opset)
        elif is_streamed(model):
            with without_weights(model) as weights:
                _trace(model, example, path, output, opset, export_params=False, do_constant_folding=False)
            add_weights(path, weights)
        else:
            _trace(model, example, path, output, opset)
        found = interface(read_graph(path))
    except (RuntimeError, TypeError, ValueError, DataValidationError) as error:
        refuse_older_opset(error, opset)
        return str(error).strip().splitlines()[0]
    if len(found.inputs) != 1 or not found.has_free_batch:
        shown = ", ".join(map(str, (*found.inputs, *found.outputs)))
        return f"the exported graph has a fixed batch or more than one input: {shown}"
    return None


def _trace(model: nn.Module, example: Tensor, path: Path, output: str, opset: int, **options: Any) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's notes on shapes; verification tries several batch sizes
        torch.onnx.export(
            model, (example,), str(path), input_names=[INPUT], output_names=[output], opset_version=opset,
            dynamic_axes={INPUT: {0: "N"}, output: {0: "N"}}, dynamo=False, **options,
        )  # fmt: skip
    name_output_sizes(path, model, example)


def name_output_sizes(path: Path, model: nn.Module, example: Tensor) -> None:
    """Write the sizes of the output into the graph at `path`, where the exporter did not find them out."""
    import onnx
    import torch

    if None not in interface(split_file(path)).outputs[0].shape[1:]:
        return
    with torch.inference_mode():
        sizes = model(example).shape[1:]
    graph = onnx.load(str(path))
    dims = graph.graph.output[0].type.tensor_type.shape.dim
    if len(dims) == len(sizes) + 1:
        for dim, size in zip(dims[1:], sizes, strict=True):
            dim.dim_value = size
        onnx.save(graph, str(path))


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def spec_metadata(spec: Spec) -> dict[str, str]:
    """Return what an ONNX file says about its model; values that are no text are JSON."""
    return {
        "group": spec.group,
        "architecture": spec.architecture,
        "labels": compact_json(spec.labels),
        "snapshot_id": spec.snapshot_id or "",
        **{name: compact_json(value) for name, value in described_input(spec).items()},
    }
