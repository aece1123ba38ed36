"""A path of the bridge: its operations by method, and everything that happens around each of them.

In this order: method, origin, credential, deadline, then the operation; errors become answers by the table; answers
get the headers that every answer has and are compressed where the caller takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from penstock.errors import DeadlineExceeded, Internal, PenstockError, PermissionDenied
from penstock.kit import identity
from penstock.kit.log import REQUEST_ID_OF_CALL, get_logger

from . import compression
from .exchange import Exchange
from .operations import Operation
from .replies import Reply, error_reply, routing_error

Authenticate = Callable[[Mapping[str, str]], str]

log = get_logger()

SAFE_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}

_OFF_LOOP_BYTES: Final = 1 << 16
_LINGER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class House:
    """What all endpoints share. default_timeout: seconds granted to a request that brings no deadline."""

    authenticate: Authenticate
    max_body_bytes: int
    default_timeout: float


class Endpoint:
    """An ASGI application for one path."""

    def __init__(self, operations: Sequence[Operation], house: House) -> None:
        self.operations = {operation.method: operation for operation in operations}
        if "GET" in self.operations:
            self.operations.setdefault("HEAD", self.operations["GET"])
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, self._house.max_body_bytes)
        REQUEST_ID_OF_CALL.set(exchange.request_id)
        operation = self.operations.get(exchange.method)
        if operation is None:
            allowed = {"allow": ", ".join(sorted(self.operations))}
            reply = routing_error(405, scope["path"], allowed, exchange.request_id)
        else:
            reply = await self._reply(operation, exchange)
        await respond(reply, exchange, send, self._house.max_body_bytes)

    async def _reply(self, operation: Operation, exchange: Exchange) -> Reply:
        try:
            return await self._answer(operation, exchange)
        except PenstockError as error:
            if error.code is Internal.code or error.detail:
                log.warning("rest_failed", code=error.code.name, message=error.message, detail=error.detail)
            return error_reply(error, operation.dialect, exchange.request_id)
        except Exception:
            log.exception("rest_crashed", path=operation.path)
            crash = Internal(f"internal error; the log has it under request id {exchange.request_id}")
            return error_reply(crash, operation.dialect, exchange.request_id)

    async def _answer(self, operation: Operation, exchange: Exchange) -> Reply:
        refuse_foreign_origin(exchange)
        caller = "" if operation.open else self._house.authenticate(exchange.headers)
        identity.set_caller(caller)
        exchange.admit(caller, operation.timeout or self._house.default_timeout)
        try:
            async with asyncio.timeout_at(exchange.deadline) as deadline:
                return await operation.answer(exchange)
        except TimeoutError:
            if deadline.expired():
                raise DeadlineExceeded("the deadline passed before an answer was ready") from None
            raise


def refuse_foreign_origin(exchange: Exchange) -> None:
    """Raises PermissionDenied when a web page of another origin tries to change something with its visitor's access."""
    origin = exchange.headers.get("origin")
    if origin is None or exchange.method in ("GET", "HEAD"):
        return
    if urlsplit(origin).netloc.lower() != exchange.headers.get("host", "").lower():
        raise PermissionDenied("requests from web pages of another origin are not allowed", field="origin")


async def routing_failure(scope: Scope, receive: Receive, send: Send, failure: HTTPException, limit: int) -> None:
    """Answers a request that no route takes."""
    exchange = Exchange(scope, receive, limit)
    headers = {name.lower(): value for name, value in (failure.headers or {}).items()}
    await respond(
        routing_error(failure.status_code, scope["path"], headers, exchange.request_id), exchange, send, limit
    )


async def respond(reply: Reply, exchange: Exchange, send: Send, limit: int) -> None:
    """Sends the answer. Where part of the body is unread, goes on reading it for a while, up to `limit` bytes: a
    caller that is still sending sees the answer instead of a broken connection."""
    headers = {**SAFE_HEADERS, **reply.headers, "x-request-id": exchange.request_id}
    body = reply.body
    if body:
        headers["content-type"] = reply.media_type
    if len(body) >= compression.MIN_BYTES:
        headers["vary"] = "accept-encoding"
        if encoding := compression.choose(exchange.headers.get("accept-encoding", "")):
            headers["content-encoding"] = encoding
            if len(body) < _OFF_LOOP_BYTES:
                body = compression.compress(body, encoding)
            else:
                body = await asyncio.to_thread(compression.compress, body, encoding)
    if reply.status != 204:
        headers["content-length"] = str(len(body))
    unread = not exchange.body_ended
    if unread:
        headers["connection"] = "close"
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    if unread and "expect" not in exchange.headers:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await exchange.discard(2 * limit)
        except TimeoutError:
            pass
        body = b""
    await send({"type": "http.response.body", "body": body})
