"""uvicorn's HTTP/1.1 protocol with bounds on what comes before, between and after bodies.

uvicorn bounds bodies by back-pressure and headers not at all. Here: a head (or a chunked body's extensions and
trailers) may be so many bytes and so many fields, and a head must be complete in time. What breaks this is answered
with 431 or 408 and the connection ends.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.wire.origin import Origin

from .exchange import ORIGIN

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEAD_FIELDS: Final = 256
HEAD_SECONDS: Final = 20.0

_REASONS: Final = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fields = 0
        self._field_bytes = 0
        self._quiet_bytes = 0  # since something of a body arrived or a head began
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ORIGIN: Origin(transport)}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._quiet_bytes += len(data)
        super().data_received(data)
        if self._quiet_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"headers, trailers and chunk extensions may be {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._fields = self._field_bytes = self._quiet_bytes = 0
        self._in_head = True
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        if self._in_head:  # trailers mean nothing to us
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_arrived()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._quiet_bytes = 0
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses, ours included: an exception in a callback ends here."""
        if self._fields > MAX_HEAD_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"headers may be {MAX_HEAD_FIELDS} fields and {MAX_HEAD_BYTES} bytes")
        else:
            self._refuse(400, "this is not a valid HTTP/1.1 request")

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._fields > MAX_HEAD_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("too large a head")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"the request head was not complete after {HEAD_SECONDS:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        """Ends the connection, with an answer unless one is under way."""
        if self.cycle is None or self.cycle.response_complete:
            body = orjson.dumps({"error": message})
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self.transport.close()
