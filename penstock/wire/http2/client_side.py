"""The calling end of one connection: calls become streams, what comes back becomes a result or an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from penstock import errors
from penstock.channel import ERROR_TRAILER, carried, error_info
from penstock.wire.call import Answer, Done, Payload

from . import frames as f
from .connection import Connection
from .deadlines import Deadlines
from .frames import ConnectionFault, StreamFault
from .hpack import BadBlock, Decoder, Encoder, Field, TooLong, literal, portable, portable_fields
from .limits import Limits
from .lost import ConnectionLost, NotTaken
from .messages import Assembler, check_prefix, prefixed, read_binary, read_text
from .outbound import Bytes, Stream
from .replies import PREFIX

_MAX_BLOCKS: Final = 256
_KEPT_BLOCK: Final = 1024
_OK: Final = literal("grpc-status", "0")
_log = logging.getLogger(__name__)
_LATE: Final = "the deadline passed before an answer came"
_HTTP: Final[dict[str, type[errors.PenstockError]]] = {
    "400": errors.Internal,
    "401": errors.Unauthenticated,
    "403": errors.PermissionDenied,
    "404": errors.Unsupported,
    "429": errors.Unavailable,
    "502": errors.Unavailable,
    "503": errors.Unavailable,
    "504": errors.Unavailable,
}
"""What an answer without gRPC in it means (gRPC's http-grpc-status-mapping.md)."""


class Received(Answer):
    """An answer as a peer gave it. block: its trailers, in a form that can be passed on to any connection."""

    __slots__ = ("block",)

    def __init__(self, payload: Payload, block: bytes) -> None:
        self.payload = payload
        self.block = block

    @property
    def trailers(self) -> Mapping[str, str]:  # type: ignore[override]
        """Read when somebody asks."""
        return _shown(portable_fields(self.block))


class Sent(Stream):
    """A call under way. done: told how a unary call ended; inbox: messages of a streaming one; trailers: fields of the
    end, or block: the same, portable, when it is well."""

    __slots__ = (
        "block",
        "connection",
        "deadline",
        "done",
        "headed",
        "message",
        "room",
        "tick",
        "trailers",
    )

    def __init__(self, connection: ClientConnection, number: int, deadline: float) -> None:
        super().__init__(number, connection.limits.stream_window, connection.peer_window)
        self.connection, self.deadline = connection, deadline
        self.tick = 0
        self.done: Done | None = None
        self.room: asyncio.Future[None] | None = None
        self.message: Payload | None = None
        self.headed = False
        self.trailers: list[Field] = []
        self.block = b""

    def expire(self) -> None:
        """Time is over: the peer is told."""
        self.connection.abandon(self, errors.DeadlineExceeded(_LATE))

    def cancel(self) -> None:
        """Nobody waits for the answer any more: the peer is told, `done` is not."""
        self.connection.abandon(self, None)


class ClientConnection(Connection):
    """flush_soon: asks the owner of the socket to send `out`; freed: called when a stream has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        deadlines: Deadlines,
        flush_soon: Callable[[], None],
        freed: Callable[[], None],
    ) -> None:
        super().__init__(limits, loop.time, client=True)
        self._loop, self._deadlines, self.flush_soon, self._freed = loop, deadlines, flush_soon, freed
        self._decoder = Decoder(max_list=limits.max_header_list, max_fields=limits.max_header_fields)
        self._encoder = Encoder()
        self._blocks: dict[bytes, list[Field]] = {}
        self._next = 1
        self.leaving = False

    @property
    def usable(self) -> bool:
        """A new call may begin here, room for it or not."""
        return not (self.ended or self.leaving) and self._next < f.MAX_WINDOW

    @property
    def room(self) -> bool:
        """The peer takes one more call now."""
        return len(self.streams) < self.peer_streams

    # Calls.

    def open(self, repeated: tuple[Field, ...], varying: list[Field], deadline: float) -> Sent:
        """Begins a call with its headers."""
        number = self._next
        self._next = number + 2
        self.last_seen = number
        sent = Sent(self, number, deadline)
        self.streams[number] = sent
        self._deadlines.add(sent)
        block = self._encoder.block(repeated, varying)
        size = len(block)
        if size <= f.DEFAULT_FRAME:
            self.put(f.pack_head(0, size, f.HEADERS, f.END_HEADERS, number) + block)
        else:
            self.put(f.headers(number, block, 0, self.peer_frame))
        return sent

    def ask(self, sent: Sent, payload: Bytes, done: Done) -> None:
        """Sends the one message of a unary call; `done` is told how it ends, unless it is cancelled."""
        sent.done = done
        size = len(payload)
        framed = size + 5
        if self.fits(sent, framed):
            self.window -= framed
            head = f.pack_head(framed >> 16, framed & 0xFFFF, f.DATA, f.END_STREAM, sent.id)
            self.put(head + PREFIX.pack(0, size))
            self.put(payload)
        else:
            end = f.frame(f.DATA, f.END_STREAM, sent.id)
            self.send(sent, PREFIX.pack(0, size), payload, last=end)
        self.flush_soon()

    def abandon(self, sent: Sent, error: errors.PenstockError | None, code: int = f.CANCEL) -> None:
        """Gives a call up from our side. error: for whoever waits for it."""
        if self.streams.get(sent.id) is sent:
            self.give_up(sent.id, code)
            self._close(sent, error)
            self.flush_soon()

    # What comes back.

    def block_received(self, number: int, block: bytes, ends: bool) -> None:
        """Headers or trailers of an answer."""
        if ends and len(block) <= _KEPT_BLOCK and block.startswith(_OK) and portable(block):
            # As our own workers end a call: there is nothing in it that has to be known here.
            stream = self.streams.get(number)
            if isinstance(stream, Sent) and stream.headed and stream.done is not None:
                stream.remote_ended = True
                stream.block = block
                self._conclude(stream)
                return
        fields = self._blocks.get(block)
        if fields is None:
            fields = self._decode(block)
        sent = self.streams.get(number)
        if sent is None:
            if self._idle(number):
                raise ConnectionFault(f.PROTOCOL_ERROR, "HEADERS of a stream that was never opened")
            return
        assert isinstance(sent, Sent)
        if not sent.headed:
            status = fields[0][1] if fields and fields[0][0] == ":status" else ""
            if len(status) == 3 and status[0] == "1" and not ends:
                return
            sent.headed = True
            if status != "200":
                kind = _HTTP.get(status, errors.Internal)
                self.abandon(sent, kind(f"the server answered with HTTP status {status or 'none'}"))
                return
        elif not ends:
            raise StreamFault(number, f.PROTOCOL_ERROR, "HEADERS in the midst of an answer")
        if ends:
            sent.remote_ended = True
            sent.trailers = fields
            self._conclude(sent)

    def _decode(self, block: bytes) -> list[Field]:
        decoder, before = self._decoder, self._decoder.version
        try:
            fields = decoder.decode(block)
        except (BadBlock, TooLong) as bad:
            raise ConnectionFault(f.COMPRESSION_ERROR, str(bad)) from None
        if decoder.version != before:
            self._blocks.clear()
        elif len(block) <= _KEPT_BLOCK:
            if len(self._blocks) >= _MAX_BLOCKS:
                self._blocks.clear()
            self._blocks[block] = fields
        return fields

    def data_received(self, stream: Stream, piece: bytes | memoryview, ends: bool) -> None:
        """DATA of an answer."""
        assert isinstance(stream, Sent)
        if not stream.headed:
            raise StreamFault(stream.id, f.PROTOCOL_ERROR, "DATA before HEADERS")
        size = len(piece)
        try:
            if stream.inbox is not None:
                stream.inbox.feed(piece, False)
                stream.inbox.grant()
            elif stream.message is None and stream.assembler is None and size >= 5 and prefixed(piece)[0] == size - 5:
                check_prefix(piece[0], size - 5, self.limits.max_message)
                stream.message = bytes(piece[5:])
            elif size:
                self._assemble(stream, piece)
        except errors.PenstockError as refusal:
            self.abandon(stream, refusal)
            return
        if ends:
            self._conclude(stream)

    def _assemble(self, sent: Sent, piece: bytes | memoryview) -> None:
        if sent.message is not None:
            raise errors.Internal("the server sent more than one message")
        if sent.assembler is None:
            sent.assembler = Assembler(self.limits.max_message)
        sent.assembler.feed(piece)
        sent.assembler.check()
        self.regrant(sent)
        message = sent.assembler.take()
        if message is not None:
            if not sent.assembler.between:
                raise errors.Internal("the server sent more than one message")
            sent.message, sent.assembler = message, None

    def _conclude(self, sent: Sent) -> None:
        """The peer has said everything."""
        if sent.last is not None or sent.unsent:
            # It does not want the rest of the request.
            self.give_up(sent.id, f.CANCEL)
        else:
            self.forget(sent.id)
        problem = None if sent.block else problem_of(sent.trailers)
        answer: Answer | None = None
        if problem is None and sent.done is not None:
            if sent.message is None:
                problem = errors.Internal("the server answered without a message")
            elif sent.block:
                answer = Received(sent.message, sent.block)
            else:
                answer = Answer(sent.message, _shown(sent.trailers))
        self._close(sent, problem, answer)

    def _close(self, sent: Sent, problem: errors.PenstockError | None, answer: Answer | None = None) -> None:
        if sent.tick:
            self._deadlines.discard(sent)
        done, sent.done = sent.done, None
        if done is not None and (answer is not None or problem is not None):
            try:
                done(answer, problem)
            except Exception:
                _log.exception("what was to be done with an answer failed")
        if sent.inbox is not None:
            sent.inbox.close(problem)
        if sent.room is not None and not sent.room.done():
            sent.room.set_result(None)
        self._freed()

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        sent = self.streams.get(number)
        super()._rst_stream(flags, number, payload)
        if isinstance(sent, Sent):
            self.resets.give()
            self._close(sent, _reset_error(f.read_long(payload)))

    def fault(self, number: int, code: int, text: str) -> None:
        """A stream broke the protocol."""
        sent = self.streams.get(number)
        super().fault(number, code, text)
        if isinstance(sent, Sent):
            self._close(sent, ConnectionLost("the peer broke the protocol", detail=text))

    def local_end(self, stream: Stream) -> None:
        """All of the request is out."""
        stream.last = None

    def data_sent(self, stream: Stream) -> None:
        """A sender that waits may go on."""
        assert isinstance(stream, Sent)
        room, stream.room = stream.room, None
        if room is not None and not room.done():
            room.set_result(None)

    # The connection.

    def peer_leaves(self, last: int, code: int, text: str) -> None:
        """GOAWAY: no new calls here; those that the peer has not seen can be sent again."""
        self.leaving = True
        for number in [number for number in self.streams if number > last]:
            sent = self.forget(number)
            assert isinstance(sent, Sent)
            self._close(sent, NotTaken("the peer is leaving", detail=text))
        self._freed()

    def connection_ended(self, code: int, text: str) -> None:
        """Whoever waits hears of it."""
        for number in list(self.streams):
            sent = self.forget(number)
            assert isinstance(sent, Sent)
            self._close(sent, ConnectionLost("the connection to the peer was lost", detail=text))
        self._freed()

    def table_allowed(self, size: int) -> None:
        """The peer's decoder."""
        self._encoder.allow(size)

    def streams_allowed(self) -> None:
        """Maybe more than before."""
        self._freed()


def _shown(trailers: list[Field]) -> dict[str, str]:
    """Trailers without what is gRPC's own."""
    return {name: value for name, value in trailers if name != "grpc-status" and name[-4:] != "-bin"}


def problem_of(trailers: list[Field]) -> errors.PenstockError | None:
    """The error that trailers tell; None for status OK."""
    status, text, info = "", "", None
    for name, value in trailers:
        if name == "grpc-status":
            status = value
        elif name == "grpc-message":
            text = read_text(value)
        elif name == ERROR_TRAILER:
            try:
                info = error_info(((name, read_binary(value)),))
            except errors.InvalidArgument:
                info = None
    if status == "0":
        return None
    if info is not None:
        return carried(info)
    if status in ("14", "1"):
        # Without an ErrorInfo no service answered: a server that stops cancels what is left.
        return ConnectionLost("the connection to the peer was lost", detail=text)
    if not status.isdigit():
        return errors.Internal("the server ended a call without a status")
    return errors.from_grpc(int(status), text)


def _reset_error(code: int) -> errors.PenstockError:
    if code == f.REFUSED_STREAM:
        return NotTaken("the peer took no more calls")
    if code == f.ENHANCE_YOUR_CALM:
        return errors.ResourceExhausted("the peer asks for fewer calls")
    return ConnectionLost("the peer broke the call off", detail=f"RST_STREAM {code}")
