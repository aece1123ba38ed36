"""Shunning: who says so, for how long, and how much of it there may be."""

from __future__ import annotations

from services.scheduler.shunning import HELD, SHUNNED, Shunning
from services.scheduler.snapshot import VersionId

A = VersionId("a", 1)


class Cluster:
    def __init__(self, *at: str, workers: int = 9, callers: int = 1) -> None:
        self.shunning = Shunning()
        self.at, self.workers, self.callers = frozenset(at), workers, callers
        self.started: dict[str, float] = dict.fromkeys(at, 0.0)

    def look(self, now: float, **since: list[float]) -> dict[VersionId, frozenset[str]]:
        gray = {(A, worker): times for worker, times in since.items()}
        return self.shunning.look(
            gray,
            callers=lambda _: self.callers,
            told=lambda _: self.at,
            started=self.started.get,
            workers=self.workers,
            now=now,
        )


def test_it_must_have_been_gray_for_a_while() -> None:
    cluster = Cluster("w1", "w2")
    assert cluster.look(HELD - 0.1, w1=[0.0]) == {}
    assert cluster.look(HELD, w1=[0.0]) == {A: frozenset({"w1"})}
    assert cluster.look(HELD + 1, w1=[0.0]) == {}


def test_half_of_the_callers_must_say_so() -> None:
    cluster = Cluster("w1", "w2", callers=3)
    assert cluster.look(HELD, w1=[0.0]) == {}
    assert cluster.look(HELD, w1=[0.0, 0.0]) == {A: frozenset({"w1"})}


def test_it_may_come_back_after_a_while() -> None:
    cluster = Cluster("w1", "w2")
    cluster.look(HELD, w1=[0.0])
    assert cluster.shunning.next_look(HELD) == SHUNNED
    assert cluster.look(HELD + SHUNNED) == {A: frozenset()}
    assert cluster.shunning.next_look(HELD + SHUNNED) is None


def test_a_worker_that_is_started_anew_is_pardoned() -> None:
    cluster = Cluster("w1", "w2")
    cluster.look(HELD, w1=[0.0])
    del cluster.started["w1"]
    assert cluster.look(HELD + 1) == {}, "one that is gone may come back as it was"
    cluster.started["w1"] = 0.0
    assert cluster.look(HELD + 2) == {}
    cluster.started["w1"] = 5.0
    assert cluster.look(HELD + 3, w1=[0.0]) == {A: frozenset()}
    assert cluster.shunning.next_look(HELD + 3) is None


def test_what_is_still_said_of_the_process_before_does_not_count() -> None:
    cluster = Cluster("w1", "w2")
    cluster.look(HELD, w1=[0.0])
    cluster.started["w1"] = 5.0
    assert cluster.look(20.0, w1=[0.0]) == {A: frozenset()}
    assert cluster.look(20.0 + HELD - 0.1, w1=[0.0]) == {}
    assert cluster.look(20.0 + HELD, w1=[0.0]) == {A: frozenset({"w1"})}, "it is no better than it was"


def test_a_third_of_its_replicas_at_a_time() -> None:
    cluster = Cluster("w1", "w2", "w3", "w4", "w5", "w6")
    everything = {worker: [0.0] for worker in cluster.at}
    assert cluster.look(HELD, **everything) == {A: frozenset({"w1", "w2"})}
    assert cluster.look(HELD + 1, **everything) == {}
    # They have gone elsewhere; what they had fled from still counts as a part of all workers.
    cluster.at = frozenset({"w3", "w4", "w5", "w6", "w7", "w8"})
    assert cluster.look(HELD + 2, **everything) == {A: frozenset({"w1", "w2", "w3"})}
    assert cluster.look(HELD + 3, w9=[0.0], w4=[0.0]) == {}


def test_the_only_one_may_leave_too() -> None:
    assert Cluster("w1", workers=2).look(HELD, w1=[0.0]) == {A: frozenset({"w1"})}
