"""The answering half of a server's connection: from a call's result to frames, and every way in which a call can end.

Ends of calls, whoever causes them (answer, error, deadline, the caller's reset, a lost connection), come through
`_over`, which gives back what the call was charged for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from itertools import count
from secrets import token_hex
from typing import Any, Final

from penstock import errors
from penstock.wire.call import CALLER_OF_CALL, REQUEST_ID_OF_CALL, Answer, Call, Payload, Pending
from penstock.wire.origin import ELSEWHERE

from . import eager, replies
from . import frames as f
from .client_side import Received
from .connection import Connection
from .deadlines import Deadlines
from .head import Head, Method
from .limits import Limits
from .outbound import Stream
from .turns import Turns

_LATE: Final = "the deadline passed before an answer was ready"
_LIGHT: Final = 64 << 10
_log = logging.getLogger(__name__)
_run = token_hex(8)
_numbers = count(1)


class Common:
    """What the connections of a server share. held: request bytes kept by all of them; tasks: their handlers; turns:
    those with calls that have not been begun."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_held: int) -> None:
        self.loop, self.max_held = loop, max_held
        self.held = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.deadlines = Deadlines(loop)
        self.turns = Turns(loop)


class Exchange(Stream):
    """A request and its answer. held: bytes it is charged for, of the request and of what waits to be sent; kept: the
    latter; body: bytes received, if the head says how many there will be; begun: response headers are out."""

    __slots__ = (
        "begun",
        "body",
        "caller",
        "connection",
        "deadline",
        "head",
        "held",
        "kept",
        "pending",
        "request_id",
        "room",
        "tick",
    )

    def __init__(self, connection: Answering, number: int, head: Head, caller: str, deadline: float) -> None:
        self.id, self.credit, self.window = number, connection.limits.stream_window, connection.peer_window
        self.remote_ended = False
        self.unsent = None
        self.unsent_bytes = 0
        self.last = None
        self.connection, self.head, self.caller, self.deadline = connection, head, caller, deadline
        self.assembler = self.inbox = None
        self.pending: Pending | None = None
        self.room: asyncio.Future[None] | None = None
        self.held = self.kept = self.body = self.tick = 0
        self.begun = False
        self.request_id = head.request_id

    def expire(self) -> None:
        """The deadline has passed: the handler is stopped and the caller told."""
        self.connection.fail(self, errors.DeadlineExceeded(_LATE))
        if self.id in self.connection.streams:
            # What was to be said does not get through.
            self.connection.abandon(self, f.CANCEL)
        self.connection.flush_soon()


class Answering(Connection):
    """common: shared with the other connections; flush_soon: asks the owner of the socket to send `out` before the
    turn of the loop is over."""

    def __init__(self, common: Common, limits: Limits, flush_soon: Callable[[], None]) -> None:
        super().__init__(limits, common.loop.time, client=False)
        self.common, self.flush_soon = common, flush_soon
        self.held = 0
        self.leaving = False
        self.origin = ELSEWHERE
        self._table_note = b""

    @property
    def full(self) -> bool:
        """No more is held for this connection. One that holds little is served even when all together hold too much."""
        held = self.held
        return held > self.limits.max_buffered or (self.common.held > self.common.max_held and held > _LIGHT)

    def charge(self, exchange: Exchange, size: int) -> None:
        """Counts request bytes that are kept; raises ResourceExhausted."""
        exchange.held += size
        self.held += size
        self.common.held += size
        if self.full:
            raise errors.ResourceExhausted("too many unanswered requests are held already")

    def discharge(self, exchange: Exchange, size: int) -> None:
        """They are no longer kept."""
        exchange.held -= size
        self.held -= size
        self.common.held -= size

    def keep(self, exchange: Exchange) -> None:
        """An answer that its peer has no window for, or does not read, is charged like a request while it waits. Beyond
        the limits it is dropped."""
        change, exchange.kept = exchange.unsent_bytes - exchange.kept, exchange.unsent_bytes
        try:
            self.charge(exchange, change)
        except errors.ResourceExhausted:
            if change > 0:
                self.abandon(exchange, f.ENHANCE_YOUR_CALM)

    def call_of(self, exchange: Exchange, method: Method, payload: Payload) -> Call:
        """What a handler gets."""
        if not exchange.request_id:
            exchange.request_id = f"{_run}{next(_numbers):016x}"
        head = exchange.head
        call = Call(method.name, payload, exchange.deadline, head.headers, exchange.caller, exchange.request_id)
        call.origin = self.origin
        return call

    def await_end(self, exchange: Exchange, pending: Pending) -> None:
        """A call was begun without a task: whatever ends the exchange first cancels it."""
        if self.streams.get(exchange.id) is not exchange:
            # It is answered already; or it was ended meanwhile, and cancelling what has ended harms nobody.
            pending.cancel()
        elif exchange.last is None:
            exchange.pending = pending
            if not exchange.tick:
                self.common.deadlines.add(exchange)

    def start(self, exchange: Exchange, coroutine: Any, call: Call, then: Callable[[Any, Any], None]) -> None:
        """Runs a handler until it waits, and from there as a task."""
        context = copy_context()
        context.run(CALLER_OF_CALL.set, call.caller)
        context.run(REQUEST_ID_OF_CALL.set, call.request_id)
        task = eager.start(self.common.loop, coroutine, context, then)
        if task is not None:
            self.common.tasks.add(task)
            task.add_done_callback(self.common.tasks.discard)
            if self.streams.get(exchange.id) is exchange:
                exchange.pending = task
                if not exchange.tick:
                    self.common.deadlines.add(exchange)
            else:
                task.cancel()

    # Answers.

    def answered(self, exchange: Exchange, answer: Answer | None, problem: BaseException | None) -> None:
        exchange.pending = None
        number = exchange.id
        if self.streams.get(number) is not exchange:
            return
        if problem is not None or answer is None:
            self.fail(exchange, self.public(problem, exchange))
            return
        payload = answer.payload
        size = len(payload)
        if isinstance(answer, Received):
            last = replies.passed(number, answer.block)
        else:
            last = replies.success(number, answer.trailers)
        if self._table_note:
            self._put_opening(exchange)
        if self.fits(exchange, size + 5) and not exchange.begun:
            self.window -= size + 5
            out = self.out
            out.append(replies.before_payload(number, size))
            out.append(payload)
            out.append(last)
            self.out_bytes += size + 64
            self._over(exchange)
            del self.streams[number]
            self.resets.give()
        else:
            if not exchange.begun:
                self._put_opening(exchange)
            self.discharge(exchange, exchange.held)
            self.send(exchange, replies.PREFIX.pack(0, size), payload, last=last)
            if number in self.streams:
                self.common.deadlines.add(exchange)
                self.keep(exchange)
        self.flush_soon()

    def _put_opening(self, exchange: Exchange) -> None:
        exchange.begun = True
        note, self._table_note = self._table_note, b""
        if note:
            self.put(f.headers(exchange.id, note + replies.RESPONSE, 0, f.DEFAULT_FRAME))
        else:
            self.put(replies.opening(exchange.id))

    def open_answer(self, exchange: Exchange) -> None:
        """Response headers, once."""
        if not exchange.begun:
            self._put_opening(exchange)

    def finish(self, exchange: Exchange, trailers: Mapping[str, str]) -> None:
        """Ends a streaming call well."""
        self.open_answer(exchange)
        self.send(exchange, last=replies.success(exchange.id, trailers) + self._stop(exchange))
        self.flush_soon()

    def fail(self, exchange: Exchange, error: errors.PenstockError) -> None:
        """Ends a call by the error table and stops its handler."""
        if self.streams.get(exchange.id) is not exchange or exchange.last is not None:
            return
        if error.detail:
            said = f"answered {error.code.name}: {error.message} ({error.detail})"
            _tell(exchange, logging.WARNING, f"{exchange.head.path} {said}")
        if self._table_note:
            self._put_opening(exchange)
        last = replies.failure(exchange.id, error, exchange.request_id, begun=exchange.begun)
        exchange.begun = True
        self._cut(exchange)
        self.send(exchange, last=last + self._stop(exchange))
        if exchange.unsent_bytes:
            self.common.deadlines.add(exchange)
            self.keep(exchange)
        self.flush_soon()

    def _cut(self, exchange: Exchange) -> None:
        """The handler has no more to say."""
        self._over(exchange)
        pending, exchange.pending = exchange.pending, None
        if pending is not None and pending is not asyncio.current_task():
            pending.cancel()

    def _stop(self, exchange: Exchange) -> bytes:
        """After an answer that came before the end of the request: the rest of it is not wanted (9113, 8.1)."""
        return b"" if exchange.remote_ended else f.reset(exchange.id, f.NO_ERROR)

    def local_end(self, stream: Stream) -> None:
        """The answer is out, all of it."""
        if not stream.remote_ended:
            self.remember(stream.id)
        assert isinstance(stream, Exchange)
        self.forget(stream.id)
        self._cut(stream)
        self.resets.give()

    def refuse(self, number: int, ends: bool, error: errors.PenstockError, request_id: str) -> None:
        self.say_last(number, ends, replies.failure(number, error, request_id, begun=False))

    def say_last(self, number: int, ends: bool, said: bytes) -> None:
        """Answers a request that never becomes a call."""
        note, self._table_note = self._table_note, b""
        if note:
            said = replies.with_note(said, note)
        self.put(said)
        if not ends:
            self.put(f.reset(number, f.NO_ERROR))
            self.remember(number)

    def public(self, problem: BaseException | None, exchange: Exchange) -> errors.PenstockError:
        if isinstance(problem, errors.PenstockError):
            return problem
        if isinstance(problem, asyncio.CancelledError):
            return errors.Cancelled("the call was cancelled")
        if problem is not None:
            _tell(exchange, logging.ERROR, f"{exchange.head.path} crashed", problem)
        return errors.Internal(f"internal error; the log has it under request id {exchange.request_id}")

    # Ends.

    def _over(self, exchange: Exchange) -> None:
        held = exchange.held
        if held:
            exchange.kept = 0
            self.discharge(exchange, held)
        exchange.assembler = None
        if exchange.tick:
            self.common.deadlines.discard(exchange)
        if exchange.inbox is not None:
            # A reader must not take the end of a call for the end of its messages.
            exchange.inbox.close(None if exchange.remote_ended else asyncio.CancelledError("the caller has left"))
        if exchange.room is not None:
            make_room(exchange)

    def abandon(self, exchange: Exchange, code: int) -> None:
        """Resets a stream from our side."""
        self.give_up(exchange.id, code)
        self._cut(exchange)

    def forget(self, number: int) -> Stream | None:
        """The stream is over."""
        stream = super().forget(number)
        if stream is not None:
            assert isinstance(stream, Exchange)
            self._cut(stream)
        return stream

    def data_sent(self, stream: Stream) -> None:
        """A writer that waits may go on."""
        assert isinstance(stream, Exchange)
        if stream.kept:
            self.keep(stream)
        if stream.room is not None:
            make_room(stream)

    def writable_again(self) -> None:
        """The socket takes more."""
        self.writable = True
        for stream in self.streams.values():
            if isinstance(stream, Exchange) and stream.room is not None:
                make_room(stream)
        self.pump()

    def connection_ended(self, code: int, text: str) -> None:
        """Every call is cancelled."""
        if code:
            _log.info("connection ended with code %d: %s", code, text)
        for number in list(self.streams):
            self.forget(number)

    def table_allowed(self, size: int) -> None:
        """Our blocks never use the dynamic table; a peer that makes it smaller must be told once (RFC 7541, 4.2)."""
        self._table_note = b"\x20" if size < 4096 else b""


def make_room(exchange: Exchange) -> None:
    """Wakes the writer, which looks for itself."""
    room, exchange.room = exchange.room, None
    if room is not None and not room.done():
        room.set_result(None)


def _tell(exchange: Exchange, level: int, text: str, problem: BaseException | None = None) -> None:
    """Logs about a call under its request id, which is known to the call's own context alone."""
    context = copy_context()
    context.run(REQUEST_ID_OF_CALL.set, exchange.request_id)
    context.run(_log.log, level, "%s", text, exc_info=problem)
