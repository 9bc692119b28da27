"""Triton's `onnxruntime` backend where the native one is not at hand: runs `model.onnx` on the CPU from Python.

A model with `platform: "onnxruntime_onnx"` is served by it as it is: the repository needs no change for the real one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # Triton's stub puts it on the path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model's file and check its inputs and outputs against the configuration."""
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / name
        options = _options(config.get("parameters", {}))
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.batched = config.get("max_batch_size", 0) > 0
        _check("input", config["input"], self.session.get_inputs(), self.batched)
        _check("output", config["output"], self.session.get_outputs(), self.batched)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer `requests`; those that Triton's batcher put together go through the model together."""
        try:
            if not self.batched:
                return [self._response(r, self._run([self._arrays(r)])) for r in requests]
            arrays = [self._arrays(request) for request in requests]
            sizes = [len(request[0]) for request in arrays]
            results = self._run(arrays)
        except Exception as error:  # noqa: BLE001 - it belongs into the answer: raised, it would end the instance
            message = pb_utils.TritonError(f"onnxruntime: {error}")
            return [pb_utils.InferenceResponse(error=message) for _ in requests]
        ends = np.cumsum(sizes)
        return [
            self._response(request, [result[end - size : end] for result in results])
            for request, size, end in zip(requests, sizes, ends, strict=True)
        ]

    def _arrays(self, request: Any) -> list[Array]:
        return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]

    def _run(self, requests: list[list[Array]]) -> list[Array]:
        feeds: dict[str, Array] = {}
        for index, name in enumerate(self.inputs):
            parts = [arrays[index] for arrays in requests]
            feeds[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        results: list[Array] = self.session.run(self.outputs, feeds)
        return results

    def _response(self, request: Any, results: list[Array]) -> Any:
        wanted = set(request.requested_output_names())
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(result))
            for name, result in zip(self.outputs, results, strict=True)
            if name in wanted
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _options(parameters: dict[str, dict[str, str]]) -> onnxruntime.SessionOptions:
    """Return the session's options by the parameters that the native backend knows, too."""
    given = {name: int(parameters.get(name, {}).get("string_value") or default) for name, default in _THREADS.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given["intra_op_thread_count"]
    options.inter_op_num_threads = given["inter_op_thread_count"]
    if given["execution_mode"] == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.log_severity_level = 3
    return options


# One thread, where the native backend takes as many as there are cores: on few, more make the slowest answers slower.
_THREADS = {"intra_op_thread_count": 1, "inter_op_thread_count": 0, "execution_mode": 0}
_TYPES = {
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_STRING": "tensor(string)",
}


def _check(kind: str, configured: list[dict[str, Any]], graph: list[Any], batched: bool) -> None:
    """Raise where the configuration names a tensor that the graph has not, or gives it another type or shape."""
    known = {node.name: node for node in graph}
    for entry in configured:
        node = known.get(entry["name"])
        if node is None:
            raise pb_utils.TritonModelException(
                f"{kind} '{entry['name']}' is not in the model; it has: {sorted(known)}"
            )
        if _TYPES.get(entry["data_type"]) != node.type:
            raise pb_utils.TritonModelException(
                f"{kind} '{entry['name']}' is {node.type} in the model, {entry['data_type']} in the configuration"
            )
        dims = [int(dim) for dim in entry["dims"]]
        shape = list(node.shape)[1:] if batched else list(node.shape)
        fits = len(dims) == len(shape) and all(
            dim == -1 or not isinstance(size, int) or dim == size for dim, size in zip(dims, shape, strict=True)
        )
        if not fits:
            raise pb_utils.TritonModelException(
                f"{kind} '{entry['name']}' has the shape {list(node.shape)} in the model, the configuration says "
                f"{dims}{' after the batch dimension' if batched else ''}"
            )
