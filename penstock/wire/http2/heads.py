"""The heads of requests on one connection, read again only where they differ from earlier ones.

A header block that came before means the same again, as long as the dynamic table is unchanged. And where a block
begins as another did, and only the headers that vary from call to call follow (deadline, request id, trace), only those
are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.errors import PenstockError
from penstock.wire.call import REQUEST_ID, TRACEPARENT

from .head import Head, Method, read_head, well_formed
from .hpack import Decoder
from .limits import Limits
from .messages import read_timeout

_MAX_WHOLE: Final = 256
_MAX_STARTS: Final = 64
_KEPT_BLOCK: Final = 1024
_VARYING: Final = frozenset(("grpc-timeout", REQUEST_ID, TRACEPARENT))
_TIMEOUT, _ID, _TRACE = b"grpc-timeout", REQUEST_ID.encode(), TRACEPARENT.encode()


class Heads:
    """Reads header blocks of requests. Every block of the connection has to come through `read` or `decoder`."""

    def __init__(self, methods: Mapping[str, Method], limits: Limits) -> None:
        self.decoder = Decoder(max_list=limits.max_header_list, max_fields=limits.max_header_fields)
        self._methods = methods
        self._version = 0
        self._whole: dict[bytes, Head] = {}
        self._starts: dict[bytes, Head] = {}
        self._sizes: tuple[int, ...] = ()

    def read(self, block: bytes) -> Head:
        """Raises Malformed, and what Decoder.decode raises."""
        if self._version != self.decoder.version:
            self._forget()
        head = self._whole.get(block)
        if head is not None:
            return head
        for size in self._sizes:
            start = self._starts.get(block[:size])
            if start is not None and (head := _continued(start, block, size)) is not None:
                return head
        return self._anew(block)

    def _anew(self, block: bytes) -> Head:
        ends: list[int] = []
        fields = self.decoder.decode(block, ends)
        head = read_head(fields, self._methods)
        if self.decoder.version != self._version:
            # It has changed the table: the same bytes would mean something else now.
            self._forget()
        elif len(block) <= _KEPT_BLOCK:
            constant = next((place for place, field in enumerate(fields) if field[0] in _VARYING), 0)
            if constant and all(name in _VARYING for name, _ in fields[constant:]):
                self._keep_start(block[: ends[constant - 1]], read_head(fields[:constant], self._methods))
            if len(self._whole) >= _MAX_WHOLE:
                self._whole.clear()
            self._whole[block] = head
        return head

    def _keep_start(self, start: bytes, head: Head) -> None:
        # A call that is passed on needs all of its headers; a refused one is not worth an effort.
        if head.method is None or head.method.unary is None or head.http or head.refusal is not None:
            return
        if len(self._starts) >= _MAX_STARTS:
            self._starts.clear()
        self._starts[start] = head
        self._sizes = tuple({len(known) for known in self._starts})

    def _forget(self) -> None:
        self._version = self.decoder.version
        self._whole.clear()
        self._starts.clear()
        self._sizes = ()


def _continued(start: Head, block: bytes, at: int) -> Head | None:
    """The head whose constant part is `start` and whose rest begins at `at`; None when that holds anything unusual."""
    timeout, request_id, trace = None, "", ""
    try:
        while at < len(block):
            # A literal that is not indexed, with a name of its own (RFC 7541, 6.2.2), both short and plain.
            if block[at]:
                return None
            size = block[at + 1]
            name = block[at + 2 : at + 2 + size]
            at += 2 + size
            size = block[at]
            value = block[at + 1 : at + 1 + size]
            at += 1 + size
            if size >= 0x7F or len(value) != size:
                return None
            text = value.decode("ascii")
            if name == _TIMEOUT and timeout is None:
                timeout = read_timeout(text)
            elif name == _ID and not request_id and well_formed(text):
                request_id = text
            elif name == _TRACE and not trace and text.isprintable():
                trace = text.strip(" ")
            else:
                return None
    except (IndexError, UnicodeDecodeError, PenstockError):
        return None
    headers = {**start.headers, TRACEPARENT: trace} if trace else start.headers
    return Head(start.method, start.path, timeout, headers, request_id)
