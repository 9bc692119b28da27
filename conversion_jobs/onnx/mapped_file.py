"""ONNX files read and written without a second copy of their weights.

An ONNX file is one protobuf message (onnx.proto3). Parsed as a whole, a model of 350 MB takes 700 MB and more. Here the
weights stay in the file and are mapped from it where they are needed, and go into a file one by one.
The encoding of a message followed by that of another is the encoding of both merged (protobuf's rule): so a file is
written in parts.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jobkit.errors import DataValidationError
from nightshift_common.protobuf_wire import Field, fields

KEPT = 1024  # bytes: smaller tensors (shapes, axes, scalars) stay in the graph, whose checks look at their values
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9  # field numbers of onnx.proto3


def split_file(path: Path) -> Any:
    """Return the `onnx.ModelProto` at `path` without its large weights: they refer to their places in the file.

    Such a reference is ONNX's external data, which ONNX Runtime maps into memory.

    Raises:
        DataValidationError: the file is not ONNX, or is cut off.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.stat().st_size:
        raise DataValidationError(f"{path.name} is not an ONNX file, or is cut off: it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return onnx.ModelProto.FromString(b"".join(_skeleton(data, path.name)))
        except (DecodeError, ValueError) as error:
            raise DataValidationError(f"{path.name} is not an ONNX file, or is cut off: {error}") from error


def _skeleton(data: mmap.mmap, name: str) -> list[bytes]:
    """Return the encoding of the graph in the file `name` without its large weights, in parts."""
    import onnx

    parts: list[bytes] = []
    for field in fields(data, 0, len(data)):
        if field.number != MODEL_GRAPH:
            parts.append(data[field.start : field.end])
            continue
        graph: list[bytes] = []
        for part in fields(data, field.content, field.end):
            raw = _raw_data(data, part) if part.number == GRAPH_INITIALIZER else None
            if raw is None or raw.end - raw.content < KEPT:
                graph.append(data[part.start : part.end])
                continue
            tensor = onnx.TensorProto.FromString(data[part.content : raw.start] + data[raw.end : part.end])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": name, "offset": raw.content, "length": raw.end - raw.content}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            size = int(np.prod(tensor.dims, dtype=np.int64)) * _bytes_of(tensor)
            if size != raw.end - raw.content:
                raise ValueError(f"{tensor.name!r} has {raw.end - raw.content} bytes for {list(tensor.dims)}")
            graph.append(_message(GRAPH_INITIALIZER, tensor.SerializeToString()))
        parts.append(_message(MODEL_GRAPH, b"".join(graph)))
    return parts


def _bytes_of(tensor: Any) -> int:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _raw_data(data: mmap.mmap, tensor: Field) -> Field | None:
    return next((f for f in fields(data, tensor.content, tensor.end) if f.number == TENSOR_RAW_DATA), None)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _prefix(number: int, length: int) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(length)


def _message(number: int, content: bytes) -> bytes:
    return _prefix(number, len(content)) + content


def append_weight(file: IO[bytes], name: str, value: NDArray[Any]) -> None:
    """Add an initializer to the graph in the ONNX file that is open at its end."""
    import onnx

    value = np.ascontiguousarray(value)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    header = onnx.TensorProto(name=name, data_type=data_type, dims=value.shape).SerializeToString()
    raw = _prefix(TENSOR_RAW_DATA, value.nbytes)
    tensor = _prefix(GRAPH_INITIALIZER, len(header) + len(raw) + value.nbytes)
    file.write(_prefix(MODEL_GRAPH, len(tensor) + len(header) + len(raw) + value.nbytes) + tensor + header + raw)
    file.write(value.data)
