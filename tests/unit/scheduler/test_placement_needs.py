"""Placement: examples of what a version may ask for, and of what is done to make room."""

from __future__ import annotations

from dataclasses import replace

from services.scheduler.placement import plan
from services.scheduler.snapshot import ClusterSnapshot, Needs, Replica, VersionId

from .clusters import MIB, carried_out, changes, cluster, wanted, where, with_ready, worker


def settled(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    return with_ready(carried_out(snapshot, plan(snapshot)))


def gpu(share: int, **more: object) -> Needs:
    return Needs(devices=1, device_bytes=share, **more)  # type: ignore[arg-type]


def test_two_share_a_device_and_the_third_takes_the_next() -> None:
    items = [wanted(name, needs=gpu(40)) for name in ("a", "b", "c")]
    planned = plan(cluster(items, [worker("w1", gpus=(100, 100))]))
    assert [replica.devices for replica in planned.assignments["w1"]] == [((0, 40),), ((0, 40),), ((1, 40),)]


def test_a_share_in_percent_is_of_the_device_it_gets() -> None:
    planned = plan(cluster([wanted("a", needs=Needs(devices=1, device_percent=25))], [worker("w1", gpus=(200,))]))
    assert planned.assignments["w1"][0].devices == ((0, 50),)


def test_an_exclusive_device_is_shared_with_nobody() -> None:
    items = [wanted("a", needs=gpu(10, exclusive=True)), wanted("b", needs=gpu(10)), wanted("c", needs=gpu(10))]
    planned = plan(cluster(items, [worker("w1", gpus=(100, 100))]))
    assert [replica.devices for replica in planned.assignments["w1"]] == [((0, 100),), ((1, 10),), ((1, 10),)]


def test_several_devices_come_from_one_worker() -> None:
    item = wanted("a", needs=Needs(devices=2, device_bytes=60))
    planned = plan(cluster([item], [worker("w1", gpus=(100,)), worker("w2", gpus=(100, 50)), worker("w3")]))
    assert planned.unplaced[item.id] == (
        "1 of 1 replicas not placed: each needs 10 bytes and 2 gpu (60 bytes each); w1 has 1 gpu of 2; "
        "w2 lacks 10 bytes on gpu1; w3 has 0 gpu of 2"
    )


def test_selectors_and_taints_decide_who_comes_where() -> None:
    workers = [worker("w1", labels={"disk": "ssd"}), worker("w2", taints=("batch",)), worker("w3", 1)]
    items = [
        wanted("fast", needs=Needs(selector=(("disk", "ssd"),))),
        wanted("night", needs=Needs(tolerations=frozenset({"batch"}), anti_affinity=frozenset({"fast"}))),
        wanted("big", memory=95),
    ]
    planned = plan(cluster(items, workers))
    assert where(planned) == {"w1": ["big@1"], "w2": ["night@1"], "w3": []}
    assert planned.unplaced[VersionId("fast", 1)].endswith(
        "w1 has 5 bytes free of 100 bytes; w2 has no label disk=ssd; w3 has no label disk=ssd"
    )
    assert "w2 has taint batch" in plan(cluster([wanted("huge", memory=101)], workers)).unplaced[VersionId("huge", 1)]


def test_a_ready_replica_that_a_taint_sends_away_leaves_when_another_is_ready() -> None:
    before = settled(cluster([wanted("a")], [worker("w1"), worker("w2", 50)]))
    tainted = replace(before, workers={"w1": worker("w1", taints=("x",)), "w2": worker("w2", 50)})
    planned = plan(tainted)
    assert where(planned) == {"w1": ["-a@1"], "w2": ["a@1"]}
    assert planned.moves == {(VersionId("a", 1), "w1")}
    assert where(plan(settled(tainted))) == {"w1": [], "w2": ["a@1"]}


def test_affinity_goes_where_the_other_is_and_anti_affinity_does_not() -> None:
    workers = [worker("w1"), worker("w2"), worker("w3")]
    near = wanted("near", memory=9, needs=Needs(affinity=frozenset({"a"})))
    apart = wanted("apart", memory=8, needs=Needs(anti_affinity=frozenset({"a"})))
    planned = plan(cluster([wanted("a", memory=30), wanted("b", memory=20), near, apart], workers))
    assert where(planned) == {"w1": ["a@1", "near@1"], "w2": ["b@1"], "w3": ["apart@1"]}
    # It holds the other way round too: who came first does not matter.
    full = plan(cluster([wanted("a", memory=5), wanted("apart", memory=9, needs=apart.needs)], [worker("w1")]))
    assert where(full) == {"w1": ["apart@1"]}
    assert full.unplaced[VersionId("a", 1)].endswith("w1 runs apart, from which it is kept apart")


def test_copies_go_to_different_failure_domains_first() -> None:
    workers = [worker("w1", domain="a"), worker("w2", domain="a"), worker("w3", 20, domain="b")]
    assert where(plan(cluster([wanted("m", replicas=2)], workers)))["w3"] == ["m@1"]
    strict = wanted("m", replicas=3, needs=Needs(spread_required=True))
    planned = plan(cluster([strict], workers))
    assert planned.missing == 1
    assert "w2 is in a, where a replica is already" in planned.unplaced[strict.id]


def test_a_second_domain_is_worth_a_move() -> None:
    one = {"w1": worker("w1", domain="a"), "w2": worker("w2", domain="a")}
    before = settled(cluster([wanted("m", replicas=2)], list(one.values())))
    after = replace(before, workers={**one, "w3": worker("w3", domain="b")})
    assert where(plan(after)) == {"w1": ["m@1"], "w2": ["-m@1"], "w3": ["m@1"]}
    assert where(plan(settled(after))) == {"w1": ["m@1"], "w2": [], "w3": ["m@1"]}
    pinned = replace(after, wanted=(wanted("m", replicas=2, needs=Needs(pinned=True)),))
    assert changes(pinned, plan(pinned)) == {}


def fragmented(size: int, *, pinned: bool = False, replicas: int = 1) -> ClusterSnapshot:
    """Two workers half full, and a new version that fits in no half."""
    needs = Needs(pinned=pinned)
    old = [wanted("a", memory=40 * MIB, needs=needs), wanted("b", memory=50 * MIB, needs=needs)]
    workers = [worker("w1", 100 * MIB), worker("w2", 100 * MIB)]
    before = settled(cluster(old, workers))
    return replace(before, wanted=(*old, wanted("c", memory=size * MIB, replicas=replicas)))


def test_others_move_when_the_place_is_worth_it() -> None:
    step = fragmented(80)
    planned = plan(step)
    assert where(planned) == {"w1": ["b@1"], "w2": ["-a@1", "b@1"]} or where(planned) == {
        "w1": ["a@1", "b@1"],
        "w2": ["-a@1"],
    }
    assert planned.missing == 1
    assert changes(carried_out(step, planned), plan(carried_out(step, planned))) == {}
    step = settled(carried_out(step, planned))
    planned = plan(step)
    assert planned.missing == 0 and planned.moves == frozenset()
    assert sorted(map(tuple, where(planned).values())) == [("a@1", "b@1"), ("c@1",)]


def test_what_is_pinned_stays_and_a_further_copy_is_not_worth_a_move() -> None:
    assert changes(fragmented(80, pinned=True), plan(fragmented(80, pinned=True))) == {}
    # c's first copy has a place on w3; its second would disturb more bytes than it serves.
    step = fragmented(65, replicas=2)
    step = replace(step, workers={**step.workers, "w3": worker("w3", 70 * MIB)})
    planned = plan(step)
    assert planned.moves == frozenset() and planned.missing == 1


def test_priority_evicts_and_pinning_protects() -> None:
    before = settled(cluster([wanted("low", memory=60), wanted("lower", memory=60)], [worker("w1"), worker("w2")]))
    high = wanted("high", memory=60, needs=Needs(priority=5))
    step = replace(before, wanted=(high, *before.wanted))
    planned = plan(step)
    assert where(planned) == {"w1": ["high@1"], "w2": ["lower@1"]}
    assert list(planned.unplaced) == [VersionId("low", 1)]
    after = carried_out(step, planned)
    assert changes(after, plan(after)) == {}
    pinned = tuple(replace(item, needs=Needs(pinned=True)) for item in before.wanted)
    assert where(plan(replace(step, wanted=(high, *pinned)))) == {"w1": ["low@1"], "w2": ["lower@1"]}


def test_what_has_turned_out_bigger_runs_on_and_leaves_nothing_to_promise() -> None:
    before = settled(cluster([wanted("a", memory=10)], [worker("w1"), worker("w2", 50)]))
    grown = replace(before, wanted=(wanted("a", memory=60), wanted("b", memory=41)))
    assert plan(grown).assignments["w1"][0].memory_bytes == 60
    assert where(plan(grown)) == {"w1": ["a@1"], "w2": ["b@1"]}
    beyond = replace(grown, wanted=(wanted("a", memory=160), wanted("b", memory=1)))
    planned = plan(beyond)
    assert where(planned) == {"w1": ["a@1"], "w2": ["b@1"]}
    assert planned.assignments["w1"][0].memory_bytes == 100
    assert changes(carried_out(beyond, planned), plan(carried_out(beyond, planned))) == {}


def test_a_replica_keeps_its_device() -> None:
    before = cluster([wanted("a", needs=gpu(10))], [worker("w1", gpus=(100, 100))])
    told = {"w1": (Replica(VersionId("a", 1), "sha256:a1", 10, "onnx", ((1, 10),)),)}
    assert changes(replace(before, assignments=told), plan(replace(before, assignments=told))) == {}
