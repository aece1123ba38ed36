"""gRPC's part of the wire: prefixes, timeouts, texts; and the two clocks of a call: its first step and its end."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidArgument, ResourceExhausted, Unsupported
from penstock.wire.http2 import eager
from penstock.wire.http2.deadlines import Deadlines
from penstock.wire.http2.messages import (
    Assembler,
    read_binary,
    read_text,
    read_timeout,
    write_binary,
    write_text,
    write_timeout,
)
from tests.harness.http2 import message


@given(st.lists(st.binary(max_size=3000), max_size=6), st.data())
def test_messages_come_out_however_they_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(message(each) for each in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    it, out = Assembler(3000), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        it.feed(whole[start:end])
        if data.draw(st.booleans()):
            while (got := it.take()) is not None:
                out.append(got)
    while (got := it.take()) is not None:
        out.append(got)
    assert out == messages
    assert it.between


def test_a_million_one_byte_pieces_are_kept_as_their_bytes() -> None:
    it = Assembler(1 << 20)
    for byte in message(b"x" * 300_000):
        it.feed(bytes((byte,)))
    assert len(it._pieces) == 1
    assert it.take() == b"x" * 300_000


def test_bad_prefixes_are_refused_at_once() -> None:
    for prefix, kind in ((b"\x01", Unsupported), (b"\x02", InvalidArgument), (b"\x00", ResourceExhausted)):
        it = Assembler(10)
        it.feed(prefix + (11).to_bytes(4, "big"))
        with pytest.raises(kind):
            it.check()


@given(st.floats(1e-6, 1e7))
def test_timeouts_there_and_back(seconds: float) -> None:
    back = read_timeout(write_timeout(seconds))
    assert back <= seconds * 1.000001 + 1e-6
    assert back > seconds * 0.99 - 2e-6


@pytest.mark.parametrize("text", ["", "5", "S", "-1S", "1.5S", "123456789S", "5x", "٣S", "1 S", "+1S"])
def test_bad_timeouts_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        read_timeout(text)


def test_timeouts_in_every_unit() -> None:
    read = [read_timeout(text) for text in ("1H", "2M", "3S", "4m", "5u", "6n")]
    assert read == pytest.approx([3600, 120, 3, 4e-3, 5e-6, 6e-9], rel=1e-9, abs=0)


@given(st.text(max_size=200))
def test_texts_there_and_back(text: str) -> None:
    text = text.encode(errors="replace").decode()
    coded = write_text(text)
    assert coded.isascii()
    assert not coded or coded.isprintable()
    assert read_text(coded) == text


@given(st.binary(max_size=200))
def test_binary_there_and_back(value: bytes) -> None:
    coded = write_binary(value)
    assert read_binary(coded) == value
    assert read_binary(coded + "=" * (-len(coded) % 4)) == value
    assert read_binary(coded + ",AAAA") == value


def test_what_is_not_base64_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        read_binary("a!b")


# Eager starts.


class Ends:
    def __init__(self) -> None:
        self.result: list[Any] = []
        self.called = asyncio.Event()

    def __call__(self, value: Any, problem: BaseException | None) -> None:
        self.result.append(problem if problem is not None else value)
        self.called.set()


def begin(coroutine: Any, ends: Ends) -> asyncio.Task[None] | None:
    return eager.start(asyncio.get_running_loop(), coroutine, copy_context(), ends)


async def test_what_does_not_wait_needs_no_task() -> None:
    async def work() -> int:
        return 7

    ends = Ends()
    assert begin(work(), ends) is None
    assert ends.result == [7]


async def test_what_fails_at_once_needs_no_task() -> None:
    async def work() -> int:
        raise KeyError("x")

    ends = Ends()
    assert begin(work(), ends) is None
    assert isinstance(ends.result[0], KeyError)


async def test_what_waits_goes_on_in_its_context_and_sees_failures() -> None:
    name: ContextVar[str] = ContextVar("name", default="")
    failing = asyncio.get_running_loop().create_future()

    async def work() -> str:
        name.set("inner")
        try:
            await failing
        except KeyError:
            await asyncio.sleep(0)
            return name.get()
        return "no"

    ends = Ends()
    task = begin(work(), ends)
    assert task is not None
    failing.set_exception(KeyError())
    await task
    assert ends.result == ["inner"]
    assert name.get() == ""


async def test_timeouts_and_groups_that_begin_in_the_first_step_work() -> None:
    async def work() -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")

        async def fails() -> None:
            raise KeyError

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asyncio.Event().wait()
        except* KeyError:
            seen.append("group")
        return seen

    ends = Ends()
    assert begin(work(), ends) is not None
    await ends.called.wait()
    assert ends.result == [["timeout", "group"]]


async def test_a_group_that_fails_within_the_first_step_works() -> None:
    async def work() -> str:
        seen = "no"
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(10))
                raise KeyError
        except* KeyError:
            seen = "caught"
        return seen

    ends = Ends()
    begin(work(), ends)
    await ends.called.wait()
    assert ends.result == ["caught"]


@pytest.mark.parametrize("late", [False, True])
async def test_cancelling_reaches_the_work(late: bool) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    ends = Ends()
    task = begin(work(), ends)
    assert task is not None
    if late:
        await asyncio.sleep(0)
    task.cancel()
    await ends.called.wait()
    assert isinstance(ends.result[0], asyncio.CancelledError)


# Deadlines.


class Item:
    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadline = self.loop.time() + seconds
        self.tick = 0
        self.late = -1.0
        self.done = asyncio.Event()

    def expire(self) -> None:
        self.late = self.loop.time() - self.deadline
        self.done.set()


async def test_deadlines_are_never_early_and_the_discarded_never_end() -> None:
    kept = Deadlines(asyncio.get_running_loop())
    items = [Item(seconds) for seconds in (-1, 0, 0.003, 0.02, 0.05, 0.05)]
    discarded, never = Item(0.01), Item(float("inf"))
    for item in (*items, discarded, never):
        kept.add(item)
    kept.discard(discarded)
    await asyncio.gather(*(item.done.wait() for item in items))
    assert all(item.late >= 0 for item in items)
    assert not discarded.done.is_set()
    assert not kept._ticks
    assert kept._timer is None
    again = Item(0.005)
    kept.add(again)
    await again.done.wait()
    assert again.late >= 0
