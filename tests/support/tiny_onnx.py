"""The smallest useful ONNX file, written without the onnx package, so that tests of every environment can make one."""

from __future__ import annotations

import struct


def scaling_model(scale: float, width: int = 4) -> bytes:
    """Return an ONNX file: `output = input * scale`, both float32 [N, width], opset 13.

    The field numbers are those of onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
    """
    factor = _number(2, 1) + _bytes(8, b"scale") + _bytes(9, struct.pack("<f", scale))  # FLOAT, no dims: a scalar
    node = _bytes(1, b"input") + _bytes(1, b"scale") + _bytes(2, b"output") + _bytes(4, b"Mul")
    graph = _bytes(1, node) + _bytes(2, b"scaling") + _bytes(5, factor)
    graph += _bytes(11, _value(b"input", width)) + _bytes(12, _value(b"output", width))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13))


def pixels_model(channels: int, height: int, width: int) -> bytes:
    """Return an ONNX file that gives its input: float32 [N, C, H, W] -> `probabilities`, float32 [N, C * H * W]."""
    node = _bytes(1, b"input") + _bytes(2, b"probabilities") + _bytes(4, b"Flatten")
    graph = _bytes(1, node) + _bytes(2, b"pixels")
    graph += _bytes(11, _value(b"input", channels, height, width))
    graph += _bytes(12, _value(b"probabilities", channels * height * width))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13))


def scaling_config(name: str, width: int = 4, max_batch_size: int = 8) -> str:
    """Return the `config.pbtxt` under which Triton serves `scaling_model`."""
    return f"""name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [{{ name: "input", data_type: TYPE_FP32, dims: [{width}] }}]
output [{{ name: "output", data_type: TYPE_FP32, dims: [{width}] }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
dynamic_batching {{ }}
"""


def _value(name: bytes, *sizes: int) -> bytes:
    shape = _bytes(1, _bytes(2, b"N")) + b"".join(_bytes(1, _number(1, size)) for size in sizes)
    tensor = _number(1, 1) + _bytes(2, shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
