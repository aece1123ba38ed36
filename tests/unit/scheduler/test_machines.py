"""How many workers a pool should have: growing for what lacks a place, shrinking by who can be spared, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.v1 import cluster_pb2 as pb
from services.scheduler.fitting import Cluster
from services.scheduler.machines import Course, Pace, Pool, decide
from services.scheduler.placement import plan
from services.scheduler.snapshot import ClusterSnapshot, Needs, Wanted, Worker

from .clusters import carried_out, cluster, seen, wanted, with_ready, worker

PACE = Pace(rise_seconds=2.0, fall_seconds=100.0)
CPU = Pool("cpu", 1, 4)


def member(name: str, memory: int = 100, pool: str = "cpu") -> Worker:
    return worker(name, memory, domain=f"host of {name}", labels={"pool": pool})


def settled(items: list[Wanted], workers: list[Worker]) -> ClusterSnapshot:
    """A cluster whose plan has been carried out."""
    snapshot = cluster(items, workers)
    for _ in range(4):
        snapshot = with_ready(carried_out(snapshot, plan(snapshot)))
    return snapshot


class Clock:
    """Decides again and again for one or more pools."""

    def __init__(self, *pools: Pool, count: int = 1) -> None:
        self.pools = pools
        self.courses = {pool.name: Course(count) for pool in pools}
        self.now = 0.0

    def look(self, found: Cluster, *, after: float = 0.0) -> Course:
        """The first pool's course."""
        self.now += after
        self.courses = decide(self.pools, self.courses, found, PACE, self.now)
        return self.courses[self.pools[0].name]

    def wait(self, found: Cluster, seconds: float) -> Course:
        """Looks every second for so long."""
        course = self.look(found)
        for _ in range(int(seconds)):
            course = self.look(found, after=1.0)
        return course


def test_what_has_no_place_brings_a_worker_after_a_moment() -> None:
    found = seen(settled([wanted("a", memory=80), wanted("b", memory=80)], [member("w1")]))
    clock = Clock(CPU)
    course = clock.look(found)
    assert course.count == 1 and course.reason == "soon more, since b@1 has no place"
    assert clock.look(found, after=1.9).count == 1
    course = clock.look(found, after=0.1)
    assert course.count == 2 and course.reason == "b@1 has no place"
    # It is on its way: nobody asks for a third.
    course = clock.wait(found, 500)
    assert course.count == 2 and course.reason == "1 to come, since b@1 has no place"


def test_as_many_come_as_it_takes_and_no_more_than_the_most() -> None:
    items = [wanted(name, memory=60) for name in "abcdefgh"]
    clock = Clock(Pool("cpu", 1, 100))
    assert clock.wait(seen(settled(items, [member("w1")])), 3).count == 8
    small = [wanted(name, memory=30) for name in "abcdefgh"]
    clock = Clock(Pool("cpu", 1, 100))
    assert clock.wait(seen(settled(small, [member("w1")])), 3).count == 3
    clock = Clock(CPU)
    course = clock.wait(seen(settled(items, [member("w1")])), 3)
    assert course.count == 4 and course.reason == "3 to come, since b@1, c@1, d@1 have no place; 4 is the most"
    full = seen(settled(items, [member(f"w{number}") for number in range(4)]))
    assert clock.wait(full, 500).reason == "4 is the most"


def test_a_replica_of_the_same_version_needs_a_worker_of_its_own() -> None:
    clock = Clock(CPU)
    assert clock.wait(seen(settled([wanted("a", replicas=3)], [member("w1")])), 3).count == 3


@pytest.mark.parametrize(
    "item",
    [
        wanted("b", memory=101),
        wanted("b", memory=60, engine="torch"),
        wanted("b", memory=60, needs=Needs(devices=1, device_bytes=1)),
        wanted("b", memory=60, needs=Needs(selector=(("pool", "gpu"),))),
    ],
    ids=["too big", "engine", "device", "selector"],
)
def test_what_would_not_fit_on_a_worker_more_brings_none(item: Wanted) -> None:
    found = seen(settled([wanted("a", memory=80), item], [member("w1")]))
    assert found.lacking
    course = Clock(CPU).wait(found, 10)
    assert course.count == 1 and course.reason == "1 is enough, and the least"


def test_a_version_kept_apart_by_domain_gets_workers_only_where_they_have_domains_of_their_own() -> None:
    item = wanted("a", replicas=3, needs=Needs(spread_required=True))
    apart = settled([item], [member("w1"), member("w2")])
    assert Clock(CPU, count=2).wait(seen(apart), 3).count == 3
    together = settled([item], [replace(member(name), failure_domain="zone") for name in ("w1", "w2")])
    clock = Clock(CPU, count=2)
    assert seen(together).lacking and clock.wait(seen(together), 10).count == 2
    # It is remembered when one is left, which alone would say nothing.
    alone = replace(together, workers={"w1": together.workers["w1"]})
    assert clock.wait(seen(alone), 10).count == 2


def test_an_unknown_pool_is_tried_with_one_worker() -> None:
    found = seen(settled([wanted(name, memory=60) for name in "abc"], []))
    course = Clock(Pool("cpu", 0, 4), count=0).wait(found, 500)
    assert course.count == 1
    only_gpu = seen(settled([wanted("a", needs=Needs(selector=(("pool", "gpu"),)))], []))
    clock = Clock(Pool("cpu", 0, 4), Pool("gpu", 0, 4), count=0)
    clock.wait(only_gpu, 10)
    assert {name: course.count for name, course in clock.courses.items()} == {"cpu": 0, "gpu": 1}


def test_pools_are_asked_in_order_and_a_pool_that_is_full_passes_on() -> None:
    items = [wanted(name, memory=80) for name in "abcde"]
    found = seen(settled(items, [member("w1"), member("g1", pool="gpu")]))
    clock = Clock(Pool("cpu", 1, 3), Pool("gpu", 1, 9))
    clock.wait(found, 3)
    assert {name: course.count for name, course in clock.courses.items()} == {"cpu": 3, "gpu": 2}


def test_an_empty_worker_goes_after_the_cool_down_and_the_later_of_two() -> None:
    found = seen(settled([wanted("a")], [member(name) for name in ("w1", "w2", "w9", "w10")]))
    used = next(name for name, replicas in found.assignments.items() if replicas)
    clock = Clock(CPU, count=4)
    course = clock.wait(found, 99)
    assert course.count == 4 and not course.leaving and course.reason == "soon fewer: w10 goes: nothing runs there"
    assert used != "w10"
    course = clock.wait(found, 1)
    assert course.count == 3 and course.leaving == {"w10"} and course.reason == "w10 goes: nothing runs there"
    # Nobody else goes before it has gone.
    course = clock.wait(found, 500)
    assert course.count == 3 and course.reason == "waits for w10 to leave"


def test_the_next_one_need_not_wait_again() -> None:
    snapshot = settled([wanted("a")], [member(name) for name in ("w1", "w2", "w3")])
    clock = Clock(CPU, count=3)
    gone: list[str] = []
    for _ in range(3):
        course = clock.wait(seen(snapshot), 100 if not gone else 1)
        gone += course.leaving
        snapshot = replace(snapshot, workers={n: w for n, w in snapshot.workers.items() if n not in gone})
    assert len(gone) == 2 and clock.look(seen(snapshot)).reason == "1 is enough, and the least"


def test_a_tenth_goes_at_a_time() -> None:
    found = seen(settled([wanted("a")], [member(f"w{number}") for number in range(30)]))
    assert len(Clock(Pool("cpu", 1, 40), count=30).wait(found, 100).leaving) == 3


def test_what_runs_must_have_a_place_elsewhere_with_some_to_spare() -> None:
    def after(*sizes: int) -> Course:
        items = [wanted(name, memory=size) for name, size in zip("abcd", sizes, strict=False)]
        return Clock(CPU, count=2).wait(seen(settled(items, [member("w1"), member("w2")])), 101)

    assert after(50, 30).leaving
    course = after(60, 50)
    assert course.count == 2 and course.reason == "2 are enough, and fewer would be too full"
    course = after(55, 40)
    assert course.count == 2 and course.reason == "2 are enough, and fewer would be too full"


def test_the_only_ready_copy_of_something_pinned_stays() -> None:
    pinned = wanted("a", memory=10, needs=Needs(pinned=True))
    snapshot = settled([pinned, wanted("b", memory=20)], [member("w1"), member("w2")])
    at = next(name for name, told in snapshot.assignments.items() if any(replica.id.name == "a" for replica in told))
    course = Clock(CPU, count=2).wait(seen(snapshot), 101)
    assert course.leaving == {"w1", "w2"} - {at}, "the fuller one goes, since it can"
    alone = settled([pinned, wanted("b", memory=20, needs=Needs(pinned=True))], [member("w1"), member("w2")])
    course = Clock(CPU, count=2).wait(seen(alone), 101)
    assert course.count == 2 and "the only ready copy of pinned" in course.reason


def test_a_pinned_copy_may_go_when_another_is_ready_and_not_while_it_only_loads() -> None:
    pinned = wanted("a", replicas=2, needs=Needs(pinned=True))
    snapshot = settled([pinned], [member(name) for name in ("w1", "w2", "w3")])
    idle = next(name for name in snapshot.workers if not snapshot.assignments.get(name))
    used = sorted(set(snapshot.workers) - {idle})
    clock = Clock(Pool("cpu", 1, 4), count=3)
    assert clock.wait(seen(snapshot), 101).leaving == {idle}
    two = replace(snapshot, workers={name: snapshot.workers[name] for name in used})
    # Two replicas need two workers.
    assert clock.wait(seen(two), 101).count == 2
    one = settled([replace(pinned, replicas=1)], [member("w1"), member("w2"), member("w3")])
    at = next(name for name, told in one.assignments.items() if told)
    loading = replace(one, states={(at, pinned.id): pb.REPLICA_STATE_LOADING})
    assert at not in Clock(Pool("cpu", 1, 4), count=3).wait(seen(loading), 101).leaving


def test_nothing_changes_while_workers_may_be_missed() -> None:
    short = settled([wanted("a", memory=80), wanted("b", memory=80)], [member("w1")])
    spare = settled([wanted("a")], [member("w1"), member("w2")])
    for snapshot, count in ((short, 1), (spare, 2)):
        clock = Clock(CPU, count=count)
        assert clock.wait(seen(snapshot, unsure=True), 500).count == count
        # Time that was passed so does not count.
        assert clock.look(seen(snapshot)).count == count


def test_spare_room_is_kept_free() -> None:
    spare = Pool("cpu", 1, 4, spare=0.25)
    found = seen(settled([wanted("a", memory=40), wanted("b", memory=36)], [member("w1")]))
    course = Clock(spare).wait(found, 3)
    assert course.count == 2 and course.reason == "1 to come, since less than 25% of what it offers is free"
    assert Clock(CPU).wait(found, 3).count == 1
    # An empty worker stays while what it offers is to be free.
    found = seen(settled([wanted("a", memory=70)], [member("w1"), member("w2")]))
    assert Clock(spare, count=2).wait(found, 500).count == 2
    found = seen(settled([wanted("a", memory=60)], [member("w1"), member("w2")]))
    assert Clock(spare, count=2).wait(found, 101).count == 1


def test_a_worker_that_somebody_drains_is_replaced_when_its_models_need_the_place() -> None:
    items = [wanted("a", memory=80), wanted("b", memory=80)]
    snapshot = settled(items, [member("w1"), member("w2")])
    drained = replace(snapshot, workers={**snapshot.workers, "w2": replace(snapshot.workers["w2"], draining=True)})
    found = seen(drained)
    assert len(found.lacking) == 1
    assert Clock(CPU, count=2).wait(found, 3).count == 3


def test_one_that_never_came_is_given_up_after_the_cool_down() -> None:
    found = seen(settled([wanted("a")], [member("w1")]))
    clock = Clock(CPU, count=3)
    assert clock.wait(found, 99).count == 3
    course = clock.wait(found, 1)
    assert course.count == 1 and not course.leaving and course.reason == "2 that have not come not needed"


def test_who_was_to_go_may_stay_when_more_is_wanted_before_it_is_told() -> None:
    snapshot = settled([wanted("a", memory=80)], [member("w1"), member("w2")])
    clock = Clock(CPU, count=2)
    (leaver,) = clock.wait(seen(snapshot), 101).leaving
    busy = settled([wanted(name, memory=80) for name in "abc"], [member("w1"), member("w2")])
    course = clock.wait(seen(busy), 3)
    assert course.count == 3 and not course.leaving
    assert leaver in busy.workers


def test_a_pool_below_its_least_grows_at_once() -> None:
    course = Clock(Pool("cpu", 2, 4), count=0).look(seen(settled([], [])))
    assert course.count == 2 and course.reason == "2 is the least"


def test_who_was_to_go_stays_when_another_went_instead() -> None:
    snapshot = settled([wanted("a")], [member("w1"), member("w2"), member("w3")])
    clock = Clock(Pool("cpu", 2, 4), count=3)
    (leaver,) = clock.wait(seen(snapshot), 100).leaving
    idle = next(n for n in snapshot.workers if n != leaver and not snapshot.assignments.get(n))
    other = {name: found for name, found in snapshot.workers.items() if name != idle}
    course = clock.look(seen(replace(snapshot, workers=other)))
    assert course.count == 2 and leaver in other and not course.leaving
