"""The reader of protobuf's wire format against Google's."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, empty_pb2
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_common.protobuf_wire import FIXED32, FIXED64, LENGTH_DELIMITED, Field, fields


def encoded(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


@st.composite
def field(draw: st.DrawFn) -> bytes:
    """A valid field, now and then with a number that is longer than it need be."""
    number, kind = draw(st.integers(1, (1 << 29) - 1)), draw(st.sampled_from([0, 1, 2, 5]))
    tag = encoded(number << 3 | kind)
    if kind == 0:
        value = encoded(draw(st.integers(0, (1 << 64) - 1)))
        return tag + (value[:-1] + bytes([value[-1] | 0x80, 0]) if draw(st.booleans()) and len(value) < 9 else value)
    content = draw(st.binary(max_size=20) if kind == 2 else st.binary(min_size=12 - kind * 8 // 5, max_size=12))
    return tag + (encoded(len(content)) if kind == 2 else b"") + content[: {1: 8, 2: 20, 5: 4}[kind]]


def ours(data: bytes, found: list[Field]) -> list[tuple[int, int, object]]:
    values = []
    for each in found:
        content = data[each.content : each.end]
        fixed = int.from_bytes(content, "little") if each.wire_type in (FIXED32, FIXED64) else None
        value = content if each.wire_type == LENGTH_DELIMITED else each.varint if fixed is None else fixed
        values.append((each.number, each.wire_type, value))
    return values


def googles(data: bytes) -> list[tuple[int, int, object]] | None:
    try:
        message = empty_pb2.Empty.FromString(data)
    except DecodeError:
        return None
    return [(each.field_number, each.wire_type, each.data) for each in UnknownFieldSet(message)]


@given(parts=st.lists(field()))
@settings(max_examples=500, deadline=None)
def test_valid_fields_are_those_that_google_reads_and_follow_one_another(parts: list[bytes]) -> None:
    data = b"".join(parts)
    found = list(fields(data, 0, len(data)))
    assert ours(data, found) == googles(data)
    assert [data[each.start : each.end] for each in found] == parts


@given(data=st.binary(max_size=40) | st.builds(lambda a, n: a[:n], field(), st.integers(0, 30)))
@settings(max_examples=2000, deadline=None)
def test_bytes_are_read_or_refused_as_google_does(data: bytes) -> None:
    expected = googles(data)
    try:
        found = ours(data, list(fields(data, 0, len(data))))
    except ValueError as error:
        assert expected is None or str(error).startswith(("wire type 3", "wire type 4"))
    else:
        assert found == expected


def test_a_nested_message_is_read_within_its_bounds_only() -> None:
    message = descriptor_pb2.FileDescriptorProto(name="a.proto", package="p")
    message.message_type.add(name="M").field.add(name="f", number=300)
    data = b"before" + message.SerializeToString() + b"after"
    by_number = {each.number: each for each in fields(data, 6, len(data) - 5)}
    assert data[by_number[1].content : by_number[1].end] == b"a.proto"
    (name, inner) = fields(data, by_number[4].content, by_number[4].end)
    assert data[name.content : name.end] == b"M"
    assert [each.varint for each in fields(data, inner.content, inner.end)] == [None, 300]
