"""gzip and deflate, both ways: requests inflate under a limit and a ratio, answers are compressed where it pays. Pure.

The limit holds for what comes out. Beyond 1 MiB of output a body may not be more than a hundred times its compressed
size: a small body of zeros is welcome, a bomb stops after a hundred times what it cost to send.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Final

from penstock.errors import InvalidArgument, TooLarge

MAX_RATIO: Final = 100
FREE_BYTES: Final = 1 << 20
"""Output that no ratio is asked of."""
MIN_BYTES: Final = 1024
"""Smaller answers go as they are."""

_GZIP: Final = 31
_ZLIB: Final = 15
_DEFLATE: Final = -15
_STEP: Final = 1 << 18


class Inflater:
    """One compressed body, fed as it arrives.

    encoding: value of Content-Encoding, `gzip` or `deflate` (zlib's wrapper as RFC 9110 says, or none as some clients
    do); limit: bytes that may come out. Raises InvalidArgument for another encoding.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            message = f"Content-Encoding: {encoding[:40]!r} is not supported; use gzip, deflate or none"
            raise InvalidArgument(message, field="content-encoding")
        self._limit = limit
        self._stream = zlib.decompressobj(_GZIP) if encoding != "deflate" else None
        self._head = b""
        self._received = 0
        self._produced = 0

    def feed(self, chunk: bytes, into: bytearray) -> None:
        """Appends what the chunk inflates to; raises TooLarge over the limit or ratio, InvalidArgument if corrupt."""
        self._received += len(chunk)
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            wrapped = self._head[0] & 15 == 8 and int.from_bytes(self._head[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if wrapped else _DEFLATE)
            chunk, self._head = self._head, b""
        try:
            self._inflate(self._stream, chunk, into)
        except zlib.error:
            raise InvalidArgument("the compressed body is corrupt", field="content-encoding") from None

    def finish(self) -> None:
        """Raises InvalidArgument when the body ended too early."""
        if self._stream is None or not self._stream.eof:
            raise InvalidArgument("the compressed body is cut short", field="content-encoding")

    def _inflate(self, stream: zlib._Decompress, chunk: bytes, into: bytearray) -> None:
        while chunk:
            if stream.eof:
                raise InvalidArgument("there is data after the end of the compressed body", field="content-encoding")
            piece = stream.decompress(chunk, _STEP)
            self._produced += len(piece)
            if self._produced > self._limit:
                raise TooLarge(f"the body is over {self._limit} bytes after decompression")
            if self._produced > FREE_BYTES and self._produced > MAX_RATIO * self._received:
                raise TooLarge(f"the body expands to more than {MAX_RATIO} times its compressed size")
            into += piece
            chunk = stream.unused_data or stream.unconsumed_tail


def choose(accept: str) -> str | None:
    """The coding for an answer by Accept-Encoding (RFC 9110, 12.5.3): `gzip`, `deflate` or None; gzip on a tie."""
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, _, rest = item.partition(";")
        key, _, value = rest.partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    fallback = weights.get("*", 0.0)
    ranked = [(weights.get(name, fallback), name) for name in ("gzip", "deflate")]
    weight, name = max(ranked, key=lambda entry: entry[0])
    return name if weight > 0 and weight >= weights.get("identity", 0.0) else None


def compress(body: bytes, encoding: str) -> bytes:
    """The body in that coding, quickly rather than tightly: tensors hardly shrink further."""
    return gzip.compress(body, compresslevel=1, mtime=0) if encoding == "gzip" else zlib.compress(body, 1)
