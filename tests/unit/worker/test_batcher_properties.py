"""Whatever callers and engine do, the batcher keeps its promises (batching.md B.5, check 6).

Hypothesis invents callers (when they come, what they send, how long they wait, when they leave) and engines (which
batches fail, which rows), in virtual time. Every row of every payload is unique, so that any mix-up shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.errors import DeadlineExceeded, Internal, InvalidArgument, PenstockError, ResourceExhausted, Unavailable
from penstock.internal.v1 import engine_pb2
from services.worker import staging
from services.worker.batcher import Batcher
from services.worker.costs import Costs
from services.worker.seat import Result
from services.worker.statistics import Statistics
from tests.unit.worker.doubles import EchoEngine, EchoOutcome, batcher, request
from tests.unit.worker.virtual_time import run

ROW = 8
"""Bytes of a row of the narrowest kind: 4 for the caller, 1 for the row, the rest filler."""


@dataclass(frozen=True)
class Caller:
    """One request: comes at `at`, leaves at `leaves` (None: waits), must be answered by `deadline` (seconds after)."""

    number: int
    at: float
    kind: int
    rows: int
    priority: int
    deadline: float
    timeout: float | None
    leaves: float | None

    @property
    def payload(self) -> list[bytes]:
        width = ROW * (self.kind + 1)
        return [(self.number.to_bytes(4, "big") + bytes([row])).ljust(width, b".") for row in range(self.rows)]


@dataclass(frozen=True)
class World:
    callers: list[Caller]
    policy: dict[str, Any]
    failing_batches: frozenset[int]
    failing_rows: frozenset[tuple[int, int]]
    seconds_per_batch: float
    seconds_per_row: float
    engines: int
    ahead: bool = True
    """Whether rows are copied before their batch is decided; else only when it is."""
    costs: Costs = field(default_factory=dict)


@dataclass
class History:
    """What happened. ends: the result, the error's class, or None for who left."""

    ends: dict[int, Result | type[PenstockError] | None] = field(default_factory=dict)
    ended_at: dict[int, float] = field(default_factory=dict)
    batches: list[list[bytes]] = field(default_factory=list)
    """In the order in which they began."""
    begun: set[int] = field(default_factory=set)
    statistics: Statistics = field(default_factory=Statistics)


class Engine(EchoEngine):
    """Takes its time, fails as the world says."""

    def __init__(self, world: World, history: History) -> None:
        super().__init__(behave=self._fail)
        self._world = world
        self.costs = world.costs
        self.batches = history.batches
        self._history = history

    async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None:
        await super().begin(batch_size, inputs, side)
        self._size = batch_size
        self._history.begun |= {int.from_bytes(row[:4], "big") for row in self.batches[-1]}

    async def finish(self) -> EchoOutcome:
        await asyncio.sleep(self._world.seconds_per_batch + self._world.seconds_per_row * max(1, self._size))
        return await super().finish()

    def _fail(self, number: int, rows: list[bytes]) -> dict[int, PenstockError]:
        if number in self._world.failing_batches:
            raise Internal("the batch fails")
        numbered = enumerate(rows if self._world.policy["max_batch_size"] else rows[:1])
        return {
            index: InvalidArgument("the row fails")
            for index, row in numbered
            if (int.from_bytes(row[:4], "big"), row[4]) in self._world.failing_rows
        }


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 24))
    moment = st.integers(0, 60).map(lambda milliseconds: milliseconds / 1000)
    callers = [
        Caller(
            number=number,
            # All different, so that who came first is never in doubt.
            at=draw(moment) + number * 1e-7,
            kind=draw(st.integers(0, 1)),
            rows=draw(st.integers(1, 3)),
            priority=draw(st.integers(0, 2)),
            deadline=draw(st.one_of(st.just(60.0), st.integers(1, 40).map(lambda ms: ms / 1000))),
            timeout=draw(st.one_of(st.none(), st.integers(1, 20).map(lambda ms: ms / 1000))),
            leaves=draw(st.one_of(st.none(), moment)),
        )
        for number in range(count)
    ]
    largest = draw(st.integers(0, 6))
    policy: dict[str, Any] = {
        "max_batch_size": largest,
        "max_delay": draw(st.sampled_from([0.0, 0.0, 0.004])),
        "preferred": tuple(sorted(draw(st.sets(st.integers(1, max(1, largest)), max_size=2)), reverse=True)),
        "max_queue_size": draw(st.sampled_from([1024, 3])),
        "priority_levels": draw(st.sampled_from([0, 2])),
        "default_priority": 2,
    }
    return World(
        callers,
        policy,
        draw(st.frozensets(st.integers(0, 6), max_size=2)),
        draw(st.frozensets(st.tuples(st.integers(0, count - 1), st.integers(0, 2)), max_size=4)),
        draw(st.sampled_from([0.0005, 0.005])),
        draw(st.sampled_from([0.0, 0.001])),
        draw(st.sampled_from([1, 1, 2])),
        draw(st.booleans()),
        draw(st.dictionaries(st.integers(1, 8), st.sampled_from([0.001, 0.002, 0.008]), max_size=3)),
    )


async def call(caller: Caller, under_test: Batcher, history: History, batched: bool) -> None:
    """One caller, with the deadline kept as penstock.wire.server keeps it."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(caller.at)
    deadline = loop.time() + caller.deadline
    data = b"".join(caller.payload)
    asked = request(
        data, rows=caller.rows, batched=batched, priority=caller.priority, timeout=caller.timeout,
        width=len(data) // caller.rows if batched else len(data),
    )  # fmt: skip
    end: Result | type[PenstockError] | None = None
    try:
        async with asyncio.timeout_at(deadline):
            end = await under_test.submit(asked, deadline)
    except TimeoutError:
        end = DeadlineExceeded
    except PenstockError as error:
        end = type(error)
    finally:
        assert caller.number not in history.ends
        history.ends[caller.number] = end
        history.ended_at[caller.number] = loop.time()


async def live(world: World) -> History:
    history = History()
    engines = [Engine(world, history) for _ in range(world.engines)]
    under_test = batcher(*engines, statistics=history.statistics, **world.policy)
    batched = bool(world.policy["max_batch_size"])
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(under_test.run())
    tasks = [asyncio.ensure_future(call(caller, under_test, history, batched)) for caller in world.callers]
    for caller, task in zip(world.callers, tasks, strict=True):
        if caller.leaves is not None:
            loop.call_at(caller.at + caller.leaves, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert under_test.depth == under_test.outstanding == 0
    assert [engine.broken for engine in engines] == [[]] * world.engines
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    return history


def _inherited_turn() -> World:
    """Of a model without batch dimension: who is next cannot be answered in time any more, and the last has its shape.
    Who came between them is next then."""
    callers = [
        Caller(number, number / 1000, 0, rows, 0, deadline, None, None)
        for number, (rows, deadline) in enumerate(((1, 60.0), (1, 0.006), (2, 60.0), (1, 60.0)))
    ]
    policy: dict[str, Any] = {
        "max_batch_size": 0, "max_delay": 0.0, "preferred": (), "max_queue_size": 1024, "priority_levels": 0,
        "default_priority": 2,
    }  # fmt: skip
    return World(callers, policy, frozenset(), frozenset(), 0.005, 0.0, engines=1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(_inherited_turn())
@given(worlds())
def test_the_batcher_keeps_its_promises(world: World) -> None:
    with patch.object(staging, "WORTH_BYTES", 0 if world.ahead else 1 << 20):
        history = run(live(world))  # raises Stuck where somebody would hang
    callers = {caller.number: caller for caller in world.callers}
    largest = int(world.policy["max_batch_size"])
    batches = [_callers_in(rows, callers, bool(largest)) for rows in history.batches]

    _one_end_each(world, history)
    _own_rows_only(world, history, callers)
    _sound_batches(world, history, batches, callers, largest)
    _order_inside_a_priority(world, batches, callers)
    _nobody_refused_was_run(history)
    message = history.statistics.message("m", 1, 0)
    assert message.inference_stats.success.count + message.inference_stats.fail.count <= len(callers)
    assert message.inference_stats.success.count == sum(isinstance(end, Result) for end in history.ends.values())


def _one_end_each(world: World, history: History) -> None:
    for caller in world.callers:
        # Who leaves at the moment he comes may never have asked.
        if caller.leaves != 0.0:
            assert caller.number in history.ends
            assert history.ends[caller.number] is not None or caller.leaves is not None
    for number, ended in history.ended_at.items():
        caller = world.callers[number]
        patience = (
            caller.deadline if number in history.begun else min(caller.deadline, caller.timeout or caller.deadline)
        )
        assert ended <= caller.at + patience + 1e-6


def _own_rows_only(world: World, history: History, callers: dict[int, Caller]) -> None:
    for number, end in history.ends.items():
        if isinstance(end, Result):
            (tensor,) = end.outputs
            assert bytes(tensor.data) == b"".join(callers[number].payload)
            if world.policy["max_batch_size"]:
                assert not any((number, row) in world.failing_rows for row in range(callers[number].rows))
        elif end is not None:
            allowed = {InvalidArgument, Internal, DeadlineExceeded, ResourceExhausted, Unavailable}
            assert end in allowed


def _sound_batches(
    world: World, history: History, batches: list[list[int]], callers: dict[int, Caller], largest: int
) -> None:
    everything = [row for rows in history.batches for row in rows]
    assert len(everything) == len(set(everything)), "a row ran twice"
    for rows, numbers in zip(history.batches, batches, strict=True):
        assert len(rows) <= max(1, largest)
        assert len({callers[number].kind for number in numbers}) == 1
        assert rows == (
            [row for number in numbers for row in callers[number].payload]
            if largest
            else [b"".join(callers[numbers[0]].payload)]
        ), "a request was split or its rows reordered"
    if largest == 0:
        assert all(len(numbers) == 1 for numbers in batches)


def _order_inside_a_priority(world: World, batches: list[list[int]], callers: dict[int, Caller]) -> None:
    levels = world.policy["priority_levels"]
    ran: dict[tuple[int, int], list[float]] = {}
    for numbers in batches:
        for number in numbers:
            caller = callers[number]
            level = (caller.priority or 2) if levels else 1
            ran.setdefault((caller.kind, level), []).append(caller.at)
    for arrivals in ran.values():
        assert arrivals == sorted(arrivals)


def _nobody_refused_was_run(history: History) -> None:
    for number, end in history.ends.items():
        if end in (ResourceExhausted, Unavailable):
            assert number not in history.begun


def _callers_in(rows: list[bytes], callers: dict[int, Caller], batched: bool) -> list[int]:
    """Whose rows these are, in order."""
    numbers = [int.from_bytes(row[:4], "big") for row in rows]
    assert all(number in callers for number in numbers)
    return list(dict.fromkeys(numbers)) if batched else numbers


def test_the_test_would_see_a_hang() -> None:
    """A loop that nobody will ever wake is an error, not a wait."""

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    try:
        run(forever())
    except AssertionError as stuck:
        assert "nothing can happen" in str(stuck)
    else:
        raise AssertionError("the virtual loop waited for ever and came back")
