"""What goes back to a caller, and how a PenstockError becomes one. Pure.

Two dialects by the error table of penstock.errors: the inference protocol says `{"error": "<text>"}` with Triton's
statuses, the management API says `{"error": {"code", "message", "field", "retryable", "request_id"}}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import orjson

from penstock.errors import PenstockError

JSON: Final = "application/json"

_TRITON_BAD_REQUEST: Final = frozenset({409, 499})
"""Triton answers ALREADY_EXISTS, CANCELLED and their like with 400."""


class Dialect(Enum):
    """Who a route speaks to."""

    INFERENCE = "inference"
    MANAGEMENT = "management"


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. headers: lower-case names."""

    status: int = 200
    body: bytes = b""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    return Reply(status, orjson.dumps(document), headers=headers or {})


def error_reply(error: PenstockError, dialect: Dialect, request_id: str) -> Reply:
    """The answer that tells a caller of an error."""
    status = error.code.http
    headers = {}
    if error.code.retryable and status in (429, 503):
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
