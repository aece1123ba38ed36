"""The serving end without sockets: what RFC 9113 asks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from penstock import errors
from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Limits, Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.hpack import literal
from tests.harness.http2 import (
    BLOCK,
    FIELDS,
    HELLO,
    PATH,
    Ended,
    Held,
    block_with,
    message,
    plain_block,
    request,
)


async def test_a_unary_call_is_answered_in_the_same_turn() -> None:
    it = Ended()
    it.feed(request(1))
    head, data, last = it.said()
    assert it.fields(head) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity",
    }
    assert data.payload == message(b"hello")
    assert last.flags == f.END_STREAM | f.END_HEADERS
    assert it.fields(last) == {"grpc-status": "0"}
    assert not it.connection.streams
    assert it.connection.held == it.common.held == 0


async def test_calls_that_come_at_once_are_begun_in_portions_and_in_order() -> None:
    it = Ended(limits=Limits(calls_at_once=3))
    data = bytearray(b"".join(request(2 * number + 1, b"%d" % number) for number in range(8)))
    it.connection.arrived(memoryview(data))
    data[:] = bytes(len(data))  # the link's buffer has the next bytes
    it.connection.arrived(request(17, b"8"))
    answered = []
    while True:
        answered.append([frame.payload[5:] for frame in it.said() if frame.kind == f.DATA])
        if it.connection.backlog is None:
            break
        it.connection.go_on()
    assert answered == [[b"0", b"1", b"2"], [b"3", b"4", b"5"], [b"6", b"7", b"8"]]
    it.connection.arrived(request(19, b"9"))
    assert [frame.payload[5:] for frame in it.said() if frame.kind == f.DATA] == [b"9"]


async def test_what_waits_for_its_turn_can_be_cut_and_given_up() -> None:
    it = Ended(limits=Limits(calls_at_once=1))
    whole = request(1, b"a") + request(3, b"b") + request(5, b"c") + f.reset(5, f.CANCEL) + request(7, b"d")
    it.connection.arrived(whole[:-4])
    for _ in range(2):
        it.connection.go_on()
    it.connection.arrived(whole[-4:])
    while it.connection.backlog is not None:
        it.connection.go_on()
    assert {frame.stream for frame in it.said() if frame.kind == f.DATA} == {1, 3, 5, 7}
    assert not it.connection.streams
    assert it.connection.held == it.common.held == 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 10, 50])
async def test_bytes_may_come_in_any_portions(size: int) -> None:
    it = Ended(greet=False)
    data = HELLO + b"".join(request(2 * number + 1, b"x" * (number * 700)) for number in range(10))
    for start in range(0, len(data), size):
        it.feed(data[start : start + size])
    answers = [frame for frame in it.said() if frame.kind == f.DATA]
    assert [len(frame.payload) - 5 for frame in answers] == [number * 700 for number in range(10)]


async def test_padding_priority_and_continuation_are_understood() -> None:
    it = Ended()
    pieces = [BLOCK[:5], BLOCK[5:9], BLOCK[9:]]
    it.feed(
        f.frame(f.PRIORITY, 0, 1, b"\x00\x00\x00\x00\x10")
        + f.frame(f.HEADERS, f.PADDED | f.PRIORITISED, 1, b"\x03" + b"\x00\x00\x00\x00\x10" + pieces[0] + b"\x00" * 3)
        + f.frame(f.CONTINUATION, 0, 1, pieces[1])
        + f.frame(f.CONTINUATION, f.END_HEADERS, 1, pieces[2])
        + f.frame(f.DATA, f.PADDED, 1, b"\x02" + message(b"hello")[:4] + b"\x00\x00")
        + f.frame(f.DATA, f.PADDED | f.END_STREAM, 1, b"\x00" + message(b"hello")[4:])
        + f.frame(0xBE, 0xFF, 1, b"unknown kinds are passed over")
    )
    assert [frame.payload for frame in it.said() if frame.kind == f.DATA] == [message(b"hello")]


async def test_trailers_of_a_request_end_it() -> None:
    it = Ended()
    it.feed(
        f.headers(1, BLOCK, 0, f.DEFAULT_FRAME)
        + f.frame(f.DATA, 0, 1, message(b"hello"))
        + f.headers(1, literal("x-checksum", "1"), f.END_STREAM, f.DEFAULT_FRAME)
    )
    assert [frame.payload for frame in it.said() if frame.kind == f.DATA] == [message(b"hello")]


async def test_blocks_that_change_the_table_are_not_mixed_up() -> None:
    seen: list[str] = []

    async def note(call: Call) -> Answer:
        seen.append(call.headers["x"])
        return Answer(b"")

    it = Ended({PATH: Method("Echo", note)})
    base = plain_block()
    index = b"\xbe"  # the newest entry
    for number, value in enumerate((b"1", b"2")):
        stream = 4 * number + 1
        it.feed(request(stream, block=base + b"\x40\x01x\x01" + value))
        it.feed(request(stream + 2, block=base + index))
    assert seen == ["1", "1", "2", "2"]


GOAWAYS: dict[str, tuple[bytes, int]] = {
    "frame too large": (f.pack_head(0x11, 0, f.DATA, 0, 1), f.FRAME_SIZE_ERROR),
    "DATA on stream 0": (f.frame(f.DATA, 0, 0, b"x"), f.PROTOCOL_ERROR),
    "DATA on an idle stream": (f.frame(f.DATA, 0, 5, b"x"), f.PROTOCOL_ERROR),
    "HEADERS on stream 0": (f.headers(0, BLOCK, 0, 16384), f.PROTOCOL_ERROR),
    "HEADERS on an even stream": (f.headers(2, BLOCK, 0, 16384), f.PROTOCOL_ERROR),
    "HEADERS on a finished stream": (request(1) + f.headers(1, BLOCK, 1, 16384), f.STREAM_CLOSED),
    "stream numbers that go back": (request(5) + request(3), f.PROTOCOL_ERROR),
    "CONTINUATION alone": (f.frame(f.CONTINUATION, 4, 1, BLOCK), f.PROTOCOL_ERROR),
    "DATA inside a block": (f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.DATA, 0, 1, b""), f.PROTOCOL_ERROR),
    "CONTINUATION of another": (f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.CONTINUATION, 4, 3), f.PROTOCOL_ERROR),
    "padding too long": (f.frame(f.HEADERS, f.PADDED | 4, 1, b"\xff" + BLOCK), f.PROTOCOL_ERROR),
    "bad block": (f.headers(1, b"\x80", 0, 16384), f.COMPRESSION_ERROR),
    "SETTINGS on a stream": (f.frame(f.SETTINGS, 0, 1), f.PROTOCOL_ERROR),
    "SETTINGS of five bytes": (f.frame(f.SETTINGS, 0, 0, b"12345"), f.FRAME_SIZE_ERROR),
    "SETTINGS ACK with a payload": (f.frame(f.SETTINGS, 1, 0, b"123456"), f.FRAME_SIZE_ERROR),
    "ENABLE_PUSH of 2": (f.settings({f.ENABLE_PUSH: 2}), f.PROTOCOL_ERROR),
    "window too large": (f.settings({f.INITIAL_WINDOW_SIZE: 2**31}), f.FLOW_CONTROL_ERROR),
    "MAX_FRAME_SIZE too small": (f.settings({f.MAX_FRAME_SIZE: 100}), f.PROTOCOL_ERROR),
    "PING of seven bytes": (f.frame(f.PING, 0, 0, b"1234567"), f.FRAME_SIZE_ERROR),
    "PING on a stream": (f.frame(f.PING, 0, 1, b"12345678"), f.PROTOCOL_ERROR),
    "GOAWAY on a stream": (f.frame(f.GOAWAY, 0, 1, bytes(8)), f.PROTOCOL_ERROR),
    "PUSH_PROMISE": (f.frame(f.PUSH_PROMISE, 4, 1, bytes(8)), f.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (f.reset(7, 8), f.PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (request(1) + f.frame(f.RST_STREAM, 0, 1, b"123"), f.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of 0": (f.window_update(0, 0), f.PROTOCOL_ERROR),
    "WINDOW_UPDATE past the end": (f.window_update(0, 2**31 - 1), f.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE on an idle stream": (f.window_update(9, 1), f.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", GOAWAYS)
async def test_faults_that_end_the_connection(case: str) -> None:
    data, code = GOAWAYS[case]
    it = Ended()
    it.feed(data)
    assert it.ended_with() == code
    it.feed(request(99))
    assert not it.connection.out


async def test_what_is_not_http2_is_sent_away_at_its_first_bytes() -> None:
    it = Ended(greet=False)
    it.feed(b"GET / HTTP/1.1\r\n")
    assert it.ended_with() == f.PROTOCOL_ERROR
    it = Ended(greet=False)
    it.feed(f.PREFACE + f.frame(f.PING, 0, 0, b"12345678"))
    assert it.ended_with() == f.PROTOCOL_ERROR


RESETS: dict[str, bytes] = {
    "upper case": block_with(("X-Up", "1")),
    "connection header": block_with(("connection", "close")),
    "te is not trailers": block_with(("te", "gzip"), without="te"),
    "no path": block_with(without=":path"),
    "pseudo-header late": block_with((":authority", "x"), without=":authority"),
    "pseudo-header twice": literal(":method", "POST") + BLOCK,
    "unknown pseudo-header": literal(":unknown", "x") + BLOCK,
    "line feed": block_with(("x", "a\nb")),
    "NUL": block_with(("x", "a\0b")),
    "empty name": block_with(("", "a")),
}


@pytest.mark.parametrize("case", RESETS)
async def test_malformed_requests_are_reset_alone(case: str) -> None:
    it = Ended()
    it.feed(request(1, block=RESETS[case]) + request(3))
    said = it.said()
    assert [(frame.kind, frame.payload) for frame in said if frame.stream == 1] == [
        (f.RST_STREAM, f.PROTOCOL_ERROR.to_bytes(4, "big"))
    ]
    assert [frame.payload for frame in said if frame.kind == f.DATA] == [message(b"hello")]


async def status_of(it: Ended, data: bytes) -> str:
    it.feed(data)
    said = [frame for frame in it.said() if frame.kind == f.HEADERS]
    assert said[-1].flags & f.END_STREAM
    return it.fields(said[-1]).get("grpc-status", "")


async def test_refusals_have_a_status_and_leave_the_connection_alone() -> None:
    it = Ended(limits=Limits(max_message=100))
    head = f.headers(1, BLOCK, 0, 16384)
    assert await status_of(it, head + f.frame(f.DATA, 1, 1, message(b"x", flag=1))) == "12"
    assert await status_of(it, request(3, b"x" * 101)) == "8"
    assert await status_of(it, request(5, block=block_with(("grpc-timeout", "5x")))) == "3"
    assert await status_of(it, request(7, block=block_with(("x", "caf\xe9")))) == "3"
    assert await status_of(it, request(9, block=plain_block((*FIELDS[:2], (":path", "/no"), *FIELDS[3:])))) == "12"
    assert await status_of(it, f.headers(11, BLOCK, 1, 16384)) == "12"
    head = f.headers(13, BLOCK, 0, 16384)
    assert await status_of(it, head + f.frame(f.DATA, 1, 13, message(b"x") + b"rest")) == "3"
    head = f.headers(15, BLOCK, 0, 16384)
    assert await status_of(it, head + f.frame(f.DATA, 1, 15, message(b"xyz")[:-1])) == "3"
    # A promise of too much is refused before it is kept.
    assert await status_of(it, f.headers(17, BLOCK, 0, 16384) + f.frame(f.DATA, 0, 17, b"\0\xff\xff\xff\xff")) == "8"
    it.feed(f.frame(f.DATA, 1, 17, b"x" * 16000) + request(19))
    assert [frame.payload for frame in it.said() if frame.kind == f.DATA] == [message(b"hello")]
    assert it.connection.held == it.common.held == 0


async def test_what_is_not_grpc_gets_an_http_status() -> None:
    it = Ended()
    it.feed(f.headers(1, block_with(without="content-type"), 1, 16384))
    assert it.fields(it.said()[0])[":status"] == "415"
    it.feed(f.headers(3, plain_block(((":method", "GET"), *FIELDS[1:4])), 1, 16384))
    assert it.fields(it.said()[0])[":status"] == "405"


async def test_errors_of_handlers() -> None:
    async def fails(call: Call) -> Answer:
        raise errors.NotFound("no model 'é%'")

    async def crashes(call: Call) -> Answer:
        raise KeyError("/secret/path")

    it = Ended({PATH: Method("Echo", fails), "/c": Method("c", crashes)})
    it.feed(request(1))
    fields = it.fields(it.said()[0])
    assert (fields["grpc-status"], fields["grpc-message"]) == ("5", "no model '%C3%A9%25'")
    it.feed(request(3, block=plain_block((*FIELDS[:2], (":path", "/c"), *FIELDS[3:]))))
    fields = it.fields(it.said()[0])
    assert fields["grpc-status"] == "13"
    assert "secret" not in str(fields)


async def test_who_calls_is_asked_before_the_body() -> None:
    asked: list[Any] = []

    def refuse(headers: Any) -> str:
        asked.append(headers)
        raise errors.Unauthenticated("who are you?")

    it = Ended({PATH: Method("Echo", Held()), "/open": Method("open", Held(), open=True)})
    it.connection._authenticate = refuse
    it.feed(f.headers(1, BLOCK, 0, 16384))
    said = it.said()
    assert it.fields(said[0])["grpc-status"] == "16"
    assert said[1].kind == f.RST_STREAM
    it.feed(f.frame(f.DATA, 1, 1, message(b"x" * 10000)))
    assert not it.connection.streams
    it.feed(request(3, block=plain_block((*FIELDS[:2], (":path", "/open"), *FIELDS[3:]))))
    assert len(it.connection.streams) == len(asked) == 1
    it.connection.end(0)


# Time and leaving.


async def test_a_deadline_ends_the_call_and_its_handler() -> None:
    held = Held()
    it = Ended({PATH: Method("Echo", held)})
    it.feed(request(1, block=block_with(("grpc-timeout", "20m"))))
    await held.cancelled.wait()
    assert it.fields(it.said()[0])["grpc-status"] == "4"
    assert not it.connection.streams


async def test_a_body_that_does_not_come_has_a_deadline_too() -> None:
    it = Ended()
    it.feed(f.headers(1, block_with(("grpc-timeout", "20m")), 0, 16384))
    until = time.monotonic() + 30
    while it.connection.streams and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert it.fields(it.said()[0])["grpc-status"] == "4"


async def test_a_reset_cancels_the_handler() -> None:
    held = Held()
    it = Ended({PATH: Method("Echo", held)})
    it.feed(request(1))
    await held.begun.wait()
    it.feed(f.reset(1, f.CANCEL))
    await held.cancelled.wait()
    assert not it.said()
    assert it.connection.held == 0
    await asyncio.sleep(0)
    assert not it.common.tasks


async def test_the_end_of_a_connection_cancels_every_handler() -> None:
    held = Held()
    it = Ended({PATH: Method("Echo", held)})
    it.feed(b"".join(request(2 * n + 1) for n in range(20)))
    it.connection.end(0)
    await held.cancelled.wait()
    while it.common.tasks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert it.common.held == 0


async def test_leaving_takes_two_steps() -> None:
    held = Held()
    it = Ended({PATH: Method("Echo", held)})
    it.feed(request(1))
    it.connection.announce_end()
    goaway, ping = it.said()
    assert goaway.payload[:4] == (2**31 - 1).to_bytes(4, "big")
    it.feed(request(3))
    it.feed(f.frame(f.PING, f.ACK, 0, ping.payload))
    assert it.said()[-1].payload[:4] == (3).to_bytes(4, "big")
    it.feed(request(5))
    assert [(frame.kind, frame.stream) for frame in it.said()] == [(f.RST_STREAM, 5)]
    held.release.set()
    while it.connection.streams:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert [frame.stream for frame in it.said() if frame.kind == f.DATA] == [1, 3]


# Windows.


async def test_answers_wait_for_the_window() -> None:
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 10}))
    it.feed(request(1, b"x" * 100) + request(3, b"y" * 100))
    sent = [frame for frame in it.said() if frame.kind == f.DATA]
    assert sorted((frame.stream, len(frame.payload)) for frame in sent) == [(1, 10), (3, 10)]
    it.feed(f.window_update(3, 40))
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 5}))
    sent = [frame for frame in it.said() if frame.kind == f.DATA]
    assert [(frame.stream, len(frame.payload)) for frame in sent] == [(3, 40)]
    it.feed(f.window_update(3, 4))  # the window was negative
    assert not [frame for frame in it.said() if frame.kind == f.DATA]
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 1000}))
    said = it.said()
    assert sum(len(frame.payload) for frame in said if frame.kind == f.DATA) == 210 - 60
    assert [it.fields(frame) for frame in said if frame.flags & f.END_STREAM and frame.kind == f.HEADERS] == [
        {"grpc-status": "0"}
    ] * 2
    assert not it.connection.streams


async def test_the_connection_window_is_shared_fairly_and_respected() -> None:
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 1 << 20}))
    for stream in (1, 3, 5):
        it.feed(request(stream, bytes(60_000)))
    sent = [frame for frame in it.said() if frame.kind == f.DATA]
    assert sum(len(frame.payload) for frame in sent) == f.DEFAULT_WINDOW
    assert max(len(frame.payload) for frame in sent) <= f.DEFAULT_FRAME or len({frame.stream for frame in sent}) > 1
    it.feed(f.window_update(0, 1 << 20))
    assert not it.connection.streams


async def test_an_answer_that_nobody_takes_ends_with_its_deadline() -> None:
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 0}))
    it.feed(request(1, b"x" * 100, block=block_with(("grpc-timeout", "20m"))))
    assert it.connection.streams
    until = time.monotonic() + 30
    while it.connection.streams and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert it.said()[-1][:3:2] == (f.RST_STREAM, 1)


async def test_more_than_the_window_is_a_fault() -> None:
    it = Ended(limits=Limits(stream_window=1000, connection_window=1 << 20, max_message=500))
    it.feed(f.headers(1, BLOCK, 0, 16384) + f.frame(f.DATA, 0, 1, bytes(1001)) + request(3))
    said = it.said()
    assert [frame.payload for frame in said if frame.kind == f.RST_STREAM] == [(3).to_bytes(4, "big")]
    it = Ended(limits=Limits(connection_window=1 << 16))
    it.feed(f.headers(1, BLOCK, 0, 16384) + f.frame(f.DATA, 0, 1, bytes((1 << 16) + 1)))
    assert it.ended_with() == f.FLOW_CONTROL_ERROR


async def test_a_message_larger_than_the_window_arrives() -> None:
    it = Ended(limits=Limits(stream_window=1 << 16, connection_window=1 << 17))
    whole = message(bytes(1_000_000))
    it.feed(f.headers(1, BLOCK, 0, 16384))
    for start in range(0, len(whole), 16000):
        last = start + 16000 >= len(whole)
        it.feed(f.frame(f.DATA, int(last), 1, whole[start : start + 16000]))
    it.feed(f.window_update(0, 1 << 24) + f.settings({f.INITIAL_WINDOW_SIZE: 1 << 24}))
    assert not it.connection.streams
    assert not it.connection.ended


async def test_settings_are_acknowledged_before_they_are_used() -> None:
    it = Ended()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 0}) + request(1))
    it.said()
    it.feed(f.settings({f.INITIAL_WINDOW_SIZE: 100}))
    assert [frame.kind for frame in it.said()] == [f.SETTINGS, f.DATA, f.HEADERS]
