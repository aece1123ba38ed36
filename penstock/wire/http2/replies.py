"""What a server says, packed: header blocks that are always the same, trailers, refusals. Static table only, so that a
block means the same on every connection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final

from penstock.channel import error_trailer, text_of
from penstock.errors import PenstockError

from . import frames as f
from .hpack import integer, literal, literal_name
from .messages import sendable, write_binary, write_text

_CONTENT_TYPE: Final = literal("content-type", "application/grpc")
RESPONSE: Final = b"\x88" + _CONTENT_TYPE + literal("grpc-accept-encoding", "identity")
"""The block that begins an answer."""
_OK: Final = literal("grpc-status", "0")
_MAX_TRAILERS: Final = 8192

UNARY: Final = Struct(f">BHBBL{len(RESPONSE)}sBHBBLBL")
"""HEADERS, the head of DATA, and the prefix of the message: all that stands before a unary answer's payload."""
_OPENING: Final = Struct(f">BHBBL{len(RESPONSE)}s")
PREFIX: Final = Struct(">BL")
_SIZE: Final = len(RESPONSE)

_known: dict[tuple[str, str], bytes] = {}
_names: dict[str, bytes] = {}


def opening(stream: int) -> bytes:
    """HEADERS of an answer, by itself."""
    return _OPENING.pack(0, _SIZE, f.HEADERS, f.END_HEADERS, stream, RESPONSE)


def before_payload(stream: int, size: int) -> bytes:
    """Everything of a unary answer up to its payload."""
    framed = size + 5
    return UNARY.pack(
        0, _SIZE, f.HEADERS, f.END_HEADERS, stream, RESPONSE, framed >> 16, framed & 0xFFFF, f.DATA, 0, stream, 0, size
    )


def success(stream: int, trailers: Mapping[str, str]) -> bytes:
    """The trailers of an answer, with status OK. What gRPC could not send is left out."""
    block = _OK + b"".join(map(_field, trailers.items())) if trailers else _OK
    if len(block) > _MAX_TRAILERS:
        block = _OK
    return f.pack_head(0, len(block), f.HEADERS, 5, stream) + block


def passed(stream: int, block: bytes) -> bytes:
    """The trailers of an answer that somebody else gave well; the block is portable (hpack.py)."""
    return f.pack_head(0, len(block), f.HEADERS, 5, stream) + block


def failure(stream: int, error: PenstockError, request_id: str, *, begun: bool) -> bytes:
    """How a call ends by the error table: trailers, or, when nothing has been said yet, all in one block."""
    name, value = error_trailer(error, request_id)
    return ending(stream, error.code.grpc, text_of(error), ((name, write_binary(value)),), begun=begun)


def ending(stream: int, status: int, text: str, more: Iterable[tuple[str, str]], *, begun: bool) -> bytes:
    """Trailers with any status."""
    start = b"" if begun else b"\x88" + _CONTENT_TYPE + literal("grpc-accept-encoding", "identity")
    block = start + literal("grpc-status", str(status)) + literal("grpc-message", write_text(text))
    return f.headers(stream, block + b"".join(map(_field, more)), f.END_STREAM, f.DEFAULT_FRAME)


def http_status(stream: int, status: int) -> bytes:
    """The answer to what is not gRPC."""
    block = literal(":status", str(status)) + literal("content-type", "text/plain") + literal("content-length", "0")
    return f.headers(stream, block, f.END_STREAM, f.DEFAULT_FRAME)


def _field(field: tuple[str, str]) -> bytes:
    known = _known.get(field)
    if known is not None:
        return known
    name, value = field
    start = _names.get(name)
    if start is None:
        if len(_names) > 256:
            _names.clear()
        start = _names[name] = literal_name(name.lower())
    if not sendable(value):
        return b""
    raw = value.encode()
    size = len(raw)
    coded = start + (bytes((size,)) if size < 127 else integer(size, 0x7F, 0)) + raw
    if size < 64:
        if len(_known) >= 2048:
            _known.clear()
        _known[field] = coded
    return coded


def with_note(said: bytes, note: bytes) -> bytes:
    """The frame with `note` in front of its header block."""
    return (int.from_bytes(said[:3], "big") + len(note)).to_bytes(3, "big") + said[3:9] + note + said[9:]
