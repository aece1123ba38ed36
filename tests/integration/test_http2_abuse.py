"""Hostile peers on a real port: what each may cost the process in memory, while an honest client is served throughout.

The bound of a case is on the peak of the process's resident memory over what it was before (proc(5), VmHWM). What a
peer gets to hear is asked for without a socket too, in tests/unit/wire/test_http2_abuse.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice

import pytest

from penstock.wire.http2 import frames as f
from penstock.wire.http2.client import Peer
from penstock.wire.http2.hpack import integer, literal
from tests.harness.http2 import message, plain_block
from tests.harness.http2_port import MAX_CONNECTIONS, MAX_HELD, Port, port
from tests.harness.http2_services import ask
from tests.harness.raw_http2 import RawPeer, in_words

MEBIBYTE = 1 << 20
HELD = MAX_HELD // MEBIBYTE
ANY_WINDOW = f.settings({f.INITIAL_WINDOW_SIZE: 2**31 - 1}) + f.window_update(0, 2**31 - 65_536)
ENDED = "the connection was ended"
"""GOAWAY itself may be lost, when the socket is closed with bytes unread."""
TOO_LITTLE_ROOM = "8"
"""grpc-status RESOURCE_EXHAUSTED."""


def to(method: str) -> bytes:
    """The block of a request."""
    pseudo = ((":method", "POST"), (":scheme", "http"), (":path", f"/t.T/{method}"))
    return plain_block((*pseudo, ("te", "trailers"), ("content-type", "application/grpc")))


ECHO, HANG, LARGE, TOTAL = to("Echo"), to("Hang"), to("Large"), to("Total")


def head(stream: int, block: bytes = ECHO, *, ends: bool = False) -> bytes:
    return f.headers(stream, block, f.END_STREAM if ends else 0, f.DEFAULT_FRAME)


def request(stream: int, block: bytes, payload: bytes = b"x") -> bytes:
    return head(stream, block) + f.frame(f.DATA, f.END_STREAM, stream, message(payload))


class Honest:
    """A client that calls without pause; every answer must be right."""

    def __init__(self, address: str) -> None:
        self._peer, self.answers, self._stop = Peer(address), 0, False

    async def __aenter__(self) -> Honest:
        self._task = asyncio.create_task(self._call())
        await self._more(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._more(10)
        self._stop = True
        await self._task
        await self._peer.close()

    async def _more(self, count: int) -> None:
        count += self.answers
        while self.answers < count and not self._task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def _call(self) -> None:
        while not self._stop:
            payload = b"%d" % self.answers
            assert (await ask(self._peer, "Echo", payload)).payload == payload
            self.answers += 1
            await asyncio.sleep(0.001)


Attack = Callable[[str], Awaitable[Counter[str]]]
ATTACKS: dict[str, tuple[int, Attack]] = {}
"""The most that it may cost, in MiB, and what is done; it counts what it was told."""


def costs(mebibytes: int) -> Callable[[Attack], Attack]:
    def note(attack: Attack) -> Attack:
        ATTACKS[attack.__name__] = (mebibytes, attack)
        return attack

    return note


async def flood(address: str, frames: Iterable[bytes], *, first: bytes = b"", at_once: int = 500) -> Counter[str]:
    """Sends everything, on one connection after the other when the server ends them; counts what was heard.

    After `at_once` of them the server is asked whether it is still there, so that all of it is sent to somebody.
    """
    heard: Counter[str] = Counter()
    waiting = iter(frames)
    some = list(islice(waiting, at_once))
    while some:
        peer = await RawPeer.to(address)
        await peer.send(first)
        there = True
        while some and there:
            await peer.send(b"".join(some))
            frames_heard = await peer.ping()
            heard.update(_ends(in_words(frames_heard)))
            there = bool(frames_heard) and frames_heard[-1].kind == f.PING
            some = list(islice(waiting, at_once))
        heard[ENDED] += not there
        await peer.close()
    return heard


def _ends(words: Iterable[str]) -> Iterator[str]:
    """Words without their streams; statuses and codes alone."""
    for word in words:
        yield word if word.startswith("GOAWAY") else word.rpartition(" ")[2]


async def crowd(address: str, count: int, sent: bytes, *, then: bytes = b"") -> Counter[str]:
    """Sends the same on many connections at once, which stay open until all of them have heard; `then` is sent to all
    after that. Counts what they heard."""
    peers = await asyncio.gather(*(RawPeer.to(address) for _ in range(count)))
    await asyncio.gather(*(peer.send(sent) for peer in peers))
    heard: Counter[str] = Counter()
    for data in (b"", then):
        await asyncio.gather(*(peer.send(data) for peer in peers))
        for frames in await asyncio.gather(*(peer.ping() for peer in peers)):
            heard.update(_ends(in_words(frames)))
    for peer in peers:
        await peer.close()
    return heard


@costs(16)
async def rapid_reset(address: str) -> Counter[str]:
    """50,000 streams that are opened and reset; a connection is good for about a thousand."""
    pair = (head(2 * n + 1, HANG) + f.reset(2 * n + 1, f.CANCEL) for n in range(50_000))
    heard = await flood(address, pair)
    assert heard[ENDED] >= 10
    return heard


@costs(16)
async def made_to_reset(address: str) -> Counter[str]:
    """50,000 streams that the server is made to reset."""
    heard = await flood(address, (head(2 * n + 1, HANG) + f.window_update(2 * n + 1, 0) for n in range(50_000)))
    assert heard[ENDED] >= 10
    return heard


@costs(8)
async def settings(address: str) -> Counter[str]:
    """20,000 SETTINGS of 64 window sizes, while 200 answers wait for a window."""
    held = f.settings({f.INITIAL_WINDOW_SIZE: 0}) + b"".join(request(2 * n + 1, ECHO) for n in range(200))
    heard = await flood(address, [f.frame(f.SETTINGS, 0, 0, b"\0\4\0\0\0\0" * 64)] * 20_000, first=held)
    assert heard[ENDED] >= 10
    return heard


@costs(8)
async def pings(address: str) -> Counter[str]:
    heard = await flood(address, [f.frame(f.PING, 0, 0, b"12345678")] * 50_000)
    assert heard[ENDED] >= 10
    return heard


@costs(8)
async def continuations(address: str) -> Counter[str]:
    """A block without an end, of empty frames and of full ones."""
    heard = await flood(address, [f.frame(f.CONTINUATION, 0, 1)] * 20_000, first=f.frame(f.HEADERS, 0, 1, ECHO))
    full = f.frame(f.CONTINUATION, 0, 1, literal("x", "y" * 16_000))
    heard += await flood(address, [full] * 500, first=f.frame(f.HEADERS, 0, 1, ECHO))
    assert heard[ENDED] >= 2
    return heard


@costs(8)
async def empty_data(address: str) -> Counter[str]:
    heard = await flood(address, [f.frame(f.DATA, 0, 1)] * 100_000, first=head(1, TOTAL), at_once=25_000)
    assert heard[ENDED] >= 1
    return heard


@costs(8)
async def one_byte_at_a_time(address: str) -> Counter[str]:
    """A message of a million bytes in a million frames."""
    first = head(1) + f.frame(f.DATA, 0, 1, message(bytes(10**6))[:5])
    heard = await flood(address, [f.frame(f.DATA, 0, 1, b"x")] * 10**6, first=first, at_once=25_000)
    assert heard[ENDED] >= 1
    return heard


@costs(8)
async def tiny_increments(address: str) -> Counter[str]:
    """Windows that grow by one byte, while answers wait for them."""
    first = f.settings({f.INITIAL_WINDOW_SIZE: 0}) + b"".join(request(2 * n + 1, ECHO) for n in range(200))
    heard = await flood(address, [f.window_update(0, 1), f.window_update(1, 1)] * 25_000, first=first, at_once=25_000)
    assert heard[ENDED] >= 1
    return heard


@costs(8)
async def many_increments(address: str) -> Counter[str]:
    """Increments of a size that is allowed, while 200 answers wait for another window."""
    first = f.settings({f.INITIAL_WINDOW_SIZE: 0}) + b"".join(request(2 * n + 1, ECHO) for n in range(200))
    return await flood(address, [f.window_update(0, 1024)] * 50_000, first=first)


@costs(8)
async def a_table_that_changes(address: str) -> Counter[str]:
    """Every block inserts what the next one evicts."""
    fresh = (b"\x40\x01x" + integer(3000, 0x7F, 0) + b"%3000d" % n for n in range(5000))
    return await flood(address, (request(2 * n + 1, ECHO + entry) for n, entry in enumerate(fresh)))


@costs(8)
async def a_block_that_unfolds(address: str) -> Counter[str]:
    """A few hundred bytes that mean megabytes of headers."""
    entry = b"\x40\x01x" + integer(4000, 0x7F, 0) + b"y" * 4000
    first = request(1, ECHO + entry[:-1000].replace(integer(4000, 0x7F, 0), integer(3000, 0x7F, 0)))
    heard = await flood(address, (request(2 * n + 3, ECHO + b"\xbe" * 5000) for n in range(500)), first=first)
    assert heard[TOO_LITTLE_ROOM] == 500
    return heard


@costs(8)
async def heads_that_are_never_the_same(address: str) -> Counter[str]:
    """On ten connections, each of which keeps some."""
    entry = b"\x40\x01x" + integer(900, 0x7F, 0) + b"y" * 900
    some = (request(2 * n + 3, ECHO + b"\xbe" * 15 + literal("n", str(n))) for n in range(300))
    return await crowd(address, 10, request(1, ECHO + entry) + b"".join(some))


@costs(8)
async def refusals(address: str) -> Counter[str]:
    """The same bad request again and again."""
    block = ECHO + literal("grpc-timeout", "5 parsecs")
    heard = await flood(address, (head(2 * n + 1, block, ends=True) for n in range(20_000)))
    assert heard["3"] == 20_000
    return heard


@costs(8)
async def what_is_no_utf8(address: str) -> Counter[str]:
    """In paths and in values."""
    path = ECHO.replace(b"/t.T/Echo", b"/t.T/\xc3(\xff\xfe")
    value = ECHO + literal("x", "\xf0\x28\x8c\x28")
    heard = await flood(address, (head(2 * n + 1, (path, value)[n & 1], ends=True) for n in range(5000)))
    assert heard["3"] == heard["12"] == 2500
    return heard


@costs(2 * HELD + 16)
async def requests_without_an_end(address: str) -> Counter[str]:
    """60 peers, each of which sends 4 MB of a message of 8 MB, slowly enough that all stay. The room for a message is
    at most twice what has arrived of it (gathering.py)."""
    start = head(1) + f.frame(f.DATA, 0, 1, message(bytes(8 << 20))[:MEBIBYTE])
    heard = await crowd(address, 60, start, then=f.frame(f.DATA, 0, 1, bytes(MEBIBYTE)) * 3)
    assert heard[TOO_LITTLE_ROOM] >= 60 - HELD // 3
    return heard


@costs(HELD + 24)
async def calls_without_bytes(address: str) -> Counter[str]:
    """12,800 calls that have large headers and nothing else; each is held for 12,000 bytes or so."""
    calls = b"".join(head(2 * n + 1, HANG + literal("x", "y" * 8000) + literal("n", str(n))) for n in range(256))
    heard = await crowd(address, 50, calls)
    assert heard[TOO_LITTLE_ROOM] >= 12_800 - MAX_HELD // 10_000, heard
    return heard


@costs(HELD + 24)
async def answers_without_a_window(address: str) -> Counter[str]:
    """2,000 answers of 100 KB that no window is opened for."""
    calls = b"".join(request(2 * n + 1, LARGE, b"100000") for n in range(200))
    heard = await crowd(address, 10, f.settings({f.INITIAL_WINDOW_SIZE: 0}) + calls)
    assert heard["ENHANCE_YOUR_CALM"] + heard[TOO_LITTLE_ROOM] >= 2000 - MAX_HELD // 100_000
    return heard


@costs(2 * 100 + HELD + 24)
async def answers_that_nobody_reads(address: str) -> Counter[str]:
    """100 peers that ask for 16 MB each, open every window, and do not read. Each has up to a MiB that its socket does
    not take (link.py) and one more put out meanwhile (outbound.py); all together, what may be held."""
    peers = await asyncio.gather(*(RawPeer.to(address, buffer=4096) for _ in range(100)))
    calls = b"".join(request(2 * n + 1, LARGE, b"1000000") for n in range(16))
    for peer in peers:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(ANY_WINDOW + calls)
    # Time enough for the server to look twice at who does not read.
    await asyncio.sleep(2.5)
    for peer in peers:
        await peer.close()
    return Counter()


@costs(80)
async def frames_without_an_end(address: str) -> Counter[str]:
    """50 padded frames as large as they may be, each without its last byte."""
    frame = f.frame(f.DATA, f.PADDED, 1, bytes(MEBIBYTE - 1))[:-1]
    peers = await asyncio.gather(*(RawPeer.to(address) for _ in range(50)))
    await asyncio.gather(*(peer.send(head(1, TOTAL) + frame) for peer in peers))
    await asyncio.sleep(0.1)
    for peer in peers:
        await peer.close()
    return Counter()


@costs(24)
async def more_connections_than_allowed(address: str) -> Counter[str]:
    """What is too much is closed at once; what was there before goes on."""
    peers = await asyncio.gather(*(RawPeer.to(address) for _ in range(MAX_CONNECTIONS + 100)))
    answered = [bool(await peer.ping()) for peer in peers]
    for peer in peers:
        await peer.close()
    # The honest client has one.
    assert answered.count(True) == MAX_CONNECTIONS - 1
    return Counter()


@pytest.fixture
def served() -> Iterator[Port]:
    """A process of its own for each: what one frees, the next would not seem to cost."""
    with port() as it:

        async def warm() -> None:
            """What its largest messages need once is no attack's cost."""
            peer = Peer(it.address)
            for size in (1, 100_000, 4 * MEBIBYTE):
                await ask(peer, "Echo", bytes(size))
            await peer.close()

        asyncio.run(warm())
        yield it


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_costs_little_and_nobody_else_notices(served: Port, name: str) -> None:
    mebibytes, attack = ATTACKS[name]
    before = served.resident
    served.forget_peak()
    async with asyncio.timeout(100), Honest(served.address):
        heard = await attack(served.address)
    cost = (served.peak - before) / MEBIBYTE
    print(f"{name}: {cost:.1f} of {mebibytes} MiB; {dict(heard)}")
    assert cost < mebibytes, dict(heard)
