"""The serving end of one connection: requests become calls of handlers.

Who calls is asked before a byte of the body is taken. A unary call whose handler does not wait is answered in the same
turn of the loop, without a task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from penstock import errors
from penstock.wire.call import Payload

from . import frames as f
from . import replies
from .answering import Answering, Common, Exchange
from .frames import ConnectionFault, StreamFault
from .head import Head, Malformed, Method, may_end
from .heads import Heads
from .hpack import BadBlock, TooLong
from .limits import Limits
from .messages import Assembler, check_prefix, prefixed
from .outbound import Stream
from .server_stream import serve_stream

Authenticate = Callable[[Mapping[str, str]], str]
"""Name of the caller by the headers of a call; raises PenstockError."""

_CALL_COST: Final = 4096
"""About what a call costs besides its bytes: charged, so that calls without bytes are bounded too."""
_LEAVING: Final = b"leaving!"
_log = logging.getLogger(__name__)


class ServerConnection(Answering):
    """methods: by path; authenticate: asked for every call of a method that is not open."""

    def __init__(
        self,
        common: Common,
        methods: Mapping[str, Method],
        authenticate: Authenticate,
        limits: Limits,
        flush_soon: Callable[[], None],
    ) -> None:
        super().__init__(common, limits, flush_soon)
        self._methods, self._authenticate = methods, authenticate
        self._heads = Heads(methods, limits)
        self._incomplete: list[Exchange] = []
        self._last_accepted = f.MAX_WINDOW

    def arrived(self, data: bytes | memoryview) -> None:
        """Takes bytes from the socket. A peer that sends many calls at once must not keep those of others waiting for
        all of them: beyond `calls_at_once`, or the first while others wait for their turn, they stay in `backlog`
        until `go_on`."""
        if self.backlog is None:
            self._take(data, 1 if self.common.turns else self.limits.calls_at_once)
        else:
            self.receive(data)

    def go_on(self) -> None:
        """Takes the next calls of the backlog, after the turn of others."""
        backlog, self.backlog = self.backlog, None
        if backlog is not None:
            self._take(backlog, self.limits.calls_at_once)

    def _take(self, data: bytes | memoryview, calls: int) -> None:
        self.calls_left = calls
        self.receive(data)
        if self._incomplete:
            for exchange in self._incomplete:
                if not exchange.remote_ended and exchange.id in self.streams:
                    self.common.deadlines.add(exchange)
            self._incomplete.clear()

    def block_received(self, number: int, block: bytes, ends: bool) -> None:
        """HEADERS: a new request, or the trailers of one."""
        if number <= self.last_seen or not number & 1:
            self._late_block(number, block, ends)
            return
        self.last_seen = number
        try:
            head = self._heads.read(block)
        except Malformed as malformed:
            raise StreamFault(number, f.PROTOCOL_ERROR, str(malformed)) from None
        except TooLong as too_long:
            self.refuse(number, ends, errors.ResourceExhausted(str(too_long)), "")
            return
        except BadBlock as bad:
            raise ConnectionFault(f.COMPRESSION_ERROR, str(bad)) from None
        if ends and head.length > 0:
            raise StreamFault(number, f.PROTOCOL_ERROR, "no body, though content-length says one")
        if number > self._last_accepted or len(self.streams) >= self.limits.max_streams:
            self._take_reset()
            self.give_up(number, f.REFUSED_STREAM)
            return
        self._admit(number, head, ends)

    def _admit(self, number: int, head: Head, ends: bool) -> None:
        method = head.method
        caller = ""
        try:
            if head.http:
                self.say_last(number, ends, replies.http_status(number, head.http))
                return
            if method is None or not method.open:
                caller = self._authenticate(head.headers)
            if head.refusal is not None:
                # Kept with its head, it would keep the trace of every call that it has refused.
                raise head.refusal.with_traceback(None)
            if method is None:
                raise errors.Unsupported("this server has no such method")
            if self.full:
                raise errors.ResourceExhausted("too many unanswered requests are held already")
        except errors.PenstockError as refusal:
            self.refuse(number, ends, refusal, head.request_id)
            return
        except Exception:
            _log.exception("authentication crashed")
            self.refuse(number, ends, errors.Internal("internal error; the log has it"), head.request_id)
            return
        timeout = head.timeout
        if timeout is None:
            timeout = method.default_timeout if method.stream is None else float("inf")
        exchange = Exchange(self, number, head, caller, self.clock() + timeout)
        self.streams[number] = exchange
        exchange.remote_ended = ends
        exchange.held = cost = _CALL_COST + head.cost
        self.held += cost
        self.common.held += cost
        # A tiny message and its end may come in two frames.
        self.crumbs.give()
        if method.stream is not None:
            serve_stream(self, exchange, method.stream, ends)
        elif ends:
            self.fail(exchange, errors.Unsupported("a call of this method has exactly one message, and this has none"))
        else:
            self._incomplete.append(exchange)

    def _late_block(self, number: int, block: bytes, ends: bool) -> None:
        """Trailers, or something that comes too late; it is decoded all the same, for the table's sake."""
        try:
            fields = self._heads.decoder.decode(block)
        except TooLong:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "trailers that are too large") from None
        except BadBlock as bad:
            raise ConnectionFault(f.COMPRESSION_ERROR, str(bad)) from None
        stream = self.streams.get(number)
        if stream is not None and not stream.remote_ended:
            if not ends or not may_end(fields):
                raise StreamFault(number, f.PROTOCOL_ERROR, "a second HEADERS that is no trailers")
            stream.remote_ended = True
            self.data_received(stream, b"", True)
        elif not self.was_given_up(number):
            code = f.STREAM_CLOSED if stream is not None or number == self.last_seen else f.PROTOCOL_ERROR
            raise ConnectionFault(code, "HEADERS on a stream that has ended")

    def data_received(self, stream: Stream, piece: bytes | memoryview, ends: bool) -> None:
        """DATA of a request."""
        assert isinstance(stream, Exchange)
        size = len(piece)
        assembler = stream.assembler
        if stream.head.length >= 0:
            self._measure(stream, size, ends)
        try:
            if stream.inbox is not None:
                stream.inbox.feed(piece, ends)
                return
            if assembler is None and ends and size >= 5 and piece[0] == 0 and prefixed(piece)[0] == size - 5:
                if size - 5 > self.limits.max_message:
                    check_prefix(0, size - 5, self.limits.max_message)
                stream.held += size
                self.held += size
                self.common.held += size
                self._serve(stream, bytes(piece[5:]))
                return
            if assembler is None:
                assembler = stream.assembler = Assembler(self.limits.max_message)
            self.charge(stream, size)
            assembler.feed(piece)
            assembler.check()
            if not ends:
                self.regrant(stream)
                return
            message = assembler.take()
            if message is None or not assembler.between:
                raise errors.InvalidArgument("the body is not exactly one whole message")
            stream.assembler = None
        except errors.PenstockError as refusal:
            self.fail(stream, refusal)
            return
        self._serve(stream, message)

    def data_gathered(self, stream: Stream, size: int) -> None:
        """DATA in the midst of a large message."""
        assert isinstance(stream, Exchange)
        try:
            self.charge(stream, size)
        except errors.PenstockError as refusal:
            self.fail(stream, refusal)
            return
        if stream.head.length >= 0:
            self._measure(stream, size, False)
        super().data_gathered(stream, size)

    def _measure(self, exchange: Exchange, size: int, ends: bool) -> None:
        exchange.body += size
        wanted = exchange.head.length
        if exchange.body > wanted or (ends and exchange.body != wanted):
            raise StreamFault(exchange.id, f.PROTOCOL_ERROR, "a body that is not as long as content-length says")

    def _serve(self, exchange: Exchange, payload: Payload) -> None:
        method = exchange.head.method
        assert method is not None and method.unary is not None
        call = self.call_of(exchange, method, payload)
        done = partial(self.answered, exchange)
        try:
            if method.direct is not None and (pending := method.direct(call, done)) is not None:
                self.await_end(exchange, pending)
                return
            coroutine: Any = method.unary(call)
        except Exception as problem:
            done(None, problem)
            return
        self.start(exchange, coroutine, call, done)

    # The end.

    @property
    def refusing(self) -> bool:
        """Both GOAWAYs are out."""
        return self._last_accepted != f.MAX_WINDOW

    def stop_accepting(self) -> None:
        """The second GOAWAY: requests after those seen are refused."""
        if self.ended or self._last_accepted != f.MAX_WINDOW:
            return
        self._last_accepted = self.last_seen
        self.put(f.goaway(self.last_seen, f.NO_ERROR))

    def announce_end(self) -> None:
        """The first GOAWAY, which only says that the end is near, and a PING that tells when it was heard."""
        if self.ended or self.leaving:
            return
        self.leaving = True
        self.put(f.goaway(f.MAX_WINDOW, f.NO_ERROR))
        self.put(f.frame(f.PING, 0, 0, _LEAVING))

    def ping_answered(self, payload: bytes) -> None:
        """The peer has read what came before the PING."""
        if payload == _LEAVING and self.leaving:
            self.stop_accepting()
