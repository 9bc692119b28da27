"""A model's inputs and outputs, read from its ONNX file without loading its weights.

Field numbers are those of onnx.proto3: ModelProto.graph 7; GraphProto.initializer 5, input 11, output 12;
ValueInfoProto.name 1, type 2; TypeProto.tensor_type 1; Tensor.elem_type 1, shape 2; TensorShapeProto.dim 1;
Dimension.dim_value 1; TensorProto.name 8.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from services.model_storage.errors import Refused

Value = int | tuple[int, int]  # a number, or where the bytes of a nested message or string start and end
_TRITON_TYPE = {  # TensorProto.DataType -> Triton's
    1: triton.TYPE_FP32, 2: triton.TYPE_UINT8, 3: triton.TYPE_INT8, 4: triton.TYPE_UINT16, 5: triton.TYPE_INT16,
    6: triton.TYPE_INT32, 7: triton.TYPE_INT64, 8: triton.TYPE_STRING, 9: triton.TYPE_BOOL, 10: triton.TYPE_FP16,
    11: triton.TYPE_FP64, 12: triton.TYPE_UINT32, 13: triton.TYPE_UINT64, 16: triton.TYPE_BF16,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output: `type` is Triton's data type, a free dimension is None."""

    name: str
    type: int
    shape: tuple[int | None, ...]


def read_interface(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs (without the weights) and the outputs of the model at `path`.

    Raises:
        Refused: it is not an ONNX model whose inputs and outputs are tensors.
    """
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            graphs = [value for number, value in _fields(content, 0, len(content)) if number == 7]
            inputs: list[Tensor] = []
            outputs: list[Tensor] = []
            weights: set[str] = set()
            for number, value in _fields(content, *_span(graphs[-1])):
                if number == 5:
                    weights |= {_text(content, name) for name in _all(content, value, 8)}
                elif number in (11, 12):
                    (inputs if number == 11 else outputs).append(_tensor(content, value))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path.name} is not an ONNX model whose inputs and outputs can be read: {error!r}") from error
    inputs = [tensor for tensor in inputs if tensor.name not in weights]
    if not inputs or not outputs:
        raise Refused(f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs: nothing to serve")
    return inputs, outputs


def _tensor(content: mmap.mmap, value: Value) -> Tensor:
    name = _text(content, _all(content, value, 1)[0])
    tensor = _all(content, _all(content, value, 2)[0], 1)[0]
    kind = _TRITON_TYPE[_number(_all(content, tensor, 1)[0])]
    sizes = []
    for shape in _all(content, tensor, 2):
        for dimension in _all(content, shape, 1):
            size = _all(content, dimension, 1)
            sizes.append(_number(size[0]) if size else None)
    return Tensor(name, kind, tuple(sizes))


def _all(content: mmap.mmap, message: Value, wanted: int) -> list[Value]:
    return [value for number, value in _fields(content, *_span(message)) if number == wanted]


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of the message in `content[at:end]` (protobuf's wire format)."""
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
        elif kind == 2:
            length, at = _varint(content, at)
            if at + length > end:
                raise ValueError("a field is longer than its message")
            yield key >> 3, (at, at + length)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _span(value: Value) -> tuple[int, int]:
    if isinstance(value, int):
        raise TypeError("a number stands where a message should")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise TypeError("a message stands where a number should")
    return value


def _text(content: mmap.mmap, value: Value) -> str:
    start, end = _span(value)
    return content[start:end].decode()
