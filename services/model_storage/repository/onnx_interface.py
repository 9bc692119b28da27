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

from nightshift_common.protobuf_wire import LENGTH_DELIMITED, Field, fields
from services.model_storage.errors import Refused

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
            graphs = [field for field in fields(content, 0, len(content)) if field.number == 7]
            inputs: list[Tensor] = []
            outputs: list[Tensor] = []
            weights: set[str] = set()
            for field in _parts(content, graphs[-1]):
                if field.number == 5:
                    weights |= {_text(content, name) for name in _all(content, field, 8)}
                elif field.number in (11, 12):
                    (inputs if field.number == 11 else outputs).append(_tensor(content, field))
    except (IndexError, KeyError, ValueError) as error:
        raise Refused(f"{path.name} is not an ONNX model whose inputs and outputs can be read: {error!r}") from error
    inputs = [tensor for tensor in inputs if tensor.name not in weights]
    if not inputs or not outputs:
        raise Refused(f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs: nothing to serve")
    return inputs, outputs


def _tensor(content: mmap.mmap, field: Field) -> Tensor:
    name = _text(content, _all(content, field, 1)[0])
    tensor = _all(content, _all(content, field, 2)[0], 1)[0]
    kind = _TRITON_TYPE[_number(_all(content, tensor, 1)[0])]
    sizes = []
    for shape in _all(content, tensor, 2):
        for dimension in _all(content, shape, 1):
            size = _all(content, dimension, 1)
            sizes.append(_number(size[0]) if size else None)
    return Tensor(name, kind, tuple(sizes))


def _all(content: mmap.mmap, message: Field, wanted: int) -> list[Field]:
    return [field for field in _parts(content, message) if field.number == wanted]


def _parts(content: mmap.mmap, message: Field) -> Iterator[Field]:
    return fields(content, *_span(message))


def _span(field: Field) -> tuple[int, int]:
    if field.wire_type != LENGTH_DELIMITED:
        raise ValueError(f"a number stands where a message should: field {field.number} at byte {field.start}")
    return field.content, field.end


def _number(field: Field) -> int:
    if field.varint is None:
        raise ValueError(f"a message stands where a number should: field {field.number} at byte {field.start}")
    return field.varint


def _text(content: mmap.mmap, field: Field) -> str:
    start, end = _span(field)
    return content[start:end].decode()
