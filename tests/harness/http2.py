"""A server's connection without a socket, fed with frames made by hand; what it says comes back as frames."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Limits, Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.answering import Common
from penstock.wire.http2.hpack import Decoder, Encoder, Field, literal
from penstock.wire.http2.server_side import ServerConnection

PATH = "/test.Echo/Echo"
FIELDS: tuple[Field, ...] = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)
HELLO = f.PREFACE + f.settings({})


class Frame(NamedTuple):
    """kind, flags, stream, payload."""

    kind: int
    flags: int
    stream: int
    payload: bytes


async def echo(call: Call) -> Answer:
    return Answer(call.payload)


def message(payload: bytes, *, flag: int = 0) -> bytes:
    """With its gRPC prefix."""
    return bytes((flag,)) + len(payload).to_bytes(4, "big") + payload


def plain_block(fields: tuple[Field, ...] = FIELDS) -> bytes:
    """A header block that leaves the dynamic table alone."""
    encoder = Encoder()
    encoder.allow(0)
    encoder.block((), [])
    return encoder.block(fields, []).removeprefix(b"\x20")


BLOCK = plain_block()


def request(stream: int, payload: bytes = b"hello", *, block: bytes = BLOCK) -> bytes:
    """HEADERS and DATA of a unary call."""
    head = f.headers(stream, block, 0, f.DEFAULT_FRAME)
    return head + f.frame(f.DATA, f.END_STREAM, stream, message(payload))


def frames_of(data: bytes) -> list[Frame]:
    """Every frame in `data`, which is whole."""
    out, at = [], 0
    while at < len(data):
        high, low, kind, flags, stream = f.HEAD.unpack_from(data, at)
        end = at + 9 + (high << 16 | low)
        assert end <= len(data)
        out.append(Frame(kind, flags, stream, data[at + 9 : end]))
        at = end
    return out


class Ended:
    """One end of a wire. Use inside a running loop."""

    def __init__(
        self, methods: Mapping[str, Method] | None = None, limits: Limits | None = None, *, greet: bool = True
    ) -> None:
        self.common = Common(asyncio.get_running_loop(), 1 << 30)
        self.connection = ServerConnection(
            self.common,
            {PATH: Method("Echo", echo)} if methods is None else methods,
            lambda headers: "tester",
            limits or Limits(),
            lambda: None,
        )
        self.decoder = Decoder(max_list=1 << 20, max_fields=1000)
        self.connection.begin()
        if greet:
            self.feed(HELLO)
            self.said()

    def feed(self, data: bytes | memoryview) -> None:
        self.connection.arrived(data)
        while self.connection.backlog is not None:
            self.connection.go_on()

    def said(self) -> list[Frame]:
        return frames_of(b"".join(self.connection.taken()))

    def fields(self, frame: Frame) -> dict[str, str]:
        return dict(self.decoder.decode(frame.payload))

    def ended_with(self) -> int | None:
        """The code of GOAWAY; None while the connection lives."""
        if not self.connection.ended:
            return None
        last = [frame for frame in self.said() if frame.kind == f.GOAWAY][-1]
        return int.from_bytes(last.payload[4:8], "big")


GRPC_OK = "0"


def block_with(*more: tuple[str, str], without: str = "") -> bytes:
    return plain_block(tuple(field for field in FIELDS if field[0] != without)) + b"".join(
        literal(*field) for field in more
    )


class Held:
    """A handler that waits until it is released or cancelled."""

    def __init__(self) -> None:
        self.begun, self.release, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, call: Call) -> Answer:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Answer(call.payload)
