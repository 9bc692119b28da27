"""A graph of the users' own: looked over, run on zeros, written as one file that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from conversion_jobs.families.probing import BATCHES, LARGEST_EXAMPLE
from conversion_jobs.onnx.graph import external_files, interface, read_graph
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.onnx.session import session
from conversion_jobs.sandboxed.exporting import GRAPH
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import OutputTensor

OLDEST_OPSET = 9  # the oldest that TensorRT's parser and ONNX Runtime both take
# ONNX's own, and what ONNX Runtime brings along. Another one needs a library of operators, which nothing here serves.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
LARGEST = 2**31 - 2**20  # bytes: a message of protobuf ends at 2 GiB


class OwnGraph(BaseModel):
    """What a graph takes and gives: `shape` and those of `outputs` without the batch; see `Imported` for the others."""

    input_name: str
    shape: tuple[int | None, ...]
    outputs: list[OutputTensor]
    batch: int | None
    notes: list[str]


def list_external_files(work: Path, graph: Path) -> list[str]:
    """Return the names of the files beside `graph` that hold weights of it.

    Raises:
        DataValidationError: it is not ONNX; or keeps weights elsewhere than in its own folder.
    """
    del work
    return external_files(split_file(graph), graph.name)


def take_graph(work: Path, graph: Path, sizes: list[int] | None, exact: bool) -> OwnGraph:
    """Write the graph to `work` as one file, if it is one that can be served.

    `sizes` of one input stand for those that the graph leaves free; where they are `exact`, its own have to be these.

    Raises:
        DataValidationError: it breaks ONNX's rules, has weights elsewhere, or does not run.
        ConfigurationError: it needs what ONNX Runtime, TensorRT or the steps after this one do not have; the message
            says what to do.
    """
    import onnx

    model = read_graph(graph)
    notes = _refuse_unknown(model)
    found = interface(model)
    if len(found.inputs) != 1:
        named = ", ".join(map(str, found.inputs)) or "none"
        raise ConfigurationError(f"{graph.name} has the inputs {named}: models of one input are served")
    (entry,) = found.inputs
    for tensor in (entry, *found.outputs):
        if tensor.dtype != "float32":
            raise ConfigurationError(
                f"{graph.name} has {tensor}: inputs and outputs have to be float32; what is inside may be half "
                "precision (export it with inputs and outputs kept in float32)"
            )
    if not entry.shape:
        raise ConfigurationError(f"{graph.name} takes {entry}: its first dimension has to be the batch")
    shape = _example_shape(graph.name, entry.shape[1:], sizes, exact)
    running = session(model, graph.parent, graph.name)
    batch, given = _run(running, entry.name, entry.shape[0], shape, graph.name)
    if batch:
        notes.append(f"its batch is fixed: it takes {batch} inputs at once, no more and no fewer, and is served so")
    outputs = [
        OutputTensor(name=tensor.name, shape=_kept(tensor.shape, value.shape, None in entry.shape[1:]))
        for tensor, value in zip(found.outputs, given, strict=True)
    ]
    whole = onnx.load(str(graph))  # with weights that lie beside it
    if whole.ByteSize() > LARGEST:
        raise ConfigurationError(f"{graph.name} has more than 2 GiB of weights: it does not fit in one ONNX file")
    _name_sizes(whole, batch, outputs)
    del whole.metadata_props[:]
    onnx.save(whole, str(work / GRAPH))
    return OwnGraph(input_name=entry.name, shape=entry.shape[1:], outputs=outputs, batch=batch, notes=notes)


def _refuse_unknown(model: Any) -> list[str]:
    """Refuse operators of libraries, and opsets that are too old; return what to say of the others."""
    own = {function.domain for function in model.functions}  # these are written out in the file itself
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    used = {node.domain for node in _with_subgraphs(nodes)}
    if unknown := sorted(used - own - set(DOMAINS)):
        names = sorted({node.op_type for node in _with_subgraphs(nodes) if node.domain in unknown})
        raise ConfigurationError(
            f"the graph has operators of {', '.join(unknown)} ({', '.join(names)}), which neither ONNX Runtime nor "
            "TensorRT knows: export it without them"
        )
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset < OLDEST_OPSET:
        raise ConfigurationError(
            f"the graph has opset {opset}, {OLDEST_OPSET} is the oldest that is taken: export it again, or convert it "
            "with onnx.version_converter"
        )
    if "com.microsoft" in used:
        return ["it has operators of ONNX Runtime alone (com.microsoft): TensorRT builds no plan of it"]
    return []


def _with_subgraphs(nodes: Any) -> list[Any]:
    found = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += _with_subgraphs(graph.node)
    return found


def _example_shape(
    name: str, declared: tuple[int | None, ...], sizes: list[int] | None, exact: bool
) -> tuple[int, ...]:
    """Return sizes to run with: the graph's own, `sizes` where it leaves them free."""
    shown = ", ".join("?" if size is None else str(size) for size in declared)
    if sizes is None:
        fixed = tuple(size for size in declared if size is not None)
        if len(fixed) != len(declared):
            raise ConfigurationError(f"{name} takes inputs of [N, {shown}]: --input_shape says which sizes verify it")
        return fixed
    if len(sizes) != len(declared) or (
        exact and any(own not in (None, size) for own, size in zip(declared, sizes, strict=True))
    ):
        raise ConfigurationError(f"{name} takes inputs of [N, {shown}], not of [N, {', '.join(map(str, sizes))}]")
    return tuple(size if own is None else own for own, size in zip(declared, sizes, strict=True))


def _run(
    running: Any, name: str, declared: int | None, shape: tuple[int, ...], file: str
) -> tuple[int | None, list[Any]]:
    """Return the one batch size that the graph takes, None: any, and what it gives for one batch."""
    reason = ""

    def rows(batch: int) -> list[Any] | None:
        nonlocal reason
        try:
            given = running.run(None, {name: np.zeros((batch, *shape), np.float32)})
        except Exception as error:  # noqa: BLE001 - its errors share no base class that is public
            reason = str(error).strip().splitlines()[0]
            return None
        if all(value.ndim and len(value) == batch for value in given):
            return list(given)
        reason = f"it gives {', '.join(str(list(value.shape)) for value in given)} for {batch} inputs: no row an input"
        return None

    if declared is None and (given := rows(2)) is not None and rows(1) is not None:
        return None, given
    for batch in [declared] if declared else BATCHES:
        if 4 * batch * int(np.prod(shape)) <= max(LARGEST_EXAMPLE, 4 * int(np.prod(shape))):
            found = rows(batch)
            if found is not None:
                return batch, found
    raise DataValidationError(f"{file} does not run on float32 inputs of [N, {', '.join(map(str, shape))}]: {reason}")


def _kept(declared: tuple[int | None, ...], given: tuple[int, ...], has_free_sizes: bool) -> tuple[int | None, ...]:
    """Return an output's sizes without the batch: those of a run, but where they follow free sizes of the input."""
    if not has_free_sizes:
        return tuple(given[1:])
    known = declared[1:] if len(declared) == len(given) else (None,) * (len(given) - 1)
    return tuple(known)


def _name_sizes(model: Any, batch: int | None, outputs: list[OutputTensor]) -> None:
    """Write into the graph what was found out: whether the batch is free, and the sizes of the outputs."""
    first = next(value for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer})
    dim = first.type.tensor_type.shape.dim[0]
    if batch:
        dim.dim_value = batch
    for value, tensor in zip(model.graph.output, outputs, strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for number, size in enumerate((batch, *tensor.shape)):
            if size is None:
                shape.dim.add(dim_param="N" if not number else f"{tensor.name}_{number}")
            else:
                shape.dim.add(dim_value=size)
