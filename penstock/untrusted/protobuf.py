"""Protocol buffers field by field, without a schema and without believing them (pure).

What cannot be followed is refused, so that a reader built on this can never see less than the parser behind it.
Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.errors import InvalidArgument

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def fields(data: bytes, start: int, end: int, what: str) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, value (or offset of the content) and size of the content, one after another.

    what: the file's kind with its article, for the words of InvalidArgument, which is raised for damaged bytes.
    """
    at = start
    while at < end:
        key, at = varint(data, at, end, what)
        number, wire = key >> 3, key & 7
        value, size = 0, 0
        if wire == VARINT:
            value, at = varint(data, at, end, what)
        elif wire == LENGTH:
            size, at = varint(data, at, end, what)
            value = at
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            value = at
        else:  # groups: long out of use, and a way to hide a field from a reader that skips them differently
            raise InvalidArgument(f"the file is not {what}")
        if wire != VARINT:
            at += size
        # A tag has 32 bits: a parser that cut a longer one off would see another field than this one.
        if number == 0 or key > 0xFFFF_FFFF or at > end:
            raise damaged(what)
        yield number, wire, value, size


def varint(data: bytes, at: int, end: int, what: str) -> tuple[int, int]:
    """The number at an offset, 64 bits of it, and where the next field begins."""
    value, shift = 0, 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise damaged(what)


def damaged(what: str) -> InvalidArgument:
    """The error for bytes that end where they should not."""
    return InvalidArgument(f"the file is not {what}, or it is cut short")
