"""A request's bytes taken apart without parsing them: what repeats, and what does not.

Requests of one client to one model are the same from call to call but for their id and their raw tensors. So those two
are cut out, and what is left (the head) is looked up among the heads that were parsed and checked before.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.tensors import Buffer

MAX_FIELDS = 256
"""Top-level fields; a request with more is parsed like any other message."""
MAX_HEAD_BYTES = 2048
_ID, _RAW = 0x1A, 0x3A  # tags of fields 3 and 7, length-delimited


class Parts(NamedTuple):
    """head: all other fields, as they came; id: as text; raws: views on the message, in order."""

    head: bytes
    id: str
    raws: list[memoryview]


def split(payload: Buffer) -> Parts | None:
    """The parts of a serialised ModelInferRequest (wire format: protobuf.dev/programming-guides/encoding).

    None for everything unusual, which is not the same as wrong: the parser has the last word on that.
    """
    view = memoryview(payload)
    at, end, start = 0, len(payload), 0
    heads: list[Buffer] = []
    raws: list[memoryview] = []
    id_ = ""
    try:
        for _ in range(MAX_FIELDS):
            if at >= end:
                break
            tag, size, begin = payload[at], payload[at + 1], at + 2
            if tag & 0x87 != 2 or tag < 8:
                return None
            if size >= 0x80:
                size, shift = size & 0x7F, 7
                while True:
                    byte = payload[begin]
                    begin += 1
                    size |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        break
                    shift += 7
                    if shift > 28:
                        return None
            stop = begin + size
            if tag in (_RAW, _ID):
                if start < at:
                    heads.append(payload[start:at])
                start = stop
                if tag == _RAW:
                    raws.append(view[begin:stop])
                else:
                    id_ = str(view[begin:stop], "utf-8")
            at = stop
    except (IndexError, UnicodeDecodeError):
        return None
    if at != end:
        return None
    if start < end:
        heads.append(payload[start:end])
    head = bytes(heads[0]) if len(heads) == 1 else b"".join(heads)
    return Parts(head, id_, raws) if len(head) <= MAX_HEAD_BYTES else None
