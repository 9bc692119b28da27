"""What an ONNX file says about itself: inputs, outputs, opset, metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion_jobs.onnx.mapped_file import split_file
from jobkit.errors import DataValidationError


@dataclass(frozen=True)
class TensorInterface:
    """An input or output. `shape`: a size each, None where the size is free; `dtype`: NumPy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class GraphInterface:
    """What can be asked of a graph from outside."""

    inputs: tuple[TensorInterface, ...]
    outputs: tuple[TensorInterface, ...]
    opset: int
    metadata: dict[str, str]

    @property
    def judged_as(self) -> str:
        """What the first output is compared as: `multi_label` where the graph says so of itself, else its name."""
        return "multi_label" if self.metadata.get("multi_label") == "true" else self.outputs[0].name

    @property
    def has_free_batch(self) -> bool:
        """Whether the first dimension of every input and output is free."""
        return all(tensor.shape and tensor.shape[0] is None for tensor in (*self.inputs, *self.outputs))


def read_graph(path: Path) -> Any:
    """Return the `onnx.ModelProto` at `path` after ONNX's own checks; its large weights stay in the file.

    They refer to it as ONNX's external data: what runs the graph has to be told the file's folder.

    Raises:
        DataValidationError: the file is not ONNX, is cut off, breaks ONNX's rules, or its external weights are missing
            or elsewhere.
    """
    import onnx

    model = split_file(path)
    for tensor in _tensors(model):
        _refuse_weights_elsewhere(path, tensor)
    try:
        _refuse_newer_opset(path, model)
        onnx.checker.check_model(_with_weights_as_inputs(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise DataValidationError(f"{path.name} breaks the rules of ONNX: {str(error).strip()}") from error
    return model


def _with_weights_as_inputs(model: Any) -> Any:
    """Return the graph with inputs in the place of its weights: ONNX's checks look at nothing but their types."""
    import onnx

    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    graph = checked.graph
    apart = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    known = {value.name for value in graph.input}
    for tensor in apart:
        if tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    return checked


def _refuse_newer_opset(path: Path, model: Any) -> None:
    import onnx

    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > known:
            raise DataValidationError(
                f"{path.name} has opset {entry.version}, {known} is the newest known: export with a lower one"
            )


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of a message, however deep: weights, and constants of nodes, subgraphs and functions."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                if isinstance(part, onnx.TensorProto):
                    yield part
                else:
                    yield from _tensors(part)


def external_files(model: Any, name: str) -> list[str]:
    """Return the names of the files beside the ONNX file `name` that hold weights of `model`.

    Raises:
        DataValidationError: one is not beside it: what runs the graph would read any file of this host.
    """
    found = {entry.value: tensor.name for tensor in _tensors(model) for entry in tensor.external_data
             if entry.key == "location" and entry.value != name}  # fmt: skip
    for location, tensor in found.items():
        if Path(location).name != location:
            raise DataValidationError(
                f"{name} keeps the weights of {tensor!r} in {location!r}, which is not in its folder"
            )
    return sorted(found)


def _refuse_weights_elsewhere(path: Path, tensor: Any) -> None:
    """Refuse weights that are not in the graph's own folder: what runs it would read any file of this host."""
    for entry in tensor.external_data:
        if entry.key != "location":
            continue
        place = path.parent / entry.value
        if Path(entry.value).name != entry.value or place.is_symlink():
            raise DataValidationError(
                f"{path.name} keeps the weights of {tensor.name!r} in {entry.value!r}, which is not in its folder"
            )
        if not place.is_file():
            raise DataValidationError(
                f"{path.name} keeps the weights of {tensor.name!r} in {entry.value!r}, which is missing"
            )


def interface(model: Any) -> GraphInterface:
    """Return the interface of an `onnx.ModelProto`.

    Raises:
        DataValidationError: an output has no shape; nothing can be generated from it.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    return GraphInterface(
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in initialized),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def structure_sha256(model: Any) -> str:
    """Return a digest of what an `onnx.ModelProto` computes with, but for its numbers.

    Two trainings of one architecture have the same; another architecture, input size or number of classes has another.
    """
    graph = model.graph
    nodes = [
        [node.domain, node.op_type, [[a.name, _without_numbers(a)] for a in node.attribute], len(node.output)]
        for node in graph.node
    ]
    weights = [[tensor.data_type, list(tensor.dims)] for tensor in graph.initializer]
    ends = [str(_tensor(value)) for value in (*graph.input, *graph.output)]
    return hashlib.sha256(compact_json([nodes, weights, ends]).encode()).hexdigest()


def _without_numbers(attribute: Any) -> str:
    if attribute.HasField("t"):
        return f"{attribute.t.data_type} {list(attribute.t.dims)}"
    return "" if attribute.HasField("g") else str(attribute.SerializeToString(deterministic=True).hex())


def _tensor(value: Any) -> TensorInterface:
    import onnx

    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise DataValidationError(f"{value.name!r} has no shape in the ONNX graph")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorInterface(value.name, dtype, shape)


def append_metadata(path: Path, values: dict[str, str]) -> None:
    """Put `values` into the `metadata_props` of the ONNX file at `path`, which has none of these keys.

    The encoding of a message followed by that of another is the encoding of both merged (protobuf's rule), so that a
    large model need not be read and written again.
    """
    import onnx

    addition = onnx.ModelProto()
    onnx.helper.set_model_props(addition, dict(sorted(values.items())))
    with path.open("ab") as file:
        file.write(addition.SerializeToString())


def compact_json(value: Any) -> str:
    """Return `value` as JSON without blanks, keys sorted: the same value always gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
