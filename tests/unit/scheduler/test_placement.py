"""Placement: examples of the rules that every version is under; test_placement_needs.py has those it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.v1 import cluster_pb2 as pb
from services.scheduler.placement import plan
from services.scheduler.snapshot import ClusterSnapshot, Replica, VersionId, Wanted, Worker

from .clusters import ENGINES, LOADING, MIB, READY, carried_out, changes, cluster, wanted, where, with_ready, worker


def test_replicas_of_a_version_go_to_different_workers() -> None:
    planned = plan(cluster([wanted("a", replicas=2)], [worker("w1"), worker("w2")]))
    assert where(planned) == {"w1": ["a@1"], "w2": ["a@1"]}
    assert planned.unplaced == {} and planned.missing == 0


def test_an_assignment_says_all_that_a_worker_needs() -> None:
    planned = plan(cluster([wanted("a", memory=7)], [worker("w1")]))
    assert planned.assignments["w1"] == (Replica(VersionId("a", 1), "sha256:a1", 7, "onnx"),)


def test_load_is_balanced_by_reserved_share_bigger_first() -> None:
    items = [wanted("small", memory=10), wanted("big", memory=60), wanted("middle", memory=50)]
    planned = plan(cluster(items, [worker("w1", 100), worker("w2", 200)]))
    assert where(planned) == {"w1": ["middle@1"], "w2": ["big@1", "small@1"]}


def test_every_version_gets_its_first_replica_before_any_gets_its_second() -> None:
    items = [wanted("a", replicas=2, memory=60), wanted("b", memory=50)]
    planned = plan(cluster(items, [worker("w1"), worker("w2")]))
    assert sorted(itertools.chain(*where(planned).values())) == ["a@1", "b@1"]
    assert planned.missing == 1


def test_too_few_workers_say_so() -> None:
    planned = plan(cluster([wanted("a", replicas=3)], [worker("w1"), worker("w2")]))
    assert planned.missing == 1
    assert planned.unplaced[VersionId("a", 1)] == (
        "1 of 3 replicas not placed: each needs 10 bytes; w1 already runs one; w2 already runs one; "
        "a worker runs one replica of a version at most: ask for fewer or add workers"
    )


def test_reasons_teach() -> None:
    items = [wanted("full", memory=492 * MIB), wanted("a", engine="torch", memory=180 * MIB, replicas=1)]
    workers = [worker("w1", 512 * MIB, engines=("onnx", "torch")), worker("w2", 100 * MIB), worker("w3", draining=True)]
    planned = plan(cluster(items, workers))
    assert planned.unplaced[VersionId("a", 1)] == (
        "1 of 1 replicas not placed: each needs 180 MiB; w1 has 20 MiB free of 512 MiB; "
        "w2 lacks engine torch: not installed; w3 is draining"
    )


def test_no_worker_is_a_reason_too() -> None:
    planned = plan(cluster([wanted("a")], []))
    reason = "1 of 1 replicas not placed: each needs 10 bytes and engine onnx; no worker is there"
    assert planned.unplaced == {VersionId("a", 1): reason}


def test_a_lost_workers_replicas_are_placed_again() -> None:
    before = cluster([wanted("a"), wanted("b")], [worker("w1"), worker("w2")])
    before = with_ready(carried_out(before, plan(before)))
    lost = replace(before, workers={"w2": before.workers["w2"]}, states={})
    planned = plan(lost)
    assert where(planned) == {"w2": ["a@1", "b@1"]}
    assert changes(lost, planned)["w1"] is None


def test_a_held_workers_replicas_stay_and_count() -> None:
    before = cluster([wanted("a"), wanted("b")], [worker("w1"), worker("w2")])
    before = with_ready(carried_out(before, plan(before)))
    gone = replace(before, workers={}, states={}, held=frozenset({"w1", "w2"}))
    planned = plan(gone)
    assert changes(gone, planned) == {} and planned.missing == 0


def test_scaling_down_keeps_what_is_ready() -> None:
    before = cluster([wanted("a", replicas=2)], [worker("w1"), worker("w2")])
    before = carried_out(before, plan(before))
    states = {("w1", VersionId("a", 1)): LOADING, ("w2", VersionId("a", 1)): READY}
    after = replace(before, wanted=(wanted("a", replicas=1),), states=states)
    assert where(plan(after)) == {"w1": [], "w2": ["a@1"]}


def test_a_newcomer_takes_nothing_from_others() -> None:
    before = cluster([wanted("a"), wanted("b")], [worker("w1")])
    before = carried_out(before, plan(before))
    after = replace(before, workers={**before.workers, "w2": worker("w2")})
    assert changes(after, plan(after)) == {}


def test_a_draining_worker_loses_its_replicas_once_others_are_ready() -> None:
    version = VersionId("a", 1)
    before = cluster([wanted("a")], [worker("w1")])
    before = with_ready(carried_out(before, plan(before)))
    draining = replace(before, workers={"w1": worker("w1", draining=True), "w2": worker("w2")})
    planned = plan(draining)
    assert where(planned) == {"w1": ["-a@1"], "w2": ["a@1"]}
    loading = carried_out(draining, planned)
    assert changes(loading, plan(loading)) == {}
    ready = replace(loading, states={("w1", version): READY, ("w2", version): READY})
    assert where(plan(ready)) == {"w1": [], "w2": ["a@1"]}


def test_a_worker_that_can_no_longer_run_it_loses_it() -> None:
    before = cluster([wanted("a", memory=50)], [worker("w1", 100)])
    before = carried_out(before, plan(before))
    for changed in (worker("w1", 40), worker("w1", engines=("torch",))):
        after = replace(before, workers={"w1": changed, "w2": worker("w2")})
        assert where(plan(after)) == {"w1": [], "w2": ["a@1"]}


def rollout(ready_of_new: int) -> ClusterSnapshot:
    """Version 1 retires, version 2 replaces it on two workers."""
    workers = [worker("w1"), worker("w2")]
    old = cluster([wanted("a", 1, replicas=2)], workers)
    old = with_ready(carried_out(old, plan(old)))
    new = replace(old, wanted=(wanted("a", 1, replicas=2, retiring=True), wanted("a", 2, replicas=2)))
    new = carried_out(new, plan(new))
    states = dict(new.states)
    states |= {(name, VersionId("a", 2)): READY for name in ("w1", "w2")[:ready_of_new]}
    return replace(new, states=states)


def test_a_retiring_version_stays_until_the_default_is_ready() -> None:
    assert where(plan(rollout(0))) == {"w1": ["a@1", "a@2"], "w2": ["a@1", "a@2"]}
    assert where(plan(rollout(1))) == {"w1": ["a@1", "a@2"], "w2": ["a@1", "a@2"]}
    assert where(plan(rollout(2))) == {"w1": ["a@2"], "w2": ["a@2"]}


def test_retiring_replicas_make_room_while_the_model_is_served_elsewhere() -> None:
    workers = [worker("w1", 100), worker("w2", 100)]
    old = cluster([wanted("a", 1, replicas=2, memory=80)], workers)
    old = with_ready(carried_out(old, plan(old)))
    items = (wanted("a", 1, replicas=2, memory=80, retiring=True), wanted("a", 2, replicas=2, memory=80))
    step = replace(old, wanted=items)
    planned = plan(step)
    assert where(planned) == {"w1": ["a@2"], "w2": ["a@1"]}
    step = with_ready(carried_out(step, planned))
    planned = plan(step)
    assert where(planned) == {"w1": ["a@2"], "w2": ["a@2"]}
    assert planned.missing == 0


def test_the_last_ready_replica_never_makes_room() -> None:
    old = cluster([wanted("a", 1, memory=80)], [worker("w1", 100)])
    old = with_ready(carried_out(old, plan(old)))
    step = replace(old, wanted=(wanted("a", 1, memory=80, retiring=True), wanted("a", 2, memory=80)))
    planned = plan(step)
    assert where(planned) == {"w1": ["a@1"]}
    assert planned.unplaced[VersionId("a", 2)].endswith("w1 has 20 bytes free of 100 bytes")


def test_what_still_runs_after_the_store_lost_everything_is_kept_where_it_is() -> None:
    snapshot = replace(
        cluster([wanted("a"), wanted("b")], [worker("w1"), worker("w2")]),
        states={("w2", VersionId("a", 1)): READY, ("w1", VersionId("b", 1)): LOADING},
    )
    assert where(plan(snapshot)) == {"w1": ["b@1"], "w2": ["a@1"]}


def test_only_add_takes_nothing_away() -> None:
    told = {"w1": (Replica(VersionId("gone", 1), "sha256:g", 1, "onnx"),), "w9": ()}
    snapshot = replace(
        cluster([wanted("a", replicas=3)], [worker("w1"), worker("w2"), worker("w3")]),
        assignments=told,
        states={("w3", VersionId("other", 1)): READY},
    )
    assert set(changes(snapshot, plan(snapshot))) == {"w1", "w2", "w3", "w9"}
    assert set(changes(snapshot, plan(snapshot), only_add=True)) == {"w2"}


# Of plain versions; test_placement_properties.py has what holds for any cluster.

STATES = st.sampled_from([state for state in pb.ReplicaState.values() if state])


@st.composite
def snapshots(draw: st.DrawFn) -> ClusterSnapshot:
    """Any cluster: whatever was assigned before, to workers that may have gone, shrunk, or begun to drain."""
    names = [f"w{number}" for number in range(draw(st.integers(0, 5)))]
    workers = [
        Worker(
            name,
            draw(st.integers(0, 100)),
            frozenset(draw(st.sets(ENGINES))),
            draining=draw(st.booleans()) and draw(st.booleans()),
        )
        for name in names
    ]
    items: list[Wanted] = []
    for name in ("a", "b", "c", "d")[: draw(st.integers(0, 4))]:
        for version in range(1, draw(st.integers(1, 3)) + 1):
            number = draw(st.integers(0, 4))
            kind = draw(st.sampled_from(["default", "plain", "retiring"]))
            memory, engine = draw(st.integers(0, 60)), draw(ENGINES)
            taken = any(item.default and item.id.name == name for item in items)
            default, retiring = kind == "default" and not taken, kind == "retiring"
            items.append(Wanted(VersionId(name, version), number, memory, "sha256:x", engine, default, retiring))
    known = [item.id for item in items] + [VersionId("gone", 1)]
    told = {
        name: tuple(
            Replica(version, "sha256:x", draw(st.integers(0, 60)), "onnx")
            for version in sorted(draw(st.sets(st.sampled_from(known))))
        )
        for name in draw(st.sets(st.sampled_from([*names, "lost", "held"])))
    }
    pairs = [(name, version) for name in names for version in known]
    states: Mapping[tuple[str, VersionId], pb.ReplicaState.ValueType] = (
        draw(st.dictionaries(st.sampled_from(pairs), STATES)) if pairs else {}
    )
    held = frozenset({"held"}) if draw(st.booleans()) else frozenset[str]()
    return ClusterSnapshot(tuple(items), {w.id: w for w in workers}, told, states, held)


@given(snapshots())
@settings(max_examples=200, deadline=None)
def test_a_ready_replica_goes_only_for_a_reason(snapshot: ClusterSnapshot) -> None:
    """It is wanted no more than enough times, it does not fit, or its worker drains or it retires."""
    planned = plan(snapshot)
    over = {
        name
        for name, found in snapshot.workers.items()
        for told in [{replica.id for replica in snapshot.assignments.get(name, ())}]
        if sum(item.memory_bytes for item in snapshot.wanted if item.id in told) > found.memory_bytes
    }
    for item in snapshot.wanted:
        for name, found in snapshot.workers.items():
            told = any(replica.id == item.id for replica in snapshot.assignments.get(name, ()))
            if not told or found.draining or item.retiring or item.engine not in found.engines or name in over:
                continue
            stays = any(replica.id == item.id for replica in planned.assignments[name])
            elsewhere = sum(item.id in {r.id for r in planned.assignments[other]} for other in snapshot.workers)
            assert stays or elsewhere >= item.replicas
