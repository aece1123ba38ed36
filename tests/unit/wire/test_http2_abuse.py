"""The serving end without sockets: what hostile peers get. Each is refused, soon, and costs little."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Limits, Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.hpack import integer, literal
from tests.harness.http2 import (
    BLOCK,
    FIELDS,
    GRPC_OK,
    PATH,
    Ended,
    Held,
    block_with,
    message,
    request,
)


def flood(it: Ended, frames: Any, *, drop: bool = True) -> int:
    """Feeds until the connection ends; how many frames that took."""
    count = 0
    for frame in frames:
        it.feed(frame)
        count += 1
        if it.connection.ended:
            return count
        if drop:
            it.connection.taken()
    raise AssertionError(f"{count} frames were taken")


def still(limits: Limits | None = None, methods: Any = None) -> Ended:
    """A connection whose clock stands, so that budgets do not recover."""
    it = Ended(methods, limits)
    now = it.connection.clock()
    it.connection.clock = lambda: now
    return it


def opened(stream: int) -> bytes:
    return f.headers(stream, BLOCK, 0, 16384)


FLOODS: dict[str, Any] = {
    "rapid reset": lambda: (f.headers(n, BLOCK, 0, 16384) + f.reset(n, 8) for n in range(1, 10**6, 2)),
    "settings": lambda: (f.settings({f.INITIAL_WINDOW_SIZE: n}) for n in range(10**5)),
    "ping": lambda: (f.frame(f.PING, 0, 0, b"12345678") for _ in range(10**5)),
    "priority": lambda: (f.frame(f.PRIORITY, 0, 1, bytes(4) + b"x") for _ in range(10**5)),
    "unknown frames": lambda: (f.frame(0x77, 0, 0) for _ in range(10**5)),
    "empty data": lambda: [f.headers(1, BLOCK, 0, 16384)] + [f.frame(f.DATA, 0, 1)] * 10**5,
    "padded empty data": lambda: [f.headers(1, BLOCK, 0, 16384)] + [f.frame(f.DATA, 8, 1, b"\x02\0\0")] * 10**5,
    "one-byte data": lambda: (
        [f.headers(1, BLOCK, 0, 16384), f.frame(f.DATA, 0, 1, message(bytes(10**6))[:5])]
        + [f.frame(f.DATA, 0, 1, b"x")] * 10**6
    ),
    "continuation": lambda: [f.frame(f.HEADERS, 0, 1, BLOCK)] + [f.frame(f.CONTINUATION, 0, 1, b"")] * 10**5,
    "large continuation": lambda: (
        [f.frame(f.HEADERS, 0, 1, BLOCK)] + [f.frame(f.CONTINUATION, 0, 1, literal("x", "y" * 4000))] * 100
    ),
    "malformed requests": lambda: (f.headers(n, b"\x82", 1, 16384) for n in range(1, 10**6, 2)),
    "data on finished streams": lambda: (
        [request(1)]
        + [f.frame(f.DATA, 0, 1, bytes(20))] * 1
        + [request(n) + f.frame(f.DATA, 0, n, bytes(20)) for n in range(3, 10**5, 2)]
    ),
    "small increments": lambda: [f.headers(1, BLOCK, 0, 16384)] + [f.window_update(1, 1)] * 10**5,
    "late window updates": lambda: [request(1)] + [f.window_update(1, 1)] * 10**5,
    # A peer can make us reset its streams, too.
    "increments of nothing": lambda: (opened(n) + f.window_update(n, 0) for n in range(1, 10**6, 2)),
    "windows past their end": lambda: (opened(n) + f.window_update(n, 2**31 - 1) for n in range(1, 10**6, 2)),
    "priorities of four bytes": lambda: (opened(n) + f.frame(f.PRIORITY, 0, n, b"1234") for n in range(1, 10**6, 2)),
    "headers in the midst": lambda: (opened(n) + opened(n) for n in range(1, 10**6, 2)),
    "data after the end": lambda: (request(n) + f.frame(f.DATA, 0, n, bytes(20)) for n in range(1, 10**6, 2)),
    "lengths that lie": lambda: (
        f.headers(n, block_with(("content-length", "9")), 1, 16384) for n in range(1, 10**6, 2)
    ),
}
HELD: frozenset[str] = frozenset(("rapid reset", "data after the end"))
"""Here the handler never answers; else an answer would earn what a fault costs."""


@pytest.mark.parametrize("case", FLOODS)
async def test_floods_end_the_connection(case: str) -> None:
    held = Held()
    it = still(methods={PATH: Method("Echo", held)} if case in HELD else None)
    began = time.process_time()
    tracemalloc.start()
    try:
        if case == "data on finished streams":
            # Each finished call earns one fault, so only the ratio is bounded: no more than one stray per call.
            for data in FLOODS[case]()[:5000]:
                it.feed(data)
                it.connection.taken()
            it.feed(b"".join(f.frame(f.DATA, 0, n, bytes(20)) for n in range(1, 5000, 2)))
            assert len(it.connection._given_up) <= 512
        else:
            frames = flood(it, FLOODS[case]())
            assert frames <= 10_100
            assert it.ended_with() == f.ENHANCE_YOUR_CALM
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10
    assert not it.common.held
    await asyncio.sleep(0)


async def test_no_more_streams_than_allowed() -> None:
    held = Held()
    it = Ended({PATH: Method("Echo", held)}, Limits(max_streams=10))
    it.feed(b"".join(request(2 * n + 1) for n in range(15)))
    assert len(it.connection.streams) == 10
    assert [(frame.kind, frame.stream) for frame in it.said()] == [(f.RST_STREAM, n) for n in range(21, 31, 2)]
    it.connection.end(0)


async def test_requests_are_held_up_to_a_limit_and_refused_beyond() -> None:
    it = Ended({PATH: Method("Echo", Held())}, Limits(max_buffered=100_000))
    for number in range(20):
        it.feed(request(2 * number + 1, bytes(15_000)))
    assert it.connection.held <= 120_000
    refused = [it.fields(frame)["grpc-status"] for frame in it.said() if frame.kind == f.HEADERS]
    assert refused
    assert set(refused) == {"8"}
    it.connection.end(0)
    assert it.common.held == 0


async def test_header_lists_over_the_limit_are_refused_alone() -> None:
    it = Ended()
    entry = b"\x40\x01a" + integer(3000, 0x7F, 0) + b"b" * 3000
    it.feed(request(1, block=BLOCK + entry + b"\xbe" * 1000))
    assert it.fields(it.said()[0])["grpc-status"] == "8"
    it.feed(request(3))
    assert [frame.payload for frame in it.said() if frame.kind == f.DATA] == [message(b"hello")]


async def test_a_stalled_stream_is_not_looked_at() -> None:
    """Else each word about a window would cost a look at every answer that waits for another one."""
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 0}) + b"".join(request(2 * n + 1) for n in range(200)))
    assert len(it.connection.streams) == 200
    assert not it.connection._waiting
    it.said()
    it.feed(f.window_update(399, 5))
    assert [(frame.stream, len(frame.payload)) for frame in it.said()] == [(399, 5)]
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 100}))
    assert not it.connection.streams


async def test_a_stalled_connection_goes_on_where_it_stood() -> None:
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20}) + b"".join(request(n, bytes(40_000)) for n in (1, 3, 5)))
    it.said()
    it.feed(f.window_update(3, 1) + f.window_update(0, 10))
    assert sum(len(frame.payload) for frame in it.said()) == 10
    # An end that needs no window is not held up by those who need one.
    it.feed(f.headers(7, block_with(("grpc-timeout", "x")), 1, 16384))
    assert [frame.stream for frame in it.said()] == [7]
    it.feed(f.window_update(0, 1 << 20))
    assert not it.connection.streams
    assert it.common.held == 0


@pytest.mark.interpreted
async def test_a_setting_that_comes_twice_counts_once() -> None:
    it = Ended()
    changes: list[int] = []
    it.connection.window_changed = changes.append  # type: ignore[assignment]
    it.feed(f.frame(f.SETTINGS, 0, 0, b"\0\4\0\0\0\1" * 63 + b"\0\4\0\0\0\2"))
    assert changes == [2]


async def test_a_refusal_that_is_kept_keeps_no_trace_of_its_calls() -> None:
    it = Ended()
    block = block_with(("grpc-timeout", "5 parsecs"))
    for number in range(100):
        it.feed(request(2 * number + 1, block=block))
    refusal = it.connection._heads._whole[block].refusal
    assert refusal is not None
    depth, trace = 0, refusal.__traceback__
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    assert depth <= 2


async def test_heads_that_are_kept_are_few_and_small() -> None:
    it = Ended()
    it.feed(request(1, block=BLOCK + b"\x40\x01a" + integer(900, 0x7F, 0) + b"b" * 900))
    tracemalloc.start()
    for number in range(3, 2003, 2):
        # Headers that unfold, and others that do not.
        unfolds = b"\xbe" * 15 if number & 2 else b""
        it.feed(request(number, block=BLOCK + unfolds + literal("x", f"{number:0200}")))
        it.connection.taken()
    assert tracemalloc.get_traced_memory()[0] < 512 << 10
    tracemalloc.stop()
    assert len(it.connection._heads._whole) <= 128


async def test_answers_that_wait_are_charged_and_dropped_beyond_the_limit() -> None:
    async def large(call: Call) -> Answer:
        return Answer(bytes(30_000))

    async def much(call: Call, requests: Any, write: Any) -> None:
        for _ in range(10):
            await write(bytes(3_000))

    for method in (Method("Echo", large), Method("Echo", stream=much)):
        it = Ended({PATH: method}, Limits(max_buffered=100_000))
        it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 0}) + request(1))
        it.feed(b"".join(request(2 * n + 1) for n in range(1, 9)))
        assert 30_000 <= it.connection.held <= 110_000
        said = it.said()
        codes = [f.read_long(frame.payload) for frame in said if frame.kind == f.RST_STREAM]
        refused = [it.fields(frame).get("grpc-status") for frame in said if frame.kind == f.HEADERS]
        assert codes.count(f.ENHANCE_YOUR_CALM) + refused.count("8") >= 6
        # What was kept is sent once there is a window, and costs nothing afterwards.
        it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20}) + f.window_update(0, 1 << 20))
        while it.connection.streams:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert it.connection.held == it.common.held == 0
        it.connection.end(0)


async def test_who_holds_little_is_served_when_others_hold_too_much() -> None:
    it, other = Ended(), Ended()
    other.connection.common = it.common
    it.common.max_held = 1 << 20
    for number in range(1, 9, 2):
        it.feed(opened(number) + f.frame(f.DATA, 0, number, message(bytes(500_000))[:400_000]))
    assert "8" in [it.fields(frame).get("grpc-status") for frame in it.said() if frame.kind == f.HEADERS]
    other.feed(request(1))
    assert [frame.payload for frame in other.said() if frame.kind == f.DATA] == [message(b"hello")]
    it.connection.end(0)
    assert it.common.held == 0


KINDS = st.builds(
    lambda kind, flags, stream, payload: f.frame(kind, flags, stream, payload),
    st.integers(0, 11),
    st.integers(0, 255),
    st.integers(0, 9),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([BLOCK, message(b"x"), b"\0\0\0\1", b"\0\3\0\0\0\1", b"12345678", b"\0\4\0\0\0\0"]),
    ),
)
STEPS = st.one_of(KINDS, st.binary(max_size=30), st.sampled_from([request(1), request(3), request(5), request(7)]))


@given(st.lists(STEPS, max_size=25), st.booleans(), st.integers(1, 50))
@settings(max_examples=400, deadline=None)
def test_any_frames_are_survived(steps: list[bytes], whole: bool, size: int) -> None:
    async def run() -> None:
        it = Ended({PATH: Method("Echo", _sleepy), "/s": Method("s", stream=_twice)})
        data = b"".join(steps)
        step = max(1, len(data)) if whole else size
        for start in range(0, len(data), step):
            it.feed(data[start : start + step])
        await asyncio.sleep(0)
        it.said()
        it.connection.end(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not it.common.tasks
        assert it.common.held == it.connection.held == 0
        assert not it.connection.streams
        it.common.deadlines.close()

    asyncio.run(run())


async def _sleepy(call: Call) -> Answer:
    await asyncio.sleep(0)
    return Answer(call.payload)


async def _twice(call: Call, requests: Any, write: Any) -> None:
    async for each in requests:
        await write(each * 2)


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 70_000)
)
@settings(max_examples=60, deadline=None)
def test_another_implementation_agrees(calls: list[tuple[int, int]], window: int) -> None:
    """The h2 library as the client: it checks every frame of ours, windows included."""
    h2 = pytest.importorskip("h2.connection")
    config, events = pytest.importorskip("h2.config"), pytest.importorskip("h2.events")
    codes = pytest.importorskip("h2.settings").SettingCodes

    async def run() -> None:
        it = Ended(greet=False)
        client = h2.H2Connection(config.H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        client.update_settings({codes.INITIAL_WINDOW_SIZE: window})
        got: dict[int, bytearray] = {}
        ended: dict[int, str] = {}
        to_send: dict[int, memoryview] = {}

        def turn() -> None:
            it.feed(client.data_to_send())
            for event in client.receive_data(b"".join(it.connection.taken())):
                if isinstance(event, events.DataReceived):
                    got.setdefault(event.stream_id, bytearray()).extend(event.data)
                    if event.flow_controlled_length:
                        client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, events.TrailersReceived):
                    ended[event.stream_id] = dict(event.headers)["grpc-status"]

        turn()
        for size, padding in calls:
            stream = client.get_next_available_stream_id()
            client.send_headers(stream, FIELDS)
            left = to_send[stream] = memoryview(message(bytes(size)))
            while left:
                take = min(
                    len(left), client.max_outbound_frame_size - 256, client.local_flow_control_window(stream) - 256
                )
                assert take > 0
                client.send_data(stream, bytes(left[:take]), end_stream=take == len(left), pad_length=padding or None)
                left = left[take:]
                turn()
        # A window too small for the library to fill again by itself.
        client.update_settings({codes.INITIAL_WINDOW_SIZE: 70_000})
        for _ in range(10_000):
            if len(ended) == len(calls):
                break
            turn()
        assert ended == dict.fromkeys(to_send, GRPC_OK)
        assert {stream: bytes(data) for stream, data in got.items()} == {s: bytes(d) for s, d in to_send.items()}
        it.common.deadlines.close()

    asyncio.run(run())
