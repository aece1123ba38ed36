"""What gRPC puts on top of HTTP/2 (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md): message prefixes, timeouts, texts."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from struct import Struct
from typing import Final
from urllib.parse import quote, unquote

from penstock.errors import InvalidArgument, ResourceExhausted, Unsupported
from penstock.wire.call import Payload

from .gathering import Gathering
from .outbound import Bytes

prefixed: Final = Struct(">xL").unpack_from
"""Length of the message that follows a prefix, as a tuple of one."""
PREFIX: Final = 5
"""Bytes before a message: a flag that it is compressed, and its length."""
_SMALL: Final = 1024
_LARGE: Final = 64 << 10
"""Messages from this size on get a buffer of their own."""
_WORTH: Final = 8 << 10
"""So much of a large message has to be there before it gets it."""
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_TIMEOUT: Final = 31_536_000.0
_SAFE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Assembler:
    """Makes messages of DATA. It keeps the raw bytes and cuts a message only when asked, so that a million empty
    messages cost no more than their bytes. Nothing is allocated for what a prefix only promises. A large message is
    gathered in its own buffer as it comes, and taken out without a copy."""

    __slots__ = ("_at", "_limit", "_pieces", "_size", "held", "large")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[bytes | bytearray] = deque()
        self._at = 0
        self._size = -1
        self.held = 0
        self.large: Gathering | None = None

    def feed(self, piece: Bytes) -> None:
        """Takes bytes in any portions. What is kept of them is copied, unless it was received into `large.room`."""
        size = len(piece)
        if not size:
            return
        if self.large is None and not self.held and size >= _WORTH:
            piece = self._begin(piece)
            size = len(piece)
        self.held += size
        large = self.large
        if large is not None and large.missing:
            if size > large.missing:
                view = memoryview(piece)
                piece, rest = view[: large.missing], view[large.missing :]
                large.add(piece)
                self._keep(rest)
            else:
                large.add(piece)
        else:
            self._keep(piece)

    def gathered(self, size: int) -> None:
        """So many bytes were added to `large`, past this assembler."""
        self.held += size

    def _keep(self, piece: Bytes) -> None:
        pieces = self._pieces
        if len(piece) >= _SMALL:
            pieces.append(bytes(piece))
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))

    def _begin(self, piece: Bytes) -> Bytes:
        """The first bytes of a message, or of the rest of one whose prefix was judged: a large one begins to be
        gathered. Prefixes that have something wrong with them are left to `check`."""
        if self._size < 0:
            size = int.from_bytes(piece[1:PREFIX], "big")
            if piece[0] or size > self._limit or size < _LARGE:
                return piece
            self._size = size
            piece = memoryview(piece)[PREFIX:]
        if self._size >= _LARGE:
            self.large = Gathering(self._size)
        return piece

    def check(self) -> None:
        """Judges the next message by its prefix, when that is there.

        Raises Unsupported for a compressed message, ResourceExhausted for one over the limit.
        """
        if self._size < 0 and self.held >= PREFIX:
            prefix = self._cut(PREFIX)
            size = int.from_bytes(prefix[1:], "big")
            check_prefix(prefix[0], size, self._limit)
            self._size = size
        if self.large is None and self._size >= _LARGE and _WORTH <= self.held < self._size:
            held, pieces = self.held, self._pieces
            large = Gathering(self._size)
            large.add(memoryview(pieces.popleft())[self._at :])
            while pieces:
                large.add(pieces.popleft())
            assert large.have == held
            self.large, self._at = large, 0

    def take(self) -> Payload | None:
        """The next whole message, a view if it is large (penstock/wire/call.py); None when there is none yet.

        Raises as `check`.
        """
        self.check()
        if self._size < 0 or self.held < self._size:
            return None
        size, self._size = self._size, -1
        large, self.large = self.large, None
        if large is None:
            return self._cut(size)
        self.held -= size
        return large.message()

    @property
    def ready(self) -> bool:
        """A whole message waits to be taken, as far as can be seen without cutting it off."""
        return self.held >= (self._size if self._size >= 0 else PREFIX)

    @property
    def between(self) -> bool:
        """No part of a message is held."""
        return self.held == 0 and self._size < 0

    def _cut(self, size: int) -> bytes:
        self.held -= size
        pieces, parts = self._pieces, []
        while size:
            first = pieces[0]
            there = len(first) - self._at
            if there > size:
                parts.append(first[self._at : self._at + size])
                self._at += size
                break
            parts.append(first[self._at :] if self._at else first)
            pieces.popleft()
            self._at = 0
            size -= there
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def check_prefix(flag: int, size: int, limit: int) -> None:
    """Raises what is wrong with a message before it is taken."""
    if flag == 1:
        raise Unsupported("compressed messages are not taken: send with grpc-encoding identity")
    if flag:
        raise InvalidArgument("a message begins with a flag that gRPC does not know")
    if size > limit:
        raise ResourceExhausted(f"a message of {size} bytes is larger than the limit of {limit}")


def read_timeout(value: str) -> float:
    """Seconds of a `grpc-timeout`; raises InvalidArgument."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not 1 <= len(digits) <= 8 or not (digits.isascii() and digits.isdigit()):
        raise InvalidArgument("grpc-timeout is not a number of up to eight digits and a unit", field="grpc-timeout")
    return min(int(digits) * unit, _MAX_TIMEOUT)


def write_timeout(seconds: float) -> str:
    """A `grpc-timeout`, in the finest unit that holds it; never 0."""
    for unit, scale in (("u", 1e6), ("m", 1e3), ("S", 1.0)):
        number = max(1, int(seconds * scale))
        if number < 100_000_000:
            return f"{number}{unit}"
    return "99999999S"


def write_text(text: str) -> str:
    """A `grpc-message`: UTF-8, percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    return quote(text, safe=_SAFE, errors="replace")


def read_text(value: str) -> str:
    """The text of a `grpc-message`."""
    return unquote(value, errors="replace") if "%" in value else value


def write_binary(value: bytes) -> str:
    """The value of a `-bin` header."""
    return base64.b64encode(value).rstrip(b"=").decode()


def read_binary(value: str) -> bytes:
    """The bytes of a `-bin` header, padded or not; of several under one name, the first. Raises InvalidArgument."""
    first = value.partition(",")[0].strip().rstrip("=")
    try:
        return base64.b64decode(first + "=" * (-len(first) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("a -bin header is not base64") from None


def sendable(value: str) -> bool:
    """gRPC could send the value as ASCII metadata."""
    return value.isascii() and value.isprintable()
