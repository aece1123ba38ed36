"""Who waits, in which order, how many, how long, and what he is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ResourceExhausted
from penstock.internal.v1.records_pb2 import ReplicaRecord
from services.gateway import waiting
from services.gateway.route_table import RouteTable, VersionView, view_of
from services.gateway.waiting import Estimate, Lines, Prospect
from tests.unit.gateway.records import ASSIGNED, DRAINING, FAILED, LOADING, PULLING, READY, deployment, replica

ONE, OTHER = ("m", 1), ("n", 1)


def version(*replicas: ReplicaRecord, on_demand: bool = True) -> VersionView:
    view = view_of(deployment("digits", 1, on_demand=[1] if on_demand else []), replicas)
    assert view is not None
    return view.versions[1]


@pytest.mark.parametrize(
    ("states", "on_demand", "fixed"),
    [
        ([], Prospect.WAITS, Prospect.ENDS),
        ([ASSIGNED], Prospect.WAITS, Prospect.ENDS),
        ([PULLING], Prospect.WAITS, Prospect.ENDS),
        ([LOADING], Prospect.WAITS, Prospect.ENDS),
        ([LOADING, FAILED], Prospect.WAITS, Prospect.ENDS),
        ([DRAINING], Prospect.WAITS, Prospect.ENDS),
        ([FAILED], Prospect.ENDS, Prospect.ENDS),
        ([READY], Prospect.GOES, Prospect.GOES),
        ([READY, FAILED, DRAINING], Prospect.GOES, Prospect.GOES),
    ],
)
def test_every_state_of_a_version(states: list[int], on_demand: Prospect, fixed: Prospect) -> None:
    records = [replica(f"w{number}", state) for number, state in enumerate(states)]  # type: ignore[arg-type]
    assert waiting.prospect(version(*records)) is on_demand
    assert waiting.prospect(version(*records, on_demand=False)) is fixed


def test_what_is_not_deployed_any_more_is_not_waited_for() -> None:
    assert waiting.prospect_of(RouteTable(), ONE) is Prospect.ENDS
    view = view_of(deployment("m", 2, on_demand=[2]), [])
    assert view is not None
    table = RouteTable({"m": view})
    assert waiting.prospect_of(table, ("m", 2)) is Prospect.WAITS
    assert waiting.prospect_of(table, ONE) is Prospect.ENDS


@given(st.floats(0.0, 100.0))
def test_there_is_time_left_to_say_why(left: float) -> None:
    until = waiting.until(1000.0 + left, 1000.0)
    assert 0.02 - 1e-9 <= 1000.0 + left - until <= 0.5 + 1e-9
    assert until >= 1000.0 + 0.8 * left or left < 0.2


@pytest.mark.parametrize(
    ("estimate", "words", "after"),
    [
        (Estimate(), "is not loaded; a request has it loaded; it was not ready before the deadline", None),
        (Estimate(ready_at=112.3), "is not loaded; a request has it loaded; it should be ready in about 12 s", 12.3),
        (Estimate(ready_at=90.0), "it was not ready before the deadline", None),
        (Estimate(obstacle="no worker has room for it", said_at=99.0), "no worker has room for it", None),
        (Estimate(obstacle="no worker has room for it", said_at=90.0), "it was not ready before the deadline", None),
    ],
)
def test_what_one_is_told_who_waited_in_vain(estimate: Estimate, words: str, after: float | None) -> None:
    told = waiting.in_vain("digits", version(), estimate, 100.0)
    assert told.message.startswith("version 1 of model 'digits' ")
    assert told.message.endswith(words)
    assert told.retry_after == (pytest.approx(after) if after is not None else None)


def test_the_worse_of_what_schedulers_say_while_it_is_said() -> None:
    leader, follower = Estimate(ready_at=140.0, said_at=100.0), Estimate(ready_at=110.0, said_at=100.1)
    assert waiting.believed(None, follower) is follower
    assert waiting.believed(follower, leader) is leader
    assert waiting.believed(leader, follower) is leader
    later = Estimate(ready_at=110.0, said_at=103.0)
    assert waiting.believed(leader, later) is later, "nobody says the other any more"
    room = Estimate(obstacle="no room", said_at=100.2)
    assert waiting.believed(leader, room) is room
    assert waiting.believed(room, leader) is room


def test_an_obstacle_is_over_once_it_loads() -> None:
    told = waiting.in_vain(
        "digits", version(replica("w1", LOADING)), Estimate(obstacle="no worker has room", said_at=99.0), 100.0
    )
    assert "room" not in told.message
    assert "is loading" in told.message


def test_a_line_keeps_its_order_and_gives_up_places() -> None:
    lines: Lines[str] = Lines(10, 10)
    assert [lines.join(ONE, each) for each in "abcd"] == [True, False, False, False]
    assert lines.join(OTHER, "x")
    lines.leave(ONE, "b")
    lines.leave(ONE, "b")
    assert (len(lines), lines.waiting(ONE)) == (4, 3)
    assert lines.take(ONE, 2) == ["a", "c"]
    lines.leave(ONE, "a")
    assert lines.take(ONE, -1) == []
    assert lines.of(frozenset({"m"})) == [ONE]
    assert sorted(lines.everybody()) == ["d", "x"]
    assert lines.take(ONE, 5) == ["d"]
    assert (len(lines), lines.of(frozenset({"m", "n"}))) == (1, [OTHER])
    assert lines.join(ONE, "e"), "the first again"


def test_the_room_is_bounded_for_each_version_and_in_all() -> None:
    lines: Lines[int] = Lines(3, 2)
    lines.join(ONE, 1)
    lines.join(ONE, 2)
    with pytest.raises(ResourceExhausted, match="2 requests wait for version 1 of model 'm'") as caught:
        lines.join(ONE, 3)
    assert caught.value.retry_after == 1.0
    lines.join(OTHER, 3)
    with pytest.raises(ResourceExhausted, match="3 requests wait for models"):
        lines.join(OTHER, 4)
    with pytest.raises(ResourceExhausted):
        lines.join(("third", 1), 4)
    assert lines.of(frozenset({"third"})) == []
    lines.leave(ONE, 1)
    lines.join(OTHER, 4)
    with pytest.raises(ResourceExhausted):
        Lines[int](0, 5).join(ONE, 1)
