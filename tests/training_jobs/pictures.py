"""Pictures for tests: drawn, so that they need no file, and unlike each other."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from services.collect.importers import Item, add_items
from services.collect.store import Store
from tests.conftest import CollectServer


def picture(seed: int, side: int = 32, form: str = "PNG", **options: int) -> bytes:
    """Return a picture of random blobs as a file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, form, **options)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """Return a small PNG file whose header says that it has `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def items(count: int, classes: tuple[str, ...] = ("ant", "bee"), start: int = 0, picset_size: int = 1) -> list[Item]:
    """Return `count` good pictures of each class, in picsets of `picset_size`."""
    return [
        Item(f"{label}_{n}.png", picture(1000 * index + n), label, f"{label}-{n // picset_size}", 32, 32)
        for index, label in enumerate(classes)
        for n in range(start, start + count)
    ]


def item(name: str, content: bytes, label: str = "ant", picset: str | None = None) -> Item:
    """Return one picture to import."""
    return Item(name, content, label, picset or name, None, None)


def publish(server: CollectServer, group: str, pictures: list[Item], mode: str = "VALIDATED") -> int:
    """Put pictures into a collect server; return how many are new."""
    return add_items(Store(server.folder), group, pictures, mode).new
