"""ONNX Runtime on the CPU: outputs, intermediate tensors, latency."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.mapped_file import split_file
from jobkit.errors import DataValidationError

BUDGET = 10.0  # seconds to time one batch size
FP16_MAX = 65504.0  # the largest finite half-precision number (IEEE 754-2008)


class OnnxModel:
    """A graph that is ready to run; one thread, as in the serving backend. Its weights stay in the file, mapped.

    Raises:
        DataValidationError: ONNX Runtime does not take the file.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session = session(split_file(path), path.parent, path.name, threads)
        self.input = self.session.get_inputs()[0].name
        first = self.session.get_inputs()[0].shape[0]
        self.batch = first if isinstance(first, int) else None  # the one that it takes; None: any
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        """Return the first output for `inputs` [n, ...], computed in batches of at most `batch`.

        Raises:
            DataValidationError: the graph cannot run on this batch size.
        """
        return self.run_all(inputs, batch, self.outputs[:1])[0]

    def run_all(
        self, inputs: NDArray[np.float32], batch: int, names: list[str] | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the outputs called `names`, by default all, for `inputs` [n, ...], as `run` does.

        A graph with a fixed batch is given batches of that size; the last one is filled up, its filling is cut off.
        """
        parts, size = [], self.batch or batch
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            given = part if self.batch is None else filled(part, self.batch)
            try:
                parts.append([output[: len(part)] for output in self.session.run(names, {self.input: given})])
            except Exception as error:
                raise DataValidationError(f"the graph fails on a batch of {len(part)}: {error}") from error
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def filled(part: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Return the inputs [n, ...] as a batch of `batch`: the first ones again behind the last."""
    return part if len(part) == batch else np.resize(part, (batch, *part.shape[1:]))


def session(model: Any, folder: Path | None, name: str, threads: int = 1, *, lean: bool = False) -> Any:
    """Return ONNX Runtime's session for an `onnx.ModelProto`, whose weights lie in it or in files of `folder`.

    With `lean` the nodes run in an order in which tensors are free early, not the one that serves.

    Raises:
        DataValidationError: ONNX Runtime does not take the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if lean:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class that is public
        raise DataValidationError(f"ONNX Runtime does not take {name}: {error}") from error


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call."""

    batch: int
    median: float
    p90: float
    p99: float


def measure_latency(model: OnnxModel, inputs: NDArray[np.float32], batch: int, seconds: float = 1.0) -> Latency:
    """Time single calls on a batch for `seconds` after a warm-up of as long: 2 to 10 calls, then 5 to 200."""
    part = np.resize(inputs, (batch, *inputs.shape[1:]))
    times: list[float] = []
    started = time.perf_counter()
    for call in range(10):
        model.run(part, batch)
        if call > 0 and time.perf_counter() - started > seconds:
            break
    started = time.perf_counter()
    while len(times) < 5 or (len(times) < 200 and time.perf_counter() - started < seconds):
        before = time.perf_counter()
        model.run(part, batch)
        times.append((time.perf_counter() - before) * 1000)
    median, p90, p99 = np.percentile(times, [50, 90, 99])
    return Latency(batch=batch, median=round(median, 3), p90=round(p90, 3), p99=round(p99, 3))


def measure_latencies(model: OnnxModel, inputs: NDArray[np.float32], batches: Sequence[int]) -> list[Latency]:
    """Time each batch size, the smallest first; where one's calls would take more than `BUDGET`, it is left out."""
    found: list[Latency] = []
    for batch in sorted(batches):
        if found and 4 * found[-1].median / 1000 * batch / found[-1].batch > BUDGET:
            break
        found.append(measure_latency(model, inputs, batch))
    return found


@dataclass(frozen=True)
class TensorRange:
    """The largest magnitude that a node's output took."""

    node: str
    operator: str
    largest: float


class Intermediates:
    """Every float32 tensor that the nodes of an `onnx.ModelProto` compute; weights outside of it are in `folder`."""

    def __init__(self, model: Any, folder: Path | None = None) -> None:
        import onnx

        exposed, names = _exposed(model)
        outputs = {value.name for value in model.graph.output}
        exposed.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names - outputs
        )
        self.nodes = [(node, name) for node in model.graph.node for name in node.output]
        self._session = session(exposed, folder, "the graph")

    def tensors(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors for `inputs` [n, ...] by name, in graph order."""
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, {self._session.get_inputs()[0].name: inputs}), strict=True))
        return {name: values[name] for _, name in self.nodes if name in values}


def _exposed(model: Any) -> tuple[Any, set[str]]:
    """Return a copy of a graph, and the names of the float32 tensors that its nodes compute."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = onnx.shape_inference.infer_shapes(model).graph
    infos = [*known.value_info, *known.output]
    floats = {value.name for value in infos if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return copy, floats & {name for node in model.graph.node for name in node.output}


def largest_values(model: Any, inputs: NDArray[np.float32], folder: Path | None = None) -> list[TensorRange]:
    """Return the largest magnitude of each node's float32 outputs over `inputs`; a NaN counts as infinite.

    The graph itself takes the magnitudes, picture by picture, each where its tensor is made: no intermediate tensor is
    kept. Those of a detector at 640 pixels are half a gigabyte. Weights outside of the graph are in `folder`.
    """
    import onnx

    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    known = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type for value in (*known.value_info, *known.output)}
    floats = {name for name, kind in types.items() if kind.elem_type == onnx.TensorProto.FLOAT}
    del measured.graph.output[:], measured.graph.node[:]
    nodes: list[tuple[Any, str]] = []
    for node in model.graph.node:
        measured.graph.node.append(node)
        for name in (name for name in node.output if name in floats):
            sizes = types[name].shape.dim[1:]
            _measure(measured.graph, name, len(nodes), may_be_empty=not all(dim.dim_value for dim in sizes))
            nodes.append((node, name))
    running = session(measured, folder, "the graph", os.cpu_count() or 1, lean=True)
    entry, batch = running.get_inputs()[0].name, running.get_inputs()[0].shape[0]
    largest = np.zeros(len(nodes), np.float64)
    for picture in inputs:
        part = filled(picture[None], batch) if isinstance(batch, int) else picture[None]
        found = np.array(running.run(None, {entry: part}), np.float64)
        largest = np.maximum(largest, np.where(np.isfinite(found[1::2]), found[0::2], np.inf))
    return [
        TensorRange(node.name or name, node.op_type, float(v)) for (node, name), v in zip(nodes, largest, strict=True)
    ]


def _measure(graph: Any, tensor: str, index: int, may_be_empty: bool) -> None:
    """Add outputs `magnitude/<index>` and `total/<index>`: the largest of |tensor| and their sum.

    The largest of some values may pass over a NaN, their sum does not.
    """
    from onnx import TensorProto, helper

    if may_be_empty:  # the largest of no values is an error: a zero beside them changes nothing
        flat, all_of_it, zero = f"flat/{index}", f"all/{index}", f"zero/{index}"
        graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT, [1], [0.0]))
        graph.initializer.append(helper.make_tensor(f"shape/{index}", TensorProto.INT64, [1], [-1]))
        graph.node.append(helper.make_node("Reshape", [tensor, f"shape/{index}"], [flat]))
        graph.node.append(helper.make_node("Concat", [flat, zero], [all_of_it], axis=0))
        tensor = all_of_it
    graph.node.append(helper.make_node("Abs", [tensor], [f"abs/{index}"]))
    for operator, name in (("ReduceMax", "magnitude"), ("ReduceSum", "total")):
        graph.node.append(helper.make_node(operator, [f"abs/{index}"], [f"{name}/{index}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"{name}/{index}", TensorProto.FLOAT, []))
