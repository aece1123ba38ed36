"""Whatever comes and goes in whatever order, every request ends, once, and leaves nothing in the room."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import PenstockError, Unavailable
from penstock.wire.call import Answer
from services.gateway import waiting
from tests.unit.gateway.doubles import Sent, echo
from tests.unit.gateway.records import DRAINING, FAILED, LOADING, READY, deployment, replica
from tests.unit.gateway.test_room import Cold
from tests.unit.worker import virtual_time

ENDS = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "NOT_FOUND"}

STATES = st.sampled_from([READY, LOADING, FAILED, DRAINING])

events = st.one_of(
    st.tuples(st.just("ask"), st.floats(0.01, 5.0), st.integers(1, 8)),
    st.tuples(st.just("leave"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("records"), st.lists(STATES, max_size=2), st.just(0)),
    st.tuples(st.just("deployed"), st.booleans(), st.just(0)),
    st.tuples(st.just("worker"), st.sampled_from(["echo", "refuse", "slow"]), st.just(0)),
    st.tuples(st.just("time"), st.floats(0.0, 2.0), st.just(0)),
)


async def refuse(sent: Sent) -> Answer:
    raise Unavailable("model 'digits' version 1 is no longer on this worker")


async def slow(sent: Sent) -> Answer:
    await asyncio.sleep(0.3)
    return await echo(sent)


async def play(story: list[tuple[str, Any, int]], straight: bool) -> None:
    cold = Cold(most=20, most_each=12)
    cold.it.straight = straight
    asked: list[asyncio.Task[Answer]] = []
    behaviours = {"echo": echo, "refuse": refuse, "slow": slow}
    for what, value, count in story:
        if what == "ask":
            asked += [cold.asks(timeout=value, number=len(asked) + number) for number in range(count)]
        elif what == "leave" and asked:
            asked[value % len(asked)].cancel()
        elif what == "records":
            cold.becomes(*(replica(f"w{number + 1}", state) for number, state in enumerate(value)))
        elif what == "deployed":
            records = [deployment("digits", 1, on_demand=[1])] if value else []
            cold.it.deployments.records = {record.name: record for record in records}
            cold.it.rebuild()
        elif what == "worker":
            cold.it.workers.behaviours = dict.fromkeys(("w1:1", "w2:1"), behaviours[value])
        elif what == "time":
            await asyncio.sleep(value)
        assert len(cold.room) <= 12
        assert cold.flow.waiting <= cold.flow.outstanding
        assert cold.room._gone.get(("digits", 1), 0) <= 2 * waiting.AT_ONCE + len(asked)
    if asked:
        await asyncio.wait(asked)
    for task in asked:
        if not task.cancelled() and (problem := task.exception()) is not None:
            assert isinstance(problem, PenstockError), problem
            assert problem.code.name in ENDS
    cold.left_clean()


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=25), st.booleans())
def test_every_request_ends_and_nothing_stays_behind(story: list[tuple[str, Any, int]], straight: bool) -> None:
    virtual_time.run(play(story, straight))
