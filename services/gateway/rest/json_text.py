"""JSON text from strangers: measured before it is parsed, so that depth and sheer count cannot hurt.

RFC 8259 to the letter: UTF-8 without a byte order mark, no NaN, no Infinity, no lone surrogate. Of duplicate keys the
last one counts. An integer beyond 64 bits becomes a float, which every integer datatype then refuses.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import orjson

from penstock.errors import InvalidArgument, TooLarge

MAX_DEPTH: Final = 100
"""Triton's limit."""
MAX_CONTAINERS: Final = 1 << 20
"""Arrays and objects in one document: three bytes of text cost about seventy of memory."""
MAX_VALUES: Final = 1 << 23
"""Values in one document: two bytes of text cost up to thirty-two of memory."""

_KEPT: Final = b'[]{},"'
_DROPPED: Final = bytes(byte for byte in range(256) if byte not in _KEPT)
_STEP: Final = np.zeros(256, dtype=np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1
_SLICE: Final = 1 << 20


def parse(text: bytes, *, what: str = "body", max_depth: int = MAX_DEPTH) -> object:
    """The document as Python objects.

    Raises InvalidArgument for text that is not JSON or too deep, TooLarge for more values than MAX_VALUES or more
    arrays and objects than MAX_CONTAINERS.
    """
    _measure(text, what, max_depth)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"{what}: not valid JSON: {error}", field=what) from None


def _measure(text: bytes, what: str, max_depth: int) -> None:
    containers = text.count(b"[") + text.count(b"{")
    if containers <= max_depth and text.count(b",") <= MAX_VALUES:
        return  # not even brackets and commas inside of strings could break a limit
    structure = _structure(text)
    if structure.count(b"[") + structure.count(b"{") > MAX_CONTAINERS:
        raise TooLarge(f"{what}: more than {MAX_CONTAINERS} arrays and objects; send tensors flat or as binary data")
    if structure.count(b",") > MAX_VALUES:
        raise TooLarge(f"{what}: more than {MAX_VALUES} values; send tensors as binary data")
    if _depth(structure) > max_depth:
        raise InvalidArgument(f"{what}: JSON nested deeper than {max_depth}", field=what)


def _structure(text: bytes) -> bytes:
    """Brackets, braces and commas outside of strings."""
    if b"\\" in text:
        # Outside of strings a backslash is no JSON, so it does not matter what this does there.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(text.translate(None, _DROPPED).split(b'"')[::2])


def _depth(structure: bytes) -> int:
    """Deepest nesting; in slices, so that the measure itself stays small."""
    deepest, level = 0, 0
    for start in range(0, len(structure), _SLICE):
        steps = _STEP[np.frombuffer(structure, dtype=np.uint8, count=min(_SLICE, len(structure) - start), offset=start)]
        levels = np.cumsum(steps, dtype=np.int32)
        deepest = max(deepest, level + int(levels.max()))
        level += int(levels[-1])
    return deepest
