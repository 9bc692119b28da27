"""A picture and a model of pictures, made without any library, so that tests of every environment can have them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib

from tests.support.tiny_onnx import pixels_model

GRAY = {"channels": 1, "mean": [0.0], "std": [1.0]}


def picture_zip(*, swap: bool = False, **how: object) -> bytes:
    """Return the archive of a model that gives its 4 x 4 pixels (gray where not said otherwise) as probabilities."""
    preprocessing = {"height": 4, "width": 4, **GRAY, **how}
    channels = preprocessing["channels"]
    labels = [f"pixel {index}" for index in range(16 * channels)]
    if swap:
        labels[:2] = labels[1::-1]
    spec = {
        "group": "g", "architecture": "none", "labels": labels, "output": "probabilities", "snapshot_id": None,
        "preprocessing": preprocessing,
    }  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", pixels_model(channels, 4, 4))
        archive.writestr("model.json", json.dumps(spec))
    return buffer.getvalue()


def gray_png(value: int) -> bytes:
    """Return a 4 x 4 gray PNG, by the format's specification: the services have no library for pictures."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([value] * 4) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
