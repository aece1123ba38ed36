"""The queue and its rule, with a clock that is a number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from penstock.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from penstock.v1 import manifest_pb2 as pb
from services.worker.batching import AGING_SECONDS, BatchPolicy, BatchQueue, Decision, ServiceEstimate, Waiting


def queue(estimate: ServiceEstimate | None = None, **policy: Any) -> BatchQueue[str]:
    return BatchQueue(BatchPolicy(**{"max_batch_size": 8, **policy}), estimate or ServiceEstimate())


def constant(seconds: float) -> ServiceEstimate:
    estimate = ServiceEstimate()
    for rows in (1, 8):
        estimate.observe(rows, seconds)
    return estimate


def put(
    waiting: BatchQueue[str],
    item: str,
    at: float,
    *,
    rows: int = 1,
    kind: str = "a",
    level: int = 1,
    deadline: float = math.inf,
    expires: float = math.inf,
    busy_for: float = 0.0,
) -> Waiting[str]:
    entry = Waiting(item, kind, rows, level, at, deadline, expires)
    waiting.admit(entry, at, busy_for)
    return entry


def items(decision: Decision[str]) -> list[str]:
    return [waiting.item for waiting in decision.batch]


def refused(decision: Decision[str]) -> dict[str, type[Exception]]:
    return {waiting.item: type(error) for waiting, error in decision.refused}


def test_a_free_engine_takes_what_waits_and_does_not_wait_for_more() -> None:
    waiting = queue()
    put(waiting, "one", 0.0)
    decision = waiting.take(0.0)
    assert items(decision) == ["one"]
    assert len(waiting) == 0
    assert waiting.take(0.0).wake == math.inf


def test_a_batch_ends_at_max_batch_size_and_never_splits_a_request() -> None:
    waiting = queue()
    for item, rows in (("a", 3), ("b", 3), ("c", 3), ("d", 1)):
        put(waiting, item, 0.0, rows=rows)
    assert items(waiting.take(0.0)) == ["a", "b"]  # c does not fit, and d does not overtake it
    assert items(waiting.take(0.0)) == ["c", "d"]


def test_a_request_larger_than_a_batch_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidArgument, match="at most 8 items"):
        put(queue(), "big", 0.0, rows=9)


def test_a_model_without_batch_dimension_runs_one_by_one() -> None:
    waiting = queue(max_batch_size=0)
    put(waiting, "a", 0.0)
    put(waiting, "b", 0.0)
    assert items(waiting.take(0.0)) == ["a"]
    assert items(waiting.take(0.0)) == ["b"]


def test_kinds_never_mix_and_the_oldest_kind_goes_first() -> None:
    waiting = queue()
    for item, kind in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
        put(waiting, item, 0.0, kind=kind)
    assert items(waiting.take(0.0)) == ["a1", "a2"]
    assert items(waiting.take(0.0)) == ["b1", "b2"]


def test_higher_priority_goes_first_and_order_inside_a_priority_is_kept() -> None:
    waiting = queue(max_batch_size=2, priority_levels=2, default_priority=2)
    for item, level in (("low1", 2), ("low2", 2), ("high1", 1), ("high2", 1), ("high3", 1)):
        put(waiting, item, 0.0, level=level)
    assert items(waiting.take(0.0)) == ["high1", "high2"]
    assert items(waiting.take(0.0)) == ["high3", "low1"]
    assert items(waiting.take(0.0)) == ["low2"]


def test_low_priority_ages_and_is_not_starved() -> None:
    waiting = queue(max_batch_size=1, priority_levels=2, default_priority=2)
    put(waiting, "low", 0.0, level=2)
    put(waiting, "soon", AGING_SECONDS - 0.001, level=1)
    put(waiting, "later", AGING_SECONDS + 0.001, level=1)
    assert [items(waiting.take(2.0))[0] for _ in range(3)] == ["soon", "low", "later"]


@pytest.mark.parametrize(
    ("asked", "level"), [(0, 2), (1, 1), (3, 3), (4, 2), (1 << 60, 2)], ids=["default", "first", "last", "none", "huge"]
)
def test_priority_outside_the_levels_means_the_default(asked: int, level: int) -> None:
    assert BatchPolicy(priority_levels=3, default_priority=2).level(asked) == level


def test_without_levels_every_priority_is_the_same() -> None:
    assert {BatchPolicy().level(asked) for asked in (0, 1, 7)} == {1}


def test_what_cannot_meet_its_deadline_is_refused_before_batching() -> None:
    waiting = queue(constant(0.5))
    put(waiting, "late", 0.0, deadline=0.4)
    put(waiting, "fine", 0.0, deadline=0.6, busy_for=0.0)
    decision = waiting.take(0.0)
    assert items(decision) == ["fine"]
    assert refused(decision) == {"late": DeadlineExceeded}


def test_a_batch_stops_growing_where_it_would_make_an_earlier_request_late() -> None:
    estimate = ServiceEstimate()
    for rows in range(1, 9):
        estimate.observe(rows, 0.1 * rows)
    waiting = queue(estimate)
    put(waiting, "tight", 0.0, deadline=0.25)
    for item in ("b", "c"):
        put(waiting, item, 0.0, deadline=10.0)
    assert items(waiting.take(0.0)) == ["tight", "b"]
    assert items(waiting.take(0.2)) == ["c"]


def test_a_wrong_estimate_does_not_refuse_for_ever() -> None:
    waiting = queue(constant(5.0))
    tries = 0
    while True:
        tries += 1
        put(waiting, "x", 0.0, deadline=1.0)
        if items(waiting.take(0.0)):
            break
        assert tries < 20
    assert tries > 1


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    waiting = queue(constant(0.5), max_queue_size=2, max_batch_size=1)
    put(waiting, "a", 0.0)
    put(waiting, "b", 0.0)
    with pytest.raises(ResourceExhausted, match="queue is full") as caught:
        put(waiting, "c", 0.0, busy_for=0.25)
    assert caught.value.retry_after == pytest.approx(0.25 + 2 * 0.5)
    assert len(waiting) == 2


def test_a_queue_too_long_for_the_deadline_refuses_on_arrival() -> None:
    waiting = queue(constant(0.5), max_batch_size=1)
    for item in ("a", "b"):
        put(waiting, item, 0.0)
    put(waiting, "patient", 0.0, deadline=2.0)
    with pytest.raises(ResourceExhausted, match="too long for the request's deadline") as caught:
        put(waiting, "hasty", 0.0, deadline=1.0)
    assert caught.value.retry_after == pytest.approx(1.0)


def test_lower_priorities_do_not_count_as_ahead() -> None:
    waiting = queue(constant(0.5), max_batch_size=1, priority_levels=2, default_priority=2)
    for number in range(10):
        put(waiting, str(number), 0.0, level=2)
    put(waiting, "urgent", 0.0, level=1, deadline=0.6)
    assert items(waiting.take(0.0)) == ["urgent"]


def test_a_deadline_in_the_past_is_refused_on_arrival() -> None:
    with pytest.raises(DeadlineExceeded):
        put(queue(), "x", 1.0, deadline=1.0)


def test_a_queue_timeout_ends_with_tritons_words() -> None:
    waiting = queue()
    put(waiting, "x", 0.0, expires=1.0)
    put(waiting, "y", 0.0)
    decision = waiting.take(1.0)
    assert items(decision) == ["y"]
    ((_, error),) = decision.refused
    assert isinstance(error, Unavailable)
    assert error.message == "Request timeout expired"


@pytest.mark.parametrize(
    ("default", "asked", "expires"),
    [(0, None, math.inf), (0, 2.0, 12.0), (3_000_000, None, 13.0), (3_000_000, 1.0, 11.0), (3_000_000, 9.0, 13.0)],
)
def test_a_request_may_shorten_the_default_timeout_but_not_lengthen_it(
    default: int, asked: float | None, expires: float
) -> None:
    policy = BatchPolicy.from_manifest(pb.Batching(default_timeout_microseconds=default))
    assert policy.expiry(10.0, asked) == expires


def test_who_leaves_is_gone_at_once_wherever_he_stands() -> None:
    waiting = queue()
    entries = [put(waiting, item, 0.0) for item in "abc"]
    assert waiting.discard(entries[1])
    assert not waiting.discard(entries[1])
    assert len(waiting) == 2
    assert items(waiting.take(0.0)) == ["a", "c"]
    assert not waiting.discard(entries[0])


def test_clear_empties_the_queue() -> None:
    waiting = queue()
    entries = [put(waiting, item, 0.0, kind=item) for item in "abc"]
    assert set(waiting.clear()) == set(entries)
    assert len(waiting) == 0
    assert not waiting.take(0.0).batch


def delayed(**policy: Any) -> BatchQueue[str]:
    return queue(max_delay=0.1, **policy)


def test_an_incomplete_batch_waits_until_its_oldest_request_has_waited_the_delay() -> None:
    waiting = delayed()
    put(waiting, "a", 0.0)
    put(waiting, "b", 0.06)
    decision = waiting.take(0.06)
    assert not decision.batch
    assert decision.wake == pytest.approx(0.1)
    assert items(waiting.take(0.1)) == ["a", "b"]


def test_a_complete_batch_does_not_wait_for_the_delay() -> None:
    waiting = delayed()
    put(waiting, "a", 0.0, rows=5)
    put(waiting, "b", 0.0, rows=3)
    assert items(waiting.take(0.0)) == ["a", "b"]


def test_a_batch_that_cannot_grow_does_not_wait_for_the_delay() -> None:
    waiting = delayed()
    put(waiting, "a", 0.0, rows=5)
    put(waiting, "b", 0.0, rows=5)
    assert items(waiting.take(0.0)) == ["a"]


def test_while_one_kind_waits_for_the_delay_a_complete_batch_of_another_goes() -> None:
    waiting = delayed(max_batch_size=2)
    put(waiting, "a", 0.0, kind="a")
    for item in ("b1", "b2"):
        put(waiting, item, 0.05, kind="b")
    assert items(waiting.take(0.05)) == ["b1", "b2"]
    assert waiting.take(0.05).wake == pytest.approx(0.1)


def test_the_delay_does_not_make_a_deadline_fail() -> None:
    waiting = queue(constant(0.02), max_delay=0.1)
    put(waiting, "a", 0.0, deadline=0.08)
    decision = waiting.take(0.0)
    assert decision.wake == pytest.approx(0.04)
    assert items(waiting.take(0.04)) == ["a"]


def test_the_largest_preferred_size_that_can_be_formed_goes() -> None:
    waiting = queue(preferred=(4, 2))
    for item in "abcdefg":
        put(waiting, item, 0.0)
    assert items(waiting.take(0.0)) == list("abcd")
    assert items(waiting.take(0.0)) == list("ef")
    assert items(waiting.take(0.0)) == ["g"]  # no preferred size, and no delay to wait for one


def test_with_a_delay_a_size_that_is_not_preferred_waits_and_a_preferred_one_goes_at_once() -> None:
    waiting = delayed(preferred=(4,))
    for item in "abc":
        put(waiting, item, 0.0)
    assert waiting.take(0.0).wake == pytest.approx(0.1)
    put(waiting, "d", 0.05)
    assert items(waiting.take(0.05)) == list("abcd")


SIZES = {1: 1.0, 4: 2.0, 8: 5.0}
"""Padding five to eight rows does one row a second, four rows do two."""


def test_an_engine_of_few_sizes_leaves_the_rest_in_the_queue_where_later_ones_join_it() -> None:
    waiting = queue()
    for item in "abcde":
        put(waiting, item, 0.0)
    assert items(waiting.take(0.0, SIZES)) == [*"abcd"]
    for item in "fg":
        put(waiting, item, 1.0)
    assert items(waiting.take(2.0, SIZES)) == [*"efg"]  # three of four: 1.5 a second, one of one does 1


def test_the_rest_keeps_its_place_and_a_batch_that_fills_a_size_is_not_cut() -> None:
    waiting = queue(priority_levels=2)
    for item in "abcdef":
        put(waiting, item, 0.0, level=2)
    assert items(waiting.take(0.0, SIZES)) == [*"abcd"]
    put(waiting, "1", 0.5, level=1)
    for item in "gh":
        put(waiting, item, 2.0, level=2)
    assert items(waiting.take(2.0, SIZES)) == [*"1efg"]
    for item in "ijklmno":
        put(waiting, item, 3.0, level=2)
    assert items(waiting.take(3.0, SIZES)) == [*"hijklmno"]


def test_requests_are_not_split_to_fill_a_size() -> None:
    waiting = queue()
    put(waiting, "a", 0.0, rows=3)
    put(waiting, "b", 0.0, rows=3)
    assert items(waiting.take(0.0, SIZES)) == ["a"]  # 3 rows in 2 s; six would be 6 rows in 5 s
    put(waiting, "c", 0.0, rows=5)
    assert items(waiting.take(0.0, {1: 1.0, 2: 1.1, 8: 2.0})) == ["b", "c"]


def test_nobody_is_left_behind_whose_deadline_would_pass_by_that() -> None:
    estimate = constant(2.0)
    patient, late = queue(estimate), queue(estimate)
    for waiting, deadline in ((patient, 4.5), (late, 3.5)):
        for item in "abcde":
            put(waiting, item, 0.0, deadline=deadline)
    assert items(patient.take(0.0, SIZES)) == [*"abcd"]
    assert items(late.take(0.0, SIZES)) == [*"abcde"]


def test_a_preferred_size_is_the_publisher_s_word() -> None:
    waiting = queue(preferred=(5,))
    for item in "abcde":
        put(waiting, item, 0.0)
    assert items(waiting.take(0.0, SIZES)) == [*"abcde"]


def test_a_batch_that_waits_for_its_delay_is_not_sent_in_pieces_meanwhile() -> None:
    waiting = queue(max_delay=1.0)
    for item in "abcde":
        put(waiting, item, 0.0)
    decision = waiting.take(0.0, SIZES)
    assert not decision.batch and not decision.refused and decision.wake == 1.0
    assert items(waiting.take(1.0, SIZES)) == [*"abcd"]


def test_the_policy_reads_the_manifest() -> None:
    policy = BatchPolicy.from_manifest(
        pb.Batching(
            max_batch_size=16,
            preferred_batch_size=[4, 8, 4],
            max_queue_delay_microseconds=1500,
            max_queue_size=7,
            priority_levels=3,
            default_priority_level=2,
        )
    )
    assert policy == BatchPolicy(16, (8, 4), 0.0015, 7, 3, 2, math.inf)
    assert BatchPolicy.from_manifest(pb.Batching()).max_queue_size == 1024


class TestServiceEstimate:
    def test_it_says_nothing_before_the_first_batch(self) -> None:
        assert ServiceEstimate().seconds(8) == 0.0

    def test_it_finds_an_affine_cost(self) -> None:
        estimate = ServiceEstimate()
        for rows in (1, 8, 3, 5, 2):
            estimate.observe(rows, 0.010 + 0.002 * rows)
        assert estimate.seconds(1) == pytest.approx(0.012)
        assert estimate.seconds(32) == pytest.approx(0.074)

    def test_one_size_alone_gives_no_slope(self) -> None:
        estimate = ServiceEstimate()
        for _ in range(5):
            estimate.observe(4, 0.020)
        assert estimate.seconds(4) == pytest.approx(0.020)
        assert estimate.seconds(1) == pytest.approx(0.005)
        assert estimate.seconds(8) == pytest.approx(0.020)

    def test_it_follows_a_change(self) -> None:
        estimate = constant(1.0)
        for _ in range(60):
            estimate.observe(1, 0.1)
            estimate.observe(8, 0.1)
        assert estimate.seconds(4) == pytest.approx(0.1, rel=0.01)

    def test_it_is_never_negative(self) -> None:
        estimate = ServiceEstimate()
        estimate.observe(8, 0.1)
        estimate.observe(7, 0.01)
        assert estimate.seconds(1) >= 0
        falling = ServiceEstimate()
        falling.observe(1, 0.2)
        falling.observe(8, 0.1)
        assert 0.1 <= falling.seconds(64) <= 0.2
