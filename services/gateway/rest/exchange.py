"""One HTTP request being answered: who, how long, its body under limits, and its caller's leaving.

A handler gets an Exchange and returns a Reply or raises a PenstockError. Nothing of the body is read before the caller
is known, and nothing more of it than the limit.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Final, TypeVar

from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope

from penstock.errors import Cancelled, InvalidArgument, TooLarge
from penstock.wire.call import REQUEST_ID, TRACEPARENT
from penstock.wire.origin import ELSEWHERE, RELAYED, Origin

from . import compression

T = TypeVar("T")

AUTHORIZATION: Final = "authorization"
TIMEOUT: Final = "penstock-timeout-ms"
MAX_TIMEOUT: Final = 3_600.0
ORIGIN: Final = "origin"
"""Key of the connection's Origin in the state of the ASGI scope."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Exchange:
    """A request. `caller` is empty and `deadline` infinite until `admit`; `path` holds the parameters of the path;
    `origin`: where its connection comes from, as far as the server has said."""

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        self._receive = receive
        self._limit = max_body_bytes
        headers = Headers(scope=scope)
        self.headers: Mapping[str, str] = dict(headers)
        self.method: str = scope["method"]
        self.query = QueryParams(scope["query_string"])
        self.path: Mapping[str, str] = scope.get("path_params", {})
        given = self.headers.get(REQUEST_ID, "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.caller = ""
        # Headers that do not go on with the call (`forwarded`) are judged here.
        relayed = not RELAYED.isdisjoint(self.headers)
        self.origin: Origin = ELSEWHERE if relayed else scope.get("state", {}).get(ORIGIN, ELSEWHERE)
        self.deadline = float("inf")
        self.body_ended = not ("transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0")

    def admit(self, caller: str, default_timeout: float) -> None:
        """Sets caller and deadline; raises InvalidArgument for a timeout that is none."""
        self.caller = caller
        text = self.headers.get(TIMEOUT)
        timeout = default_timeout
        if text is not None:
            if not (text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0):
                raise InvalidArgument(f"{TIMEOUT}: must be a positive number of milliseconds", field=TIMEOUT)
            timeout = min(int(text) / 1000, MAX_TIMEOUT)
        self.deadline = asyncio.get_running_loop().time() + timeout

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def forwarded(self) -> dict[str, str]:
        """Headers that go on with a call; a malformed traceparent does not."""
        headers = {REQUEST_ID: self.request_id}
        trace = self.headers.get(TRACEPARENT, "")
        if _TRACEPARENT.fullmatch(trace):
            headers[TRACEPARENT] = trace
        return headers

    def credentials(self) -> dict[str, str]:
        """`forwarded`, and the caller's own credential: what is asked of another service is asked in its name."""
        return self.forwarded() | {name: value for name, value in self.headers.items() if name == AUTHORIZATION}

    async def body(self, limit: int | None = None) -> bytearray:
        """The whole body, inflated. Raises TooLarge over `limit` bytes, before and after inflating, InvalidArgument for
        a corrupt body, Cancelled when the caller left."""
        limit = self._limit if limit is None else min(limit, self._limit)
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise TooLarge(f"the body of {announced} bytes is over the limit of {limit}")
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        inflater = None if encoding in ("", "identity") else compression.Inflater(encoding, limit)
        body, received = bytearray(), 0
        async for chunk in self.chunks():
            received += len(chunk)
            if received > limit:
                raise TooLarge(f"the body is over the limit of {limit} bytes")
            if inflater is None:
                body += chunk
            else:
                inflater.feed(chunk, body)
        if inflater is not None and received:
            inflater.finish()
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; raises Cancelled when the caller leaves before its end."""
        more = not self.body_ended
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.body_ended = True
                raise Cancelled("the caller left before its request was complete")
            more = message.get("more_body", False)
            self.body_ended = not more
            if chunk := message.get("body", b""):
                yield chunk

    async def while_connected(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the caller leaves: then raises Cancelled."""
        answering = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            # Whoever holds something for this call has let go of it before we go on.
            await asyncio.gather(answering, leaving, return_exceptions=True)
        raise Cancelled("the caller left before the answer was ready")

    async def _left(self) -> None:
        message: Message = {"type": "http.request"}
        while message["type"] != "http.disconnect":
            message = await self._receive()
            self.body_ended = self.body_ended or not message.get("more_body", False)

    async def discard(self, limit: int) -> None:
        """Reads and forgets at most `limit` bytes of what is left of the body."""
        try:
            async for chunk in self.chunks():
                limit -= len(chunk)
                if limit < 0:
                    return
        except Cancelled:
            return
