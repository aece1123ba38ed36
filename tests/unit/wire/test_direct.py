"""Calls that are begun without a task: answered now or later, refused, left to the handler, cancelled by any end."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import InvalidArgument
from penstock.wire.call import Answer, Call, Done, Pending
from penstock.wire.http2 import Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.hpack import literal
from tests.harness.http2 import BLOCK, PATH, Ended, echo, request


class Held:
    """A direct handler that a test lets go of. calls: what came, with whom to tell; cancelled: how many were."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, Done]] = []
        self.cancelled = 0

    def begin(self, call: Call, done: Done) -> Pending | None:
        self.calls.append((call, done))
        return self

    def cancel(self) -> None:
        self.cancelled += 1


def served(held: Held) -> Ended:
    return Ended({PATH: Method("Echo", echo, held.begin)})


def answers(it: Ended) -> dict[int, tuple[bytes, str]]:
    """Message and status of every call that has been answered since the last look, in the order of their ends."""
    messages: dict[int, bytes] = {}
    ended: dict[int, tuple[bytes, str]] = {}
    for frame in it.said():
        if frame.kind == f.DATA:
            messages[frame.stream] = messages.get(frame.stream, b"") + frame.payload
        elif frame.kind == f.HEADERS:
            status = it.fields(frame).get("grpc-status")
            if status is not None:
                ended[frame.stream] = (messages.get(frame.stream, b"")[5:], status)
    return ended


async def test_answered_later_in_any_order() -> None:
    held = Held()
    it = served(held)
    it.feed(request(1, b"one") + request(3, b"three"))
    assert answers(it) == {}
    for call, done in reversed(held.calls):
        done(Answer(call.payload.upper()), None)
    assert list(answers(it).items()) == [(3, (b"THREE", "0")), (1, (b"ONE", "0"))]
    assert not held.cancelled and not it.connection.streams


async def test_answered_at_once() -> None:
    def at_once(call: Call, done: Done) -> Pending:
        done(Answer(b"now"), None)
        return Held()

    it = Ended({PATH: Method("Echo", echo, at_once)})
    it.feed(request(1))
    assert answers(it)[1] == (b"now", "0")


async def test_what_it_does_not_take_goes_to_the_handler() -> None:
    it = Ended({PATH: Method("Echo", echo, lambda call, done: None)})
    it.feed(request(1, b"hello"))
    await asyncio.sleep(0)
    assert answers(it)[1] == (b"hello", "0")


@pytest.mark.parametrize(("raised", "status"), [(InvalidArgument("no"), "3"), (RuntimeError("a fault"), "13")])
async def test_what_it_raises_or_tells_ends_the_call(raised: Exception, status: str) -> None:
    def refuse(call: Call, done: Done) -> Pending | None:
        raise raised

    it = Ended({PATH: Method("Echo", echo, refuse)})
    it.feed(request(1))
    assert answers(it)[1] == (b"", status)
    held = Held()
    it = served(held)
    it.feed(request(1))
    held.calls[0][1](None, raised)
    assert answers(it)[1] == (b"", status)


async def test_a_caller_who_leaves_cancels_it_once_and_what_comes_then_is_nobodys() -> None:
    held = Held()
    it = served(held)
    it.feed(request(1))
    it.feed(f.reset(1, f.CANCEL))
    assert held.cancelled == 1
    held.calls[0][1](Answer(b"too late"), None)
    assert answers(it) == {} and not it.connection.streams


async def test_a_lost_connection_cancels_all() -> None:
    held = Held()
    it = served(held)
    it.feed(request(1) + request(3))
    it.connection.ended = True
    it.connection.connection_ended(0, "lost")
    assert held.cancelled == 2


async def test_the_deadline_cancels_it_and_tells_the_caller() -> None:
    held = Held()
    it = served(held)
    it.feed(request(1, block=BLOCK + literal("grpc-timeout", "1m")))
    async with asyncio.timeout(30):
        while not (ended := answers(it)):  # noqa: ASYNC110 (it is the timer of the code under test that ends it)
            await asyncio.sleep(0.001)
    assert ended[1] == (b"", "4") and held.cancelled == 1
