"""A torch module becomes an ONNX file with a free batch, which says what it is. Only the sandbox does that."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversion_jobs.detection.export import export_detector
from conversion_jobs.onnx.agreement import graph_disagreement, wanted_of
from conversion_jobs.onnx.exported import Exported, refuse_older_opset
from conversion_jobs.onnx.graph import append_metadata, compact_json, interface, read_graph
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.onnx.streamed_export import add_weights, is_streamed, without_weights
from conversion_jobs.onnx.torch_export import export_captured
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import INPUT, DetectorSpec, HeadSpec, Spec, described_input, input_shape, output_names
from nightshift_common.options.conversion import Exporter, ExporterName

if TYPE_CHECKING:
    from torch import Tensor, nn

SPATIAL = 2  # the first axis of a size that `dynamic` frees: behind the batch and the channels


def export(
    model: nn.Module, spec: Spec, path: Path, opset: int, origin: dict[str, str], exporter: Exporter = "auto", *,
    dynamic: bool = False,
) -> Exported:  # fmt: skip
    """Write the model of `spec` to `path` as ONNX.

    The file tells what it is: labels, preprocessing, snapshot and `origin` stand in its `metadata_props`.
    With `dynamic` the sizes behind the channels are free.

    Raises:
        DataValidationError: the graph does not have the interface of `spec`.
        ConfigurationError: the sizes are to be free, and the model is built for one size.
    """
    metadata = origin | spec_metadata(spec)
    if isinstance(spec, DetectorSpec):
        if dynamic:
            raise ConfigurationError("a detector's graph is made for one size of pictures: leave --dynamic_size out")
        return export_detector(model, spec, path, opset, metadata, exporter)
    names = output_names(spec)
    made = export_module(
        model, input_shape(spec), path, output=names[0], further=names[1:], opset=opset, metadata=metadata,
        exporter=exporter, batch=None if isinstance(spec, HeadSpec) else spec.batch, dynamic=dynamic,
    )  # fmt: skip
    found = interface(split_file(path)).outputs[0]
    if spec.labels and found.shape[1:] != (len(spec.labels),):
        raise DataValidationError(f"the exported graph gives {found}, not [?, {len(spec.labels)}] (one a label)")
    return made


def export_module(
    model: nn.Module, shape: tuple[int, ...], path: Path, *, output: str, opset: int, metadata: dict[str, str],
    exporter: Exporter = "auto", further: Sequence[str] = (), batch: int | None = None, dynamic: bool = False,
) -> Exported:  # fmt: skip
    """Write `model` (evaluation mode, one input float32 [N, *shape]; outputs `output`, `further`) to `path` as ONNX.

    The batch is free, but where the model takes `batch` alone; with `dynamic` the sizes behind the channels are free,
    too. The same weights and arguments give the same bytes. With `auto` the graph is that of the exporter on
    TorchScript; where that fails, or its graph does not answer as the model does, of the newer one.

    Raises:
        DataValidationError: the model cannot be exported, or no graph of it has a free batch and answers as it does.
        ConfigurationError: the sizes are to be free, and the model is built for one size.
    """
    import torch

    how = _How(torch.zeros(batch or 2, *shape), [output, *further], opset, batch)  # 1 would be taken for a constant
    if dynamic:
        how = replace(how, kept=kept_sizes(model, how.example))
    wanted = wanted_of(model, shape, batch)
    if len(wanted.outputs) != len(how.outputs):
        raise DataValidationError(f"the model gives {len(wanted.outputs)} outputs, {len(how.outputs)} are named")
    refused: dict[ExporterName, str] = {}
    tried: tuple[ExporterName, ...] = ("torchscript", "dynamo") if exporter == "auto" else (exporter,)
    for name in tried:
        reason = _made(name, model, path, how) or graph_disagreement(wanted, path)
        if reason is None:
            append_metadata(path, metadata)
            return Exported(exporter=name, opset=interface(split_file(path)).opset, refused=refused)
        refused[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    advice = ""
    if refused.get("torchscript", "").startswith("on noise"):
        advice = (
            ". Branches that depend on values, and sizes taken as Python's numbers, are constants in a trace: script "
            "the model with torch.jit.script, and import it as torchscript"
        )
    raise DataValidationError(f"the model cannot be exported for an input of [N, {_sizes(shape)}]: {reasons}{advice}")


@dataclass(frozen=True)
class _How:
    """What every exporter is told; `kept`: of each output the sizes that do not follow those of the input."""

    example: Tensor
    outputs: list[str]
    opset: int
    batch: int | None
    kept: OutputSizes | None = None


def _made(exporter: ExporterName, model: nn.Module, path: Path, how: _How) -> str | None:
    """Write what `exporter` makes of `model` to `path`; return why it is no graph with the batch asked for, or None.

    Raises:
        DataValidationError: the model needs a newer opset.
    """
    import torch

    example, outputs, opset, batch = how.example, how.outputs, how.opset, how.batch
    axes = free_axes(example, outputs, batch, how.kept)
    try:
        if exporter == "dynamo":
            if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
                return "the model is TorchScript, which torch.export does not take"
            if batch is not None or how.kept is not None:
                return "it is asked for graphs with a free batch alone"
            export_captured(model, example, path, INPUT, outputs, opset)
        elif is_streamed(model):
            with without_weights(model) as weights:
                _trace(model, example, path, outputs, axes, opset, export_params=False, do_constant_folding=False)
            add_weights(path, weights)
        else:
            _trace(model, example, path, outputs, axes, opset)
        name_output_sizes(path, model, example, batch, how.kept)
        found = interface(read_graph(path))
    except (RuntimeError, TypeError, ValueError, DataValidationError) as error:
        refuse_older_opset(error, opset)
        return str(error).strip().splitlines()[0]
    if len(found.inputs) != 1 or found.has_free_batch != (batch is None):
        shown = ", ".join(map(str, (*found.inputs, *found.outputs)))
        return f"the exported graph has a fixed batch or more than one input: {shown}"
    return None


OutputSizes = list[tuple[int | None, ...]]
"""Of each output its sizes without the batch; None: a free one."""


def kept_sizes(model: nn.Module, example: Tensor) -> OutputSizes:
    """Find out by running `model` at two sizes which sizes of its outputs follow those of the input.

    Raises:
        ConfigurationError: it is built for one size.
    """
    if example.ndim <= SPATIAL:
        raise ConfigurationError("--dynamic_size frees the sizes behind the channels, and this model takes none")
    given = _given_sizes(model, example)
    try:
        other = _given_sizes(model, _larger(example))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigurationError(
            f"the model is built for inputs of [N, {_sizes(tuple(example.shape[1:]))}] and takes no larger ones: leave "
            f"--dynamic_size out ({(str(error).strip().splitlines() or [''])[-1]})"
        ) from error
    return [
        tuple(size if size == another else None for size, another in zip(sizes, others, strict=True))
        for sizes, others in zip(given, other, strict=True)
    ]


def free_axes(
    example: Tensor, outputs: Sequence[str], batch: int | None, kept: OutputSizes | None
) -> dict[str, dict[int, str]]:
    """Return the free axes of the input and of each output: number -> name; `kept` None: the batch alone is free."""
    first: dict[int, str] = {} if batch else {0: "N"}
    if kept is None:
        return {name: dict(first) for name in (INPUT, *outputs) if first}
    names = ("height", "width") if example.ndim == SPATIAL + 2 else ("depth", "height", "width")
    axes = {INPUT: first | dict(zip(range(SPATIAL, example.ndim), names, strict=False))}
    for name, sizes in zip(outputs, kept, strict=True):
        axes[name] = first | {axis: f"{name}_{axis}" for axis, size in enumerate(sizes, start=1) if size is None}
    return axes


def _larger(example: Tensor) -> Tensor:
    """Return zeros whose sizes behind the channels are larger by half, in steps of 32, for strides."""
    sizes = [size + (size // 2 // 32 * 32 or 32) for size in example.shape[SPATIAL:]]
    return example.new_zeros((*example.shape[:SPATIAL], *sizes))


def _given_sizes(model: nn.Module, example: Tensor) -> OutputSizes:
    import torch

    with torch.inference_mode():
        given = model(example)
    return [tuple(tensor.shape[1:]) for tensor in (given if isinstance(given, tuple | list) else (given,))]


def _trace(
    model: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], axes: dict[str, dict[int, str]], opset: int,
    **options: Any,
) -> None:  # fmt: skip
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's notes on shapes; verification tries several batch sizes
        torch.onnx.export(
            model, (example,), str(path), input_names=[INPUT], output_names=list(outputs), opset_version=opset,
            dynamic_axes=axes, dynamo=False, **options,
        )  # fmt: skip


def name_output_sizes(
    path: Path, model: nn.Module, example: Tensor, batch: int | None, kept: OutputSizes | None
) -> None:
    """Write the sizes of the outputs into the graph at `path`, where the exporter did not find them out."""
    import onnx

    known = [tensor.shape for tensor in interface(split_file(path)).outputs]
    if kept is None and all(None not in shape[1:] and shape[0] == batch for shape in known):
        return
    wanted = [(batch, *sizes) for sizes in (kept or _given_sizes(model, example))]
    graph = onnx.load(str(path))
    for value, shape in zip(graph.graph.output, wanted, strict=False):
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(shape):
            continue
        for dim, size in zip(dims, shape, strict=True):
            if size is not None:
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
