"""The chunked coding of a body (RFC 9112, 7.1), taken apart as it arrives, in whatever pieces. Pure.

Strict, since two readings of a length are two requests: sizes are hex digits and nothing else, lines end with CRLF.
Extensions and trailers are skipped and may be so many bytes in one body. The number of chunks costs no memory.
"""

from __future__ import annotations

import re
from typing import Final

from .head import MAX_HEAD_BYTES, BadRequest

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LONGEST_LINE: Final = 15
_SIZE_LINE, _DATA, _DATA_END, _TRAILER = range(4)


class Chunked:
    """One body. ended: its last byte has been taken."""

    def __init__(self) -> None:
        self.ended = False
        self._state = _SIZE_LINE
        self._missing = 0
        self._line = b""
        self._room = MAX_HEAD_BYTES  # for what means nothing to us

    def feed(self, data: bytes, position: int, into: bytearray) -> int:
        """Takes what belongs to the body from that position on; returns where it stopped, which is the end of the data
        unless the body ended before. Raises BadRequest."""
        end = len(data)
        while position < end and not self.ended:
            if self._state == _DATA:
                taken = min(self._missing, end - position)
                into += data[position : position + taken]
                position += taken
                self._missing -= taken
                if not self._missing:
                    self._state = _DATA_END
                continue
            found = data.find(b"\n", position)
            if found < 0:
                self._keep(data[position:])
                return end
            line = self._line + data[position:found] if self._line else data[position:found]
            position = found + 1
            self._line = b""
            if not line.endswith(b"\r") or b"\r" in line[:-1]:
                raise _invalid()
            self._take_line(line[:-1])
        return position

    def _take_line(self, line: bytes) -> None:
        if self._state == _SIZE_LINE:
            digits, semicolon, extension = line.partition(b";")
            if not _SIZE.fullmatch(digits):
                raise _invalid()
            if semicolon:
                self._spend(len(extension) + 1)
            self._missing = int(digits, 16)
            self._state = _DATA if self._missing else _TRAILER
        elif self._state == _DATA_END:
            if line:
                raise _invalid()
            self._state = _SIZE_LINE
        elif not line:
            self.ended = True
        else:
            self._spend(len(line) + 2)
            if line.find(b":") < 1 or b"\0" in line:
                raise _invalid()

    def _keep(self, piece: bytes) -> None:
        """The beginning of a line."""
        self._line += piece
        if len(self._line) > _LONGEST_LINE + self._room:
            raise _too_much()

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise _too_much()


def _invalid() -> BadRequest:
    return BadRequest(400, "the chunked body is not valid")


def _too_much() -> BadRequest:
    return BadRequest(431, f"chunk extensions and trailers may be {MAX_HEAD_BYTES} bytes")
