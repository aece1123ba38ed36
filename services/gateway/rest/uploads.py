"""Artifact uploads over HTTP: a request body goes to the registry while it arrives.

Resumable: `Content-Range: bytes <first>-<last>/<size>` or `?offset=` and `?size=` say where this part begins; it must
reach the end of the artifact. A caller that leaves breaks the stream, so the registry keeps what arrived.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from penstock import names
from penstock.errors import InvalidArgument, PenstockError, Unsupported
from penstock.v1 import models_pb2

from .exchange import Exchange
from .fields import INTEGER, Field, read_query
from .management import Control
from .messages import to_plain
from .replies import Reply, json_reply

UPLOAD: Final = (
    Field("offset", INTEGER, "Where this body begins; must equal `received_bytes` of the artifact. 0 without."),
    Field("size", INTEGER, "Size of the whole artifact; offset + Content-Length without."),
)
PIECE_BYTES: Final = 1 << 20

_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Part:
    """offset: of the body within the artifact; size: of the whole artifact, in bytes."""

    offset: int
    size: int


class UploadRoutes:
    """Answers PUT on an artifact."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def upload(self, exchange: Exchange) -> Reply:
        digest = names.digest(exchange.path["digest"])
        if exchange.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise Unsupported("Content-Encoding: an artifact is sent as it is", field="content-encoding")
        values = read_query(exchange.query, UPLOAD)
        part = find_part(exchange.headers.get("content-range"), exchange.headers.get("content-length"), values)
        header = models_pb2.UploadHeader(digest=digest, size_bytes=part.size, offset=part.offset)
        body = Body(exchange, part.size - part.offset)
        try:
            answer = await self._control.upload(
                header, body.pieces(), headers=exchange.credentials(), timeout=exchange.remaining()
            )
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if body.failure is None or (task is not None and task.cancelling()):
                raise
            raise body.failure from None
        return json_reply(to_plain(answer), 200 if answer.existed else 201)


def find_part(content_range: str | None, content_length: str | None, query: dict[str, int]) -> Part:
    """Which part of the artifact a body is; raises InvalidArgument where that is unsaid or contradicts itself. Pure."""
    length = int(content_length) if content_length and content_length.isdigit() and len(content_length) <= 18 else None
    if content_range is not None:
        match = _RANGE.fullmatch(content_range.strip())
        if match is None:
            message = "Content-Range: must be `bytes <first>-<last>/<size>` with the size of the whole artifact"
            raise InvalidArgument(message, field="content-range")
        first, last, size = map(int, match.groups())
        if not first <= last == size - 1:
            raise InvalidArgument("Content-Range: must reach the end of the artifact", field="content-range")
        if length is not None and length != size - first:
            raise InvalidArgument("Content-Range: does not fit Content-Length", field="content-range")
        return Part(first, size)
    offset = query.get("offset", 0)
    size_given = query.get("size")
    if size_given is None:
        if length is None:
            message = "size: missing; a body without Content-Length needs ?size= or Content-Range"
            raise InvalidArgument(message, field="size")
        return Part(offset, offset + length)
    if offset > size_given or (length is not None and length != size_given - offset):
        raise InvalidArgument("size: does not fit offset and Content-Length", field="size")
    return Part(offset, size_given)


class Body:
    """The request's body in pieces. length: announced, in bytes.

    failure: why it ended early; inside of a call that streams it the reason may come out wrapped or as a cancellation,
    so it is kept here.
    """

    def __init__(self, exchange: Exchange, length: int) -> None:
        self._exchange = exchange
        self._missing = length
        self.failure: PenstockError | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises InvalidArgument when the body is not as long as announced, Cancelled when the caller leaves."""
        try:
            async for piece in self._pieces():
                yield piece
        except PenstockError as error:
            self.failure = error
            raise

    async def _pieces(self) -> AsyncIterator[bytes]:
        pending = bytearray()
        async for chunk in self._exchange.chunks():
            pending += chunk
            self._missing -= len(chunk)
            if self._missing < 0:
                message = f"the body goes {-self._missing} bytes beyond the announced size"
                raise InvalidArgument(message, field="size")
            while len(pending) >= PIECE_BYTES:
                yield bytes(pending[:PIECE_BYTES])
                del pending[:PIECE_BYTES]
        if self._missing:
            raise InvalidArgument(f"the body ends {self._missing} bytes before the announced size", field="size")
        if pending:
            yield bytes(pending)
