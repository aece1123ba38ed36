"""What goes back to a caller, how a PenstockError becomes one, and how it looks on the wire. Pure.

Two dialects by the error table of penstock.errors: the inference protocol says `{"error": "<text>"}` with Triton's
statuses, the management API says `{"error": {"code", "message", "field", "retryable", "request_id"}}`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import orjson

from penstock.errors import PenstockError

JSON: Final = "application/json"

SAFE_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cache-control": "no-store",
    }
)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_TRITON_BAD_REQUEST: Final = frozenset({409, 499})
"""Triton answers ALREADY_EXISTS, CANCELLED and their like with 400."""


class Dialect(Enum):
    """Who a route speaks to."""

    INFERENCE = "inference"
    MANAGEMENT = "management"


@dataclass(slots=True)
class Reply:
    """One HTTP answer, not to be changed (what enforces that costs as much as the answer's head). headers: lower-case
    names."""

    status: int = 200
    body: bytes = b""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    def head(self, request_id: str, date: str, connection: str) -> bytes:
        """Everything before the body. connection: value of that header, empty for none."""
        safe = _SAFE
        if not _SAFE_LINES.keys().isdisjoint(self.headers):
            safe = "".join(line for name, line in _SAFE_LINES.items() if name not in self.headers)
        own = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        text = f"{_STATUS_LINES[self.status]}{safe}{own}date: {date}\r\nx-request-id: {request_id}\r\n"
        if self.body:
            text += f"content-type: {self.media_type}\r\n"
        if self.status != 204:
            text += f"content-length: {len(self.body)}\r\n"
        if connection:
            text += f"connection: {connection}\r\n"
        return f"{text}\r\n".encode("latin-1")


@dataclass(slots=True)
class Streamed(Reply):
    """An answer whose body comes in pieces while it is being made; HTTP/1.1 only.

    pieces: closed in any case, so what they come from is let go of when the caller leaves.
    """

    pieces: AsyncGenerator[bytes, None] = field(kw_only=True)

    def head(self, request_id: str, date: str, connection: str) -> bytes:
        """As of any other, but for the length, which nobody knows yet."""
        text = f"{_STATUS_LINES[self.status]}{_SAFE}date: {date}\r\nx-request-id: {request_id}\r\n"
        text += f"content-type: {self.media_type}\r\ntransfer-encoding: chunked\r\n"
        if connection:
            text += f"connection: {connection}\r\n"
        return f"{text}\r\n".encode("latin-1")


LAST_CHUNK: Final = b"0\r\n\r\n"


def chunk(piece: bytes) -> bytes:
    """A piece as chunked transfer writes it; nothing for nothing, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""


_SAFE_LINES: Final = {name: f"{name}: {value}\r\n" for name, value in SAFE_HEADERS.items()}
_SAFE: Final = "".join(_SAFE_LINES.values())
_STATUS_LINES: Final = {
    **{status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus},
    499: "HTTP/1.1 499 Client Closed Request\r\n",
}


def json_reply(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    return Reply(status, orjson.dumps(document), headers=headers or {})


def error_reply(error: PenstockError, dialect: Dialect, request_id: str) -> Reply:
    """The answer that tells a caller of an error."""
    status = error.code.http
    headers = {}
    if status == 429 or (status == 503 and error.retry_after is not None):
        # For 503 only where something is known: an invented time would be obeyed.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="penstock"'
    if dialect is Dialect.INFERENCE:
        return plain_error(400 if status in _TRITON_BAD_REQUEST else status, error.message, headers)
    body = {
        "code": error.code.name,
        "message": error.message,
        "field": error.field,
        "retryable": error.code.retryable,
        "request_id": request_id,
    }
    return json_reply({"error": body}, status, headers)


def plain_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error as the inference protocol writes it."""
    return json_reply({"error": message}, status, headers)


def routing_error(status: int, path: str, headers: Mapping[str, str], request_id: str) -> Reply:
    """No such path (404), or not with this method (405), in the dialect of the path."""
    code, message = (
        ("METHOD_NOT_ALLOWED", f"this method is not allowed here; use {headers.get('allow', 'another')}")
        if status == 405
        else ("NOT_FOUND", "there is nothing at this path; /docs lists what there is")
    )
    if not path.startswith("/api/"):
        return plain_error(status, message, headers)
    body = {"code": code, "message": message, "field": "", "retryable": False, "request_id": request_id}
    return json_reply({"error": body}, status, headers)
