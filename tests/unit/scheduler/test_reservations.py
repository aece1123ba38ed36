"""Capacity that is kept for tenants: who may use it, who may not, and what is said about it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.v1 import cluster_pb2 as pb
from services.scheduler import placement
from services.scheduler.placement import Plan, Planner, plan
from services.scheduler.reservations import PATTERN, Reservation, kept_on, parse
from services.scheduler.snapshot import ClusterSnapshot, Needs, Reserved, Wanted

from .clusters import MIB, READY, carried_out, cluster, clusters, wanted, where, with_ready, worker

ACME = Needs(tenant="acme")
KEEPS = (Reserved("acme", 40),)


def explain(snapshot: ClusterSnapshot, name: str) -> list[pb.PlacementExplanation]:
    planner = Planner()
    planner.known.learn(snapshot)
    planner.plan()
    return placement.explain(planner, name)


def gpu(size: int, tenant: str = "", *, exclusive: bool = False) -> Needs:
    return Needs(devices=1, device_bytes=size, exclusive=exclusive, tenant=tenant)


# What is said of them.


def test_a_reservation_is_one_text() -> None:
    assert parse("acme memory=8GiB gpu=16GiB on zone=a disk=ssd") == Reservation(
        "acme", 8 << 30, {"gpu": 16 << 30}, {"zone": "a", "disk": "ssd"}
    )
    assert parse("a.b memory=100") == Reservation("a.b", 100, {}, {})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("acme memory=8GiB", True),
        ("acme gpu=1TiB on zone=a", True),
        ("acme", False),
        ("acme memory=8G", False),
        ("Acme memory=1", False),
        ("acme memory=1 on", False),
        ("acme memory=1 on zone", False),
        ("acme memory=-1", False),
    ],
)
def test_what_the_configuration_takes(text: str, right: bool) -> None:
    assert bool(re.fullmatch(PATTERN, text)) == right


def test_a_worker_keeps_the_sum_of_what_matches_its_labels() -> None:
    said = [
        parse("b memory=1 on zone=a"),
        parse("a memory=2 gpu=5"),
        parse("a memory=3 gpu=1 on zone=a"),
        parse("c tpu=1"),
    ]
    assert kept_on({"zone": "a"}, said) == (
        Reserved("a", 5, (("gpu", 6),)),
        Reserved("b", 1),
        Reserved("c", 0, (("tpu", 1),)),
    )
    assert kept_on({"zone": "b"}, said[:1]) == ()


# Who may use it.


def test_others_use_only_what_is_left_and_the_tenant_uses_all() -> None:
    workers = [worker("w", 100, reserved=KEEPS)]
    assert plan(cluster([wanted("m", memory=61)], workers)).missing == 1
    assert plan(cluster([wanted("m", memory=60)], workers)).missing == 0
    assert plan(cluster([wanted("m", memory=100, needs=ACME)], workers)).missing == 0
    assert plan(cluster([wanted("m", memory=61, needs=Needs(tenant="other"))], workers)).missing == 1


def test_a_tenant_uses_its_reservation_before_what_is_open_to_all() -> None:
    items = [wanted("a", memory=30, needs=ACME), wanted("m", memory=60), wanted("n", memory=11)]
    planned = plan(cluster(items, [worker("w", 100, reserved=KEEPS)]))
    assert where(planned) == {"w": ["a@1", "m@1"]}
    # It goes where something is kept for it, though there is more room elsewhere.
    planned = plan(cluster([items[0]], [worker("free", 1000), worker("w", 100, reserved=KEEPS)]))
    assert where(planned) == {"free": [], "w": ["a@1"]}


def test_what_stands_is_not_stopped_by_a_reservation_that_comes_later() -> None:
    before = cluster([wanted("m", memory=90)], [worker("w", 100)])
    before = with_ready(carried_out(before, plan(before)))
    after = replace(before, workers={"w": worker("w", 100, reserved=KEEPS)})
    for states in (before.states, {}):
        assert where(plan(replace(after, states=states))) == {"w": ["m@1"]}
    bigger = replace(after, wanted=(wanted("m", memory=100),))
    (kept,) = plan(bigger).assignments["w"]
    assert kept.memory_bytes == 90, "nor does it take any more of it"


def test_others_move_out_of_the_way_of_each_other_not_into_what_is_kept() -> None:
    workers = [
        worker("w1", 100 * MIB, reserved=(Reserved("acme", 40 * MIB),)),
        worker("w2", 100 * MIB, engines=("torch",)),
    ]
    planned = plan(cluster([wanted("m", memory=50 * MIB), wanted("n", memory=50 * MIB)], workers))
    assert planned.missing == 1
    (text,) = planned.unplaced.values()
    assert "w1 lacks 40 MiB beside what is reserved for acme" in text


def test_devices_are_kept_too_and_whole_ones_are_whole() -> None:
    keeps = (Reserved("acme", 0, (("gpu", 30),)),)
    there = [worker("w", 100, gpus=(100,), reserved=keeps)]
    assert plan(cluster([wanted("m", needs=gpu(70))], there)).missing == 0
    assert plan(cluster([wanted("m", needs=gpu(71))], there)).missing == 1
    assert plan(cluster([wanted("m", needs=gpu(71, "acme"))], there)).missing == 0
    assert plan(cluster([wanted("m", needs=gpu(0, exclusive=True))], there)).missing == 1
    assert plan(cluster([wanted("m", needs=gpu(0, "acme", exclusive=True))], there)).missing == 0
    both = [wanted("a", needs=gpu(30, "acme")), wanted("m", needs=gpu(70)), wanted("n", needs=gpu(1))]
    assert where(plan(cluster(both, there))) == {"w": ["a@1", "m@1"]}


def test_it_is_explained_with_what_would_help() -> None:
    (memory,) = explain(cluster([wanted("m", memory=70)], [worker("w", 100, reserved=KEEPS)]), "m")
    (verdict,) = memory.workers
    assert (verdict.obstacle, verdict.subject, verdict.lacking_bytes) == ("reserved", "acme", 10)
    assert verdict.reason == "lacks 10 bytes beside what is reserved for acme"
    assert "reserve 10 bytes less for acme on w, or free as much there" in memory.remedies
    keeps = (Reserved("acme", 0, (("gpu", 30),)),)
    (device,) = explain(cluster([wanted("m", needs=gpu(80))], [worker("w", gpus=(100,), reserved=keeps)]), "m")
    assert (device.workers[0].obstacle, device.workers[0].lacking_bytes) == ("reserved", 10)


# For any cluster.


def _booked(planned: Plan, snapshot: ClusterSnapshot, name: str) -> tuple[Counter[str], int]:
    """Bytes of memory by tenant, and in all, on a worker."""
    by_id = {item.id: item for item in snapshot.wanted}
    used: Counter[str] = Counter()
    for replica in planned.assignments[name]:
        used[by_id[replica.id].needs.tenant] += replica.memory_bytes
    return used, sum(used.values())


def _newly_placed(item: Wanted, snapshot: ClusterSnapshot, planned: Plan, name: str) -> bool:
    """Whether the worker is told to run it and was not, and did not say that it does."""
    told = {replica.id for replica in snapshot.assignments.get(name, ())}
    return item.id not in told and any(replica.id == item.id for replica in planned.assignments[name])


@given(clusters())
@settings(max_examples=100, deadline=None)
def test_what_is_kept_for_a_tenant_is_given_to_nobody_else(snapshot: ClusterSnapshot) -> None:
    planned = plan(snapshot)
    for name, found in snapshot.workers.items():
        used, total = _booked(planned, snapshot, name)
        for item in snapshot.wanted:
            if _newly_placed(item, snapshot, planned, name):
                others = [entry for entry in found.reserved if entry.tenant != item.needs.tenant]
                unused = sum(max(entry.memory_bytes - used[entry.tenant], 0) for entry in others)
                assert total + unused <= found.memory_bytes


@given(clusters(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_reservation_that_nobody_uses_stops_nothing_that_stands(
    snapshot: ClusterSnapshot, data: st.DataObject
) -> None:
    snapshot = replace(
        snapshot, workers={name: replace(found, reserved=()) for name, found in snapshot.workers.items()}
    )
    for _ in range(8):
        snapshot = with_ready(carried_out(snapshot, plan(snapshot)))
    before = plan(snapshot)
    keeps = (Reserved("nobody", data.draw(st.integers(0, 100)), (("gpu", data.draw(st.integers(0, 100))),)),)
    after = plan(
        replace(snapshot, workers={name: replace(found, reserved=keeps) for name, found in snapshot.workers.items()})
    )
    for name in snapshot.workers:
        stands = {
            r.id for r in before.assignments[name] if snapshot.states.get((name, r.id)) == READY and not r.leaving
        }
        assert stands <= {replica.id for replica in after.assignments[name]}
