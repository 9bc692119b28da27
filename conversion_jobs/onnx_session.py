"""ONNX Runtime on the CPU: outputs, intermediate tensors, latency."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx_file import split_file
from jobkit.errors import DataRefused

BUDGET = 10.0  # seconds to time one batch size
FP16_MAX = 65504.0  # the largest finite half-precision number (IEEE 754-2008)


class OnnxModel:
    """A graph that is ready to run; one thread, as in the serving backend. Its weights stay in the file, mapped.

    Raises:
        DataRefused: ONNX Runtime does not take the file.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session = session(split_file(path), path.parent, path.name, threads)
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        """Return the first output for `inputs` [n, ...], computed in batches of at most `batch`.

        Raises:
            DataRefused: the graph cannot run on this batch size.
        """
        return self.run_all(inputs, batch, self.outputs[:1])[0]

    def run_all(
        self, inputs: NDArray[np.float32], batch: int, names: list[str] | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the outputs called `names`, by default all, for `inputs` [n, ...], as `run` does."""
        parts = []
        for start in range(0, len(inputs), batch):
            part = inputs[start : start + batch]
            try:
                parts.append(self.session.run(names, {self.input: part}))
            except Exception as error:
                raise DataRefused(f"the graph fails on a batch of {len(part)}: {error}") from error
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def session(model: Any, folder: Path | None, name: str, threads: int = 1, *, lean: bool = False) -> Any:
    """Return ONNX Runtime's session for an `onnx.ModelProto`, whose weights lie in it or in files of `folder`.

    With `lean` the nodes run in an order in which tensors are free early, not the one that serves.

    Raises:
        DataRefused: ONNX Runtime does not take the graph.
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
        raise DataRefused(f"ONNX Runtime does not take {name}: {error}") from error


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

    The graph itself is given nodes that reduce each tensor to its least and its largest value and to the sum of its
    magnitudes (which is not finite where a value is not): no tensor is kept, and only the numbers come out.
    """
    import onnx

    exposed, names = _exposed(model)
    del exposed.graph.output[:]
    nodes = list(exposed.graph.node)
    del exposed.graph.node[:]
    reduced: list[tuple[str, str]] = []
    for node in nodes:  # each tensor is reduced where it is made, and free after its last use
        exposed.graph.node.append(node)
        for name, operator in itertools.product(names & set(node.output), ("ReduceMax", "ReduceMin", "ReduceL1")):
            output = f"{operator} of {name}"
            exposed.graph.node.append(onnx.helper.make_node(operator, [name], [output], name=output, keepdims=0))
            exposed.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
            reduced.append((name, operator))
    reducing = session(exposed, folder, "the graph", os.cpu_count() or 1, lean=True)
    entry = reducing.get_inputs()[0].name
    largest: dict[str, float] = {}
    for start in range(len(inputs)):
        values = reducing.run(None, {entry: inputs[start : start + 1]})
        for (name, operator), value in zip(reduced, values, strict=True):
            magnitude = (np.inf if not np.isfinite(value) else 0.0) if operator == "ReduceL1" else abs(float(value))
            largest[name] = max(largest.get(name, 0.0), float(np.nan_to_num(magnitude, nan=np.inf)))
    found = [(node, name) for node in model.graph.node for name in node.output if name in largest]
    return [TensorRange(node.name or name, node.op_type, largest[name]) for node, name in found]
