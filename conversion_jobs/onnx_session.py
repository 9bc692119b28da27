"""ONNX Runtime on the CPU: outputs, intermediate tensors, latency."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobkit.errors import DataRefused

FP16_MAX = 65504.0  # the largest finite half-precision number (IEEE 754-2008)


class OnnxModel:
    """A graph that is ready to run; one thread, as in the serving backend.

    Raises:
        DataRefused: ONNX Runtime does not take the file.
    """

    def __init__(self, source: Path | bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        content = str(source) if isinstance(source, Path) else source
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class that is public
            name = source.name if isinstance(source, Path) else "the graph"
            raise DataRefused(f"ONNX Runtime does not take {name}: {error}") from error
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


@dataclass(frozen=True)
class TensorRange:
    """The largest magnitude that a node's output took."""

    node: str
    operator: str
    largest: float


class Intermediates:
    """Every float32 tensor that the nodes of an `onnx.ModelProto` compute."""

    def __init__(self, model: Any) -> None:
        import onnx

        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        outputs = {value.name for value in model.graph.output}
        inferred = onnx.shape_inference.infer_shapes(exposed).graph.value_info
        floats = {v.name: v for v in inferred if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        for node in model.graph.node:
            exposed.graph.output.extend(floats[name] for name in node.output if name in floats and name not in outputs)
        self.nodes = [(node, name) for node in model.graph.node for name in node.output]
        self._session = OnnxModel(exposed.SerializeToString()).session

    def tensors(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors for `inputs` [n, ...] by name, in graph order."""
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, {self._session.get_inputs()[0].name: inputs}), strict=True))
        return {name: values[name] for _, name in self.nodes if name in values}


def largest_values(model: Any, inputs: NDArray[np.float32]) -> list[TensorRange]:
    """Return the largest magnitude of each node's float32 outputs over `inputs`; a NaN counts as infinite.

    The pictures go through one by one, so that the memory for intermediate tensors is that of one picture.
    """
    intermediates = Intermediates(model)
    largest: dict[str, float] = {}
    for start in range(len(inputs)):
        for name, value in intermediates.tensors(inputs[start : start + 1]).items():
            magnitude = np.nan_to_num(np.abs(value), nan=np.inf, posinf=np.inf).max(initial=0.0)
            largest[name] = max(largest.get(name, 0.0), float(magnitude))
    found = [(node, name) for node, name in intermediates.nodes if name in largest]
    return [TensorRange(node.name or name, node.op_type, largest[name]) for node, name in found]
