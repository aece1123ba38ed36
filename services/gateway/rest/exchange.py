"""One HTTP request being answered: who, how long, its body under limits, and its caller's leaving.

A handler gets an Exchange and returns a Reply or raises a PenstockError. Nothing of a body is asked for before the
caller is known, and nothing more of it than the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Final, TypeVar

from penstock.errors import Cancelled, InvalidArgument, TooLarge
from penstock.wire.call import REQUEST_ID, Pending
from penstock.wire.origin import ELSEWHERE, Origin

from . import compression
from .head import TIMEOUT, Head, Query
from .replies import Reply

if TYPE_CHECKING:
    from .bridge import Bridge
    from .connection import Connection

T = TypeVar("T")

AUTHORIZATION: Final = "authorization"
MAX_TIMEOUT: Final = 3_600.0
STREAM_BYTES: Final = 256 << 10
"""What a body may be ahead of whoever reads it in pieces."""

_run = token_hex(8)
_numbers = count(1)


class Exchange:
    """A request, from its head to its answer.

    caller: empty until `admit`; deadline: on the loop's clock, infinite until then. received: what of the body has
    arrived and was not taken; body_ended: nothing more will; collecting: it is kept until it is whole. pending: what
    will answer, to be cancelled when time is over; leaving_cancels: or when the caller has left. out: the answer's
    bytes, once there is one; streams: it comes in pieces, of which some are out; ends: no more should come. held: bytes
    of the body that count as kept. tick: see Deadlines.
    """

    __slots__ = (
        "body_ended",
        "bridge",
        "caller",
        "collecting",
        "connection",
        "continued",
        "deadline",
        "ends",
        "head",
        "held",
        "leaving_cancels",
        "left",
        "limit",
        "out",
        "pending",
        "received",
        "request_id",
        "streams",
        "tick",
        "waiter",
    )

    def __init__(self, head: Head, connection: Connection, bridge: Bridge, deadline: float = float("inf")) -> None:
        self.head, self.connection, self.bridge, self.deadline = head, connection, bridge, deadline
        self.limit = bridge.max_body_bytes
        self.request_id = head.request_id or f"{_run}{next(_numbers):016x}"
        self.caller = ""
        self.received: bytes | bytearray = b""
        self.body_ended = not (head.chunked or head.length)
        self.collecting = self.continued = self.left = self.leaving_cancels = self.streams = self.ends = False
        self.held = self.tick = 0
        self.pending: Pending | None = None
        self.out: list[bytes] | None = None
        self.waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        return self.head.headers

    @property
    def origin(self) -> Origin:
        """Where the connection comes from, unless a proxy says that the request does not."""
        return ELSEWHERE if self.head.relayed else self.connection.origin

    @property
    def query(self) -> Query:
        """What stands behind the question mark."""
        return Query(self.head.query)

    @property
    def path(self) -> Mapping[str, str]:
        """The path's parameters."""
        return self.head.parameters

    def admit(self, caller: str, now: float, default_timeout: float) -> None:
        """Sets caller and deadline; raises InvalidArgument for a timeout that is none."""
        self.caller = caller
        text = self.head.headers.get(TIMEOUT)
        timeout = default_timeout
        if text is not None:
            if not (text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0):
                raise InvalidArgument(f"{TIMEOUT}: must be a positive number of milliseconds", field=TIMEOUT)
            timeout = min(int(text) / 1000, MAX_TIMEOUT)
        self.deadline = now + timeout

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def credentials(self) -> dict[str, str]:
        """What goes on with a call of another service, which is asked in the caller's name."""
        own = {name: value for name, value in self.headers.items() if name == AUTHORIZATION}
        return {REQUEST_ID: self.request_id, **self.head.forwarded, **own}

    def coding(self) -> str:
        """Of the body, empty for none."""
        coding = self.head.headers.get("content-encoding")
        return "" if coding is None or (coding := coding.lower()) == "identity" else coding

    def answer(self, reply: Reply) -> None:
        """Ends the exchange; the first answer counts."""
        self.bridge.answer(self, reply)

    def fail(self, problem: BaseException | None) -> None:
        """Ends the exchange by the error table."""
        self.bridge.fail(self, problem)

    def expire(self) -> None:
        """The deadline has passed."""
        self.bridge.expire(self)

    # The body, as a handler reads it.

    def announce(self, limit: int) -> None:
        """Raises TooLarge for a body that says itself that it is over the limit."""
        if self.head.length > limit:
            raise TooLarge(f"the body of {self.head.length} bytes is over the limit of {limit}")

    async def body(self, limit: int | None = None) -> bytes | bytearray:
        """The whole body, inflated. Raises TooLarge over `limit` bytes, before and after inflating, InvalidArgument for
        a corrupt body, Cancelled when the caller left."""
        limit = self.limit if limit is None else min(limit, self.limit)
        self.announce(limit)
        coding = self.coding()
        if not coding and self.body_ended:
            return self._take()
        inflater = compression.Inflater(coding, limit) if coding else None
        body, received = bytearray(), 0
        async for chunk in self.chunks():
            received += len(chunk)
            if received > limit:
                raise TooLarge(f"the body is over the limit of {limit} bytes")
            if inflater is None:
                body += chunk
            else:
                inflater.feed(bytes(chunk), body)
        if inflater is not None and received:
            inflater.finish()
        return body

    async def chunks(self) -> AsyncIterator[bytes | bytearray]:
        """The body as it arrives; raises Cancelled when the caller leaves before its end."""
        while True:
            if piece := self._take():
                yield piece
            elif self.body_ended:
                return
            elif self.left:
                raise Cancelled("the caller left before its request was complete")
            else:
                self.waiter = asyncio.get_running_loop().create_future()
                self.connection.wants_body(self)
                try:
                    await self.waiter
                finally:
                    self.waiter = None

    async def while_connected(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled when the caller leaves: then raises Cancelled."""
        self.leaving_cancels = True
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.left or task is None:
                raise
            task.uncancel()
            raise Cancelled("the caller left before the answer was ready") from None
        finally:
            self.leaving_cancels = False

    def _take(self) -> bytes | bytearray:
        piece, self.received = self.received, b""
        self.connection.discharge(self)
        return piece

    async def caught_up(self) -> None:
        """Waits until the caller, who was slow, has taken what is out."""
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    # What the connection tells.

    def feed(self, piece: bytes | bytearray) -> None:
        """More of the body; raises TooLarge when it is collected and over the limit."""
        if isinstance(self.received, bytearray):
            self.received += piece
        else:
            self.received = bytearray(piece)
        if self.collecting and len(self.received) > self.limit:
            raise TooLarge(f"the body is over the limit of {self.limit} bytes")
        self.wake()

    def end(self) -> None:
        """The body is whole."""
        self.body_ended = True
        if self.collecting:
            self.collecting = False
            self.bridge.whole(self)
        else:
            self.wake()

    def lose(self) -> None:
        """The caller is gone."""
        self.left = True
        pending = self.pending
        self.bridge.over(self)
        if pending is not None and self.leaving_cancels:
            pending.cancel()
        self.wake()

    def stop(self) -> None:
        """The server stops: what comes in pieces ends with what has come."""
        if self.streams and self.pending is not None:
            self.ends = True
            self.pending.cancel()

    @property
    def full(self) -> bool:
        """Enough waits for whoever reads it in pieces."""
        return not self.collecting and len(self.received) > STREAM_BYTES

    def wake(self) -> None:
        """There is more of the body, or more room for the answer."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
