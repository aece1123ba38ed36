"""Demand: reports of many make one sample, and nothing of it grows without bound."""

from __future__ import annotations

import pytest

from services.scheduler.demand import MOST_SOURCES, SILENT, Demand, Said
from services.scheduler.snapshot import VersionId

A = VersionId("a", 1)
B = VersionId("b", 1)


def test_gateways_and_workers_make_one_sample() -> None:
    demand = Demand()
    demand.report("g1", {A: Said(rate=10, outstanding=3)}, [], 0.0)
    demand.report("g2", {A: Said(rate=5, outstanding=1, waiting=2)}, [], 0.5)
    demand.report("w1", {A: Said(dequeue_rate=9, queue_seconds=0.1, busy=0.5)}, [], 0.6)
    demand.report("w2", {A: Said(dequeue_rate=3, queue_seconds=0.5, busy=0.9)}, [], 0.7)
    found = demand.sample(A, 2, 1.0)
    assert found is not None
    assert (found.rate, found.outstanding, found.replicas) == (15, 5, 2)
    assert found.queue_seconds == pytest.approx(0.2) and found.utilisation == pytest.approx(0.7)
    assert demand.waiting(A, 1.0) == 2


def test_a_gateway_that_is_not_heard_shows_through_its_workers() -> None:
    demand = Demand()
    demand.report("w1", {A: Said(dequeue_rate=9)}, [], 0.0)
    found = demand.sample(A, 1, 0.0)
    assert found is not None and found.rate == 9 and demand.in_use(A, 0.0)


def test_nothing_is_known_until_somebody_reports_and_silence_of_all_is_not_idleness() -> None:
    demand = Demand()
    assert demand.sample(A, 1, 0.0) is None
    demand.report("g1", {}, [], 10.0)
    found = demand.sample(A, 1, 10.0)
    assert found is not None and found.rate == 0
    assert demand.sample(A, 1, 10.0 + SILENT + 1) is None


def test_what_is_not_reported_again_is_over() -> None:
    demand = Demand()
    demand.report("g1", {A: Said(rate=10, outstanding=3), B: Said(rate=1)}, [], 0.0)
    demand.report("g1", {B: Said(rate=1)}, [], 1.0)
    assert not demand.in_use(A, 1.0) and demand.in_use(B, 1.0)
    assert demand.idle_seconds(A, 5.0) == 5.0 and demand.idle_seconds(B, 5.0) == 0.0


def test_idleness_is_that_of_whoever_used_it_last() -> None:
    demand = Demand()
    demand.report("g1", {A: Said(idle_seconds=50)}, [], 100.0)
    demand.report("g2", {A: Said(idle_seconds=20)}, [], 101.0)
    demand.report("g1", {A: Said(idle_seconds=51)}, [], 101.0)
    assert demand.idle_seconds(A, 103.0) == 22.0
    assert demand.idle_seconds(B, 103.0) == 3.0  # nobody has heard of it for longer than there is anybody to hear


def test_the_silent_and_the_undeployed_are_forgotten() -> None:
    demand = Demand()
    demand.report("g1", {A: Said(outstanding=3)}, [(A, "w1")], 0.0)
    demand.report("g2", {A: Said(outstanding=1), B: Said(outstanding=1)}, [], 4.0)
    later = SILENT + 1
    assert demand.waiting(A, later) == 0 and not demand.gray(later) and demand.callers(A, later) == 1
    demand.active.clear()
    demand.sweep(later, lambda version: True)
    assert demand.active == {A}  # what nobody says any more is looked at again
    demand.sweep(later, lambda version: version == A)
    assert not demand.in_use(B, later) and demand.in_use(A, later) and demand.active == {A}
    demand.sweep(3 * SILENT, lambda version: version == A)
    assert not demand.in_use(A, later)


def test_there_is_an_end_to_the_senders_that_are_listened_to() -> None:
    demand = Demand()
    for number in range(MOST_SOURCES):
        demand.report(f"g{number}", {}, [], 0.0)
    demand.report("late", {A: Said(rate=1)}, [], 0.0)
    assert not demand.in_use(A, 0.0)
    demand.report("g1", {A: Said(rate=1)}, [], 0.0)
    assert demand.in_use(A, 0.0)


def test_a_gray_replica_is_gray_since_it_was_said_without_a_break() -> None:
    demand = Demand()
    demand.report("g1", {A: Said(rate=1)}, [(A, "w1")], 0.0)
    demand.report("g2", {A: Said(rate=1)}, [], 0.0)
    demand.report("g3", {}, [], 0.0)
    demand.report("g1", {A: Said(rate=1)}, [(A, "w1")], 3.0)
    assert demand.gray(3.0) == {(A, "w1"): [0.0]} and demand.callers(A, 3.0) == 2
    demand.report("g1", {A: Said(rate=1)}, [], 4.0)
    demand.report("g1", {A: Said(rate=1)}, [(A, "w1")], 5.0)
    assert demand.gray(5.0) == {(A, "w1"): [5.0]}
