"""A peer that sends whatever bytes a test likes to a real port, and puts what comes back into words."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import defaultdict
from collections.abc import Iterable

from penstock.wire.http2 import frames as f
from penstock.wire.http2.hpack import Decoder
from tests.harness.http2 import HELLO, Frame, frames_of, request

_ERRORS = (
    "PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR STREAM_CLOSED FRAME_SIZE_ERROR REFUSED_STREAM CANCEL "
    "COMPRESSION_ERROR ENHANCE_YOUR_CALM NO_ERROR"
)
CODES: dict[int, str] = {getattr(f, name): name for name in re.findall(r"\S+", _ERRORS)}
LAST_WORD = 0x7FFFFFF1
"""The stream of a request that shows whether the connection still works."""
_MARK = b"the end!"


class RawPeer:
    """One connection. Nothing is read before it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._rest = b""

    @classmethod
    async def to(cls, address: str, *, hello: bytes = HELLO, buffer: int = 0) -> RawPeer:
        """Connects to `host:port` and says hello. buffer: bytes that the kernel may keep unread, if not as usual."""
        host, _, port = address.rpartition(":")
        raw = socket.socket()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        it = cls(*await asyncio.open_connection(sock=raw))
        it.writer.write(hello)
        return it

    async def send(self, data: bytes) -> None:
        """Sends, as far as the server takes it; a server that has closed is no fault."""
        if self.writer.transport.is_closing():
            return
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def frames(self) -> list[Frame]:
        """At least one more frame; none after the end."""
        while True:
            at = 0
            while len(self._rest) - at >= 9:
                size = 9 + int.from_bytes(self._rest[at : at + 3], "big")
                if len(self._rest) - at < size:
                    break
                at += size
            if at:
                whole, self._rest = self._rest[:at], self._rest[at:]
                return frames_of(whole)
            try:
                data = await self.reader.read(1 << 16)
            except ConnectionError:
                return []
            if not data:
                return []
            self._rest += data

    async def until(self, *, mark: bytes) -> list[Frame]:
        """Frames up to the answer of the PING `mark`, or to the end of the connection."""
        found: list[Frame] = []
        async with asyncio.timeout(30):
            while True:
                some = await self.frames()
                found += some
                if not some or any(frame.kind == f.PING and frame.payload == mark for frame in some):
                    return found

    async def ping(self) -> list[Frame]:
        """What the server had to say to everything sent so far."""
        await self.send(f.frame(f.PING, 0, 0, _MARK))
        return await self.until(mark=_MARK)

    async def close(self) -> None:
        """Hangs up."""
        self.writer.transport.abort()
        await asyncio.sleep(0)


async def said_to(address: str, sent: bytes, *, hello: bytes = HELLO) -> list[str]:
    """What a server says to these bytes, then to one more request on the same connection.

    The answer to that one is left out: its absence shows as `no last word`, unless the connection was ended.
    """
    peer = await RawPeer.to(address, hello=hello)
    try:
        await peer.send(sent + request(LAST_WORD, b"well?"))
        words = in_words(await peer.ping())
    finally:
        await peer.close()
    last = f"{LAST_WORD}: well? 0"
    if last in words:
        words.remove(last)
    elif not any(word.startswith("GOAWAY") for word in words):
        words.append("no last word")
    return words


def in_words(frames: Iterable[Frame]) -> list[str]:
    """`GOAWAY code`, `RST stream code`, `PING payload`, and for each answer `stream: message status`, in the order of
    their ends; an answer without an end comes last, as `stream: n bytes so far`. SETTINGS and windows are left out."""
    decoder = Decoder(max_list=1 << 20, max_fields=1000)
    words: list[str] = []
    data: defaultdict[int, bytearray] = defaultdict(bytearray)
    for frame in frames:
        if frame.kind == f.GOAWAY:
            words.append(f"GOAWAY {_code(frame.payload[4:])}")
        elif frame.kind == f.RST_STREAM:
            words.append(f"RST {frame.stream} {_code(frame.payload)}")
            data.pop(frame.stream, None)
        elif frame.kind == f.PING and frame.payload != _MARK:
            words.append(f"PING {frame.payload.decode('latin-1')}")
        elif frame.kind == f.DATA:
            data[frame.stream] += frame.payload
        elif frame.kind == f.HEADERS:
            fields = dict(decoder.decode(frame.payload))
            if not frame.flags & f.END_STREAM:
                continue
            body = bytes(data.pop(frame.stream, b""))
            shown = f"{len(body) - 5} bytes" if len(body) > 25 else body[5:].decode("ascii", "replace")
            status = fields.get("grpc-status") or f"HTTP {fields[':status']}"
            words.append(f"{frame.stream}: {shown}{' ' if shown else ''}{status}")
    return words + [f"{stream}: {len(body)} bytes so far" for stream, body in data.items()]


def _code(payload: bytes) -> str:
    code = f.read_long(payload)
    return CODES.get(code, f"code {code}")
