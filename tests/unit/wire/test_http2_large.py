"""Large messages: where their bytes lie, how often they are copied, and what a liar gains."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Limits, Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.gathering import Gathering, kept
from penstock.wire.http2.messages import Assembler
from tests.harness.http2 import BLOCK, PATH, Ended, message

MEGABYTE = 1 << 20
WIDE = f.settings({f.INITIAL_WINDOW_SIZE: 1 << 30}) + f.window_update(0, 1 << 30)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def large_request(stream: int, payload: bytes, *, frame: int) -> bytes:
    """A unary call whose DATA comes in frames of one size, the last of which ends it."""
    whole = message(payload)
    parts = [f.headers(stream, BLOCK, 0, f.DEFAULT_FRAME)]
    for start in range(0, len(whole), frame):
        ends = f.END_STREAM if start + frame >= len(whole) else 0
        parts.append(f.frame(f.DATA, ends, stream, whole[start : start + frame]))
    return b"".join(parts)


def receive(it: Ended, data: bytes, read: int) -> int:
    """Gives it the bytes as a socket would, `read` at most at a time, into the place that it asks for; how many came
    in at the place where they stay."""
    scratch, at, landed = memoryview(bytearray(read)), 0, 0
    while at < len(data):
        landing = it.connection.landing()
        place = scratch if landing is None else landing[:read]
        size = min(len(place), len(data) - at)
        place[:size] = data[at : at + size]
        landed += 0 if landing is None else size
        it.feed(place[:size])
        at += size
    return landed


class Kept:
    """A handler that keeps what it got."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    async def __call__(self, call: Call) -> Answer:
        self.payloads.append(call.payload)
        return Answer(b"")


@pytest.mark.parametrize("frame", [1000, 16_384, 100_000, MEGABYTE])
@pytest.mark.parametrize("read", [900, 20_000, 256 << 10])
async def test_large_messages_arrive_however_they_are_cut(frame: int, read: int) -> None:
    handler = Kept()
    it = Ended({PATH: Method("Echo", handler)})
    payloads = [noise(600_000 + number) for number in range(3)]
    for number, payload in enumerate(payloads):
        receive(it, large_request(2 * number + 1, payload, frame=frame), read)
    assert handler.payloads == payloads
    assert it.connection.held == it.common.held == 0
    assert not it.connection.streams


async def test_what_is_held_stays_as_it_is_while_others_arrive() -> None:
    handler = Kept()
    it = Ended({PATH: Method("Echo", handler)})
    payloads = [noise(100_000 + number) for number in range(50)]
    for number, payload in enumerate(payloads):
        receive(it, large_request(2 * number + 1, payload, frame=16_384), 256 << 10)
        if number % 3 == 0:
            handler.payloads[-1] = bytes(handler.payloads[-1])
    assert handler.payloads == payloads
    with pytest.raises(TypeError):
        handler.payloads[1][0] = 1  # type: ignore[index]


async def test_a_large_frame_is_read_to_its_place() -> None:
    it = Ended({PATH: Method("Echo", Kept())})
    size = 8 * MEGABYTE
    landed = receive(it, large_request(1, bytes(size), frame=MEGABYTE), 256 << 10)
    # Apart from the read that has the head of a frame in it, and the end of the frame before.
    assert landed > 0.7 * size


async def test_sixty_four_megabytes_take_their_own_memory_once() -> None:
    size = 64 * MEGABYTE
    it = Ended({PATH: Method("Echo", Kept())})
    data = large_request(1, bytes(size), frame=MEGABYTE)
    tracemalloc.start()
    try:
        receive(it, data, 256 << 10)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()
    updates = [frame for frame in it.said() if frame.kind == f.WINDOW_UPDATE]
    assert len(updates) < 40


async def test_the_same_buffer_serves_one_message_after_another() -> None:
    seen: set[int] = set()

    async def note(call: Call) -> Answer:
        view = call.payload
        assert isinstance(view, memoryview)
        seen.add(id(view.obj))
        return Answer(b"")

    kept.__init__()  # type: ignore[misc]
    it = Ended({PATH: Method("Echo", note)})
    for number in range(20):
        receive(it, large_request(2 * number + 1, bytes(600_000), frame=16_384), 256 << 10)
    assert len(seen) == 1


async def test_an_answer_is_sent_from_where_it_lies() -> None:
    payload = noise(600_000)

    async def answer(call: Call) -> Answer:
        return Answer(payload)

    it = Ended({PATH: Method("Echo", answer)})
    it.feed(WIDE + large_request(1, b"", frame=100))
    out = it.connection.taken()
    assert sum(len(part) for part in out if isinstance(part, memoryview) and part.obj is payload) == len(payload)
    # Per frame its head and its piece; besides these the answer's own beginning and end, and what WIDE is answered.
    assert len(out) <= 2 * -(-len(payload) // f.DEFAULT_FRAME) + 8


@pytest.mark.parametrize("size", [64 << 10, MEGABYTE, 80 * MEGABYTE])
def test_a_promise_gets_no_memory(size: int) -> None:
    for sent in (5, 6, 5000, 20_000, 60_000, 200_000):
        kept.__init__()  # type: ignore[misc]
        tracemalloc.start()
        try:
            it = Assembler(80 * MEGABYTE)
            data = bytes((0,)) + size.to_bytes(4, "big") + bytes(min(sent - 5, size - 1))
            before = tracemalloc.get_traced_memory()[0]
            for start in range(0, len(data), 4096):
                it.feed(data[start : start + 4096])
                it.check()
            assert tracemalloc.get_traced_memory()[0] - before < max(64 << 10, 2 * len(data)) + 8192
        finally:
            tracemalloc.stop()


@settings(deadline=None)
@given(st.integers(1, 3_000_000), st.lists(st.integers(10_000, 500_000), min_size=1, max_size=30), st.booleans())
def test_room_is_never_more_than_twice_what_has_come(size: int, pieces: list[int], hold: bool) -> None:
    kept.__init__()  # type: ignore[misc]
    it, data, at, held = Gathering(size), noise(size), 0, []
    for most in itertools.cycle(pieces):
        place = it.room(most)
        assert 1 <= len(place) <= most
        place[:] = data[at : at + len(place)]
        at += len(place)
        it.add(place)
        if hold:
            held.append(place)
        else:
            place.release()
        assert len(it._view) <= max(64 << 10, 2 * at + (64 << 10))
        if not it.missing:
            break
    assert it.message() == data


def test_kept_buffers_are_bounded() -> None:
    kept.__init__()  # type: ignore[misc]
    views = []
    for number in range(200):
        it = Gathering(MEGABYTE)
        it.add(bytes(MEGABYTE))
        views.append(it.message())
        assert kept.size <= 32 * MEGABYTE, number
    assert len({id(view.obj) for view in views}) == 200


# Frames in a row are no way around the rules.


@pytest.mark.interpreted
async def test_a_row_beyond_the_streams_window_is_a_fault_of_the_stream() -> None:
    it = Ended(limits=Limits(stream_window=100_000, connection_window=MEGABYTE))
    rows = b"".join(f.frame(f.DATA, 0, 1, bytes(16_384)) for _ in range(20))
    head = f.frame(f.DATA, 0, 1, message(bytes(900_000))[:16_384])
    # Nothing is read between the frames, so no window is given back in time to know of it.
    it.connection.regrant = lambda stream: None  # type: ignore[method-assign]
    it.feed(f.headers(1, BLOCK, 0, f.DEFAULT_FRAME) + head + rows)
    assert [(frame.stream, frame.payload) for frame in it.said() if frame.kind == f.RST_STREAM] == [
        (1, f.FLOW_CONTROL_ERROR.to_bytes(4, "big"))
    ]
    assert it.connection.held == it.common.held == 0


async def test_a_row_beyond_the_connections_window_ends_the_connection() -> None:
    it = Ended(limits=Limits(connection_window=70_000))
    rows = b"".join(f.frame(f.DATA, 0, 1, bytes(16_384)) for _ in range(20))
    it.feed(f.headers(1, BLOCK, 0, f.DEFAULT_FRAME) + f.frame(f.DATA, 0, 1, message(bytes(900_000))[:16_384]) + rows)
    assert it.ended_with() == f.FLOW_CONTROL_ERROR


async def test_a_row_beyond_what_may_be_held_is_refused() -> None:
    it = Ended(limits=Limits(max_buffered=200_000))
    rows = b"".join(f.frame(f.DATA, 0, 1, bytes(16_384)) for _ in range(20))
    it.feed(f.headers(1, BLOCK, 0, f.DEFAULT_FRAME) + f.frame(f.DATA, 0, 1, message(bytes(900_000))[:16_384]) + rows)
    said = it.said()
    assert [it.fields(frame)["grpc-status"] for frame in said if frame.kind == f.HEADERS] == ["8"]
    assert it.connection.held == it.common.held == 0


async def test_crumbs_in_the_midst_of_a_large_message_are_crumbs() -> None:
    it = Ended(limits=Limits(crumbs=100, crumbs_per_second=0.0))
    it.feed(f.headers(1, BLOCK, 0, f.DEFAULT_FRAME) + f.frame(f.DATA, 0, 1, message(bytes(900_000))[:16_384]))
    it.feed(f.frame(f.DATA, 0, 1, b"x") * 200)
    assert it.ended_with() == f.ENHANCE_YOUR_CALM
