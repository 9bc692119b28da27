"""Protobuf's wire format, read field by field where it lies: nothing is copied, and no message type has to be known.

Source: protobuf.dev/programming-guides/encoding. Groups (wire types 3 and 4) are not read: proto3 has none.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10  # 64 bits, 7 in a byte

Buffer = bytes | mmap.mmap


class Field(NamedTuple):
    """One field of a message: its tag starts at byte `start`, its content is `[content, end)`.

    `varint` is the number that it holds; None where it holds none.
    """

    number: int
    wire_type: int
    start: int
    content: int
    end: int
    varint: int | None


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in `data[start:end]`.

    Raises:
        ValueError: it is no message.
    """
    at = start
    while at < end:
        tag, content = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"field number {number} at byte {at}")
        value = None
        if wire_type == VARINT:
            value, after = _varint(data, content, end)
        elif wire_type == LENGTH_DELIMITED:
            length, content = _varint(data, content, end)
            after = content + length
        elif wire_type in (FIXED64, FIXED32):
            after = content + (8 if wire_type == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if after > end:
            raise ValueError(f"the field at byte {at} ends at {after}, beyond {end}")
        yield Field(number, wire_type, at, content, after, value)
        at = after


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """Return the number at byte `at`, of which 64 bits count, and where it ends."""
    value = 0
    for place in range(MAX_VARINT_BYTES):
        if at + place >= end:
            raise ValueError(f"the number at byte {at} is cut off")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & (1 << 64) - 1, at + place + 1
    raise ValueError(f"the number at byte {at} has no end")
