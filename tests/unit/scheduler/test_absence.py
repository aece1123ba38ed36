"""What the scheduler believes when workers vanish."""

from __future__ import annotations

from penstock.internal.v1.records_pb2 import WorkerRecord
from services.scheduler.absence import Absences


def look(absences: Absences, live: str, now: float, *, assigned: str = "", draining: str = "") -> frozenset[str]:
    """One look; workers are single letters."""
    records = {name: WorkerRecord(id=name, draining=name in draining) for name in live}
    absences.observe(records, set(assigned), now)
    return absences.held(now)


def absences() -> Absences:
    return Absences(window=5, grace=30, settle=0.5)


def test_one_of_many_is_given_up_after_a_moment() -> None:
    cluster = absences()
    assert look(cluster, "abcd", 0, assigned="abcd") == set()
    assert look(cluster, "abc", 10, assigned="abcd") == {"d"}
    assert cluster.next_end(10) == 0.5
    assert cluster.held(10.6) == set()
    assert look(cluster, "abc", 10.6, assigned="abcd") == set()
    assert look(cluster, "abc", 100, assigned="abcd") == set()


def test_half_together_are_held_for_the_grace() -> None:
    cluster = absences()
    look(cluster, "abcd", 0, assigned="abcd")
    assert look(cluster, "ab", 10, assigned="abcd") == {"c", "d"}
    assert cluster.held(39) == {"c", "d"}
    assert cluster.held(41) == set()
    assert look(cluster, "ab", 41, assigned="abcd") == set()


def test_those_who_vanish_one_after_the_other_within_a_lease_are_together() -> None:
    cluster = absences()
    look(cluster, "abcd", 0, assigned="abcd")
    look(cluster, "abc", 10, assigned="abcd")
    assert look(cluster, "ab", 10.3, assigned="abcd") == {"c", "d"}
    assert cluster.held(30) == {"c", "d"}


def test_those_who_vanish_far_apart_are_not() -> None:
    cluster = absences()
    look(cluster, "abcd", 0, assigned="abcd")
    look(cluster, "abc", 10, assigned="abcd")
    look(cluster, "abc", 11, assigned="abc")
    assert look(cluster, "ab", 20, assigned="abc") == {"c"}
    assert cluster.held(21) == set()


def test_a_single_worker_is_no_mass() -> None:
    cluster = absences()
    look(cluster, "a", 0, assigned="a")
    assert look(cluster, "", 10, assigned="a") == {"a"}
    assert cluster.held(11) == set()


def test_who_comes_back_is_held_no_longer() -> None:
    cluster = absences()
    look(cluster, "ab", 0, assigned="ab")
    assert look(cluster, "", 10, assigned="ab") == {"a", "b"}
    assert look(cluster, "b", 12, assigned="ab") == {"a"}
    assert look(cluster, "ab", 13, assigned="ab") == set()
    assert cluster.next_end(13) is None


def test_goodbyes_are_believed() -> None:
    cluster = absences()
    look(cluster, "ab", 0, assigned="ab")
    look(cluster, "ab", 1, assigned="ab", draining="ab")
    assert look(cluster, "", 2, assigned="ab") == set()
    assert look(cluster, "", 3, assigned="ab") == set()


def test_at_the_first_look_the_absent_get_one_lease_to_come_back() -> None:
    cluster = absences()
    assert look(cluster, "cd", 0, assigned="ab") == {"a", "b"}
    assert cluster.held(4.9) == {"a", "b"}
    assert cluster.held(5.1) == set()
