"""What must hold of every plan, for any cluster: devices, labels, taints, affinities, priorities and all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.placement import Plan, Planner, plan
from services.scheduler.placement.obstacles import obstacle, standing
from services.scheduler.snapshot import ClusterSnapshot, VersionId, Worker

from .clusters import (
    NAMES,
    STATES,
    WORKERS,
    all_assignments,
    all_models,
    all_workers,
    carried_out,
    changes,
    clusters,
    with_ready,
)

EXAMPLES = 150


def placed(snapshot: ClusterSnapshot, planned: Plan) -> Counter[VersionId]:
    """Replicas that count, by version."""
    return Counter(
        replica.id
        for name, replicas in planned.assignments.items()
        if name not in snapshot.workers or not snapshot.workers[name].draining
        for replica in replicas
        if not replica.leaving
    )


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_no_ledger_is_ever_overdrawn(snapshot: ClusterSnapshot) -> None:
    planned = plan(snapshot)
    by_id = {item.id: item for item in snapshot.wanted}
    for name, found in snapshot.workers.items():
        replicas = planned.assignments[name]
        assert sum(replica.memory_bytes for replica in replicas) <= found.memory_bytes
        for device in found.devices:
            users = [replica for replica in replicas if device.index in dict(replica.devices)]
            assert sum(dict(replica.devices)[device.index] for replica in users) <= device.memory_bytes
            staying = [replica for replica in users if not replica.leaving]
            alone = [replica for replica in staying if by_id[replica.id].needs.exclusive]
            assert not alone or len(users) == 1
        for replica in replicas:
            if not replica.leaving:
                assert len(replica.devices) == by_id[replica.id].needs.devices


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_is_placed_breaks_no_rule(snapshot: ClusterSnapshot) -> None:
    planned = plan(snapshot)
    by_id = {item.id: item for item in snapshot.wanted}
    domains: Counter[tuple[VersionId, str]] = Counter()
    for name, found in snapshot.workers.items():
        here = [by_id[replica.id] for replica in planned.assignments[name] if not replica.leaving]
        assert not (found.draining and here)
        for item in here:
            assert standing(item, found) is None
            domains[item.id, found.domain] += 1
            others = {other.id.name for other in here} - {item.id.name}
            assert item.needs.anti_affinity.isdisjoint(others)
    for (version, _), count in domains.items():
        assert count == 1 or not by_id[version].needs.spread_required
    for version, count in placed(replace(snapshot, held=frozenset()), planned).items():
        assert version not in by_id or count <= by_id[version].replicas or snapshot.held


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_plan_carried_out_is_its_own_plan(snapshot: ClusterSnapshot) -> None:
    planned = plan(snapshot)
    after = carried_out(snapshot, planned)
    assert changes(after, plan(after)) == {}


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_order_of_records_does_not_matter(snapshot: ClusterSnapshot) -> None:
    backwards = replace(
        snapshot,
        wanted=tuple(reversed(snapshot.wanted)),
        workers=dict(reversed(list(snapshot.workers.items()))),
        assignments=dict(reversed(list(snapshot.assignments.items()))),
        states=dict(reversed(list(snapshot.states.items()))),
    )
    assert plan(backwards) == plan(snapshot)


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_nothing_that_would_fit_is_left_out(snapshot: ClusterSnapshot) -> None:
    planner = Planner()
    planner.known.learn(snapshot)
    planned = planner.plan()
    by_id = {item.id: item for item in snapshot.wanted}
    for version in planned.unplaced:
        if by_id[version].retiring:
            continue
        domains = planner.draft.domains(version)
        for seat in planner.draft.seats.values():
            assert obstacle(by_id[version], seat, domains) is not None


@given(clusters(), st.integers(0, 4))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_lost_worker_moves_nothing_but_its_own_replicas(snapshot: ClusterSnapshot, which: int) -> None:
    before = with_ready(carried_out(snapshot, plan(snapshot)))
    before = replace(before, held=frozenset())
    before = carried_out(before, plan(before))
    if not before.workers or any(item.needs.priority for item in before.wanted):
        return
    lost = sorted(before.workers)[which % len(before.workers)]
    after = replace(
        before,
        workers={name: found for name, found in before.workers.items() if name != lost},
        assignments={name: told for name, told in before.assignments.items() if name != lost},
        states={key: state for key, state in before.states.items() if key[0] != lost},
    )
    planned = plan(after)
    retiring = {item.id for item in after.wanted if item.retiring}
    for name in after.workers:
        stayed = {replica.id for replica in planned.assignments[name]}
        assert {replica.id for replica in after.assignments.get(name, ()) if not replica.leaving} - retiring <= stayed


@given(clusters(), all_workers("w9"))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_newcomer_costs_nobody_a_place(snapshot: ClusterSnapshot, newcomer: Worker) -> None:
    before = carried_out(snapshot, plan(snapshot))
    planned = plan(before)
    after = replace(before, workers={**before.workers, "w9": newcomer})
    assert placed(before, planned) <= placed(after, plan(after))


@given(clusters())
@settings(max_examples=EXAMPLES, deadline=None)
def test_plans_come_to_rest(snapshot: ClusterSnapshot) -> None:
    for _ in range(40):
        after = with_ready(carried_out(snapshot, plan(snapshot)))
        if after == snapshot:
            return
        snapshot = after
    raise AssertionError("the plan changes for ever")


Change: TypeAlias = tuple[str, str, Any]
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just("want"), st.just(name), all_models(name))),
    st.tuples(st.just("forget"), st.sampled_from(NAMES), st.none()),
    st.sampled_from(WORKERS).flatmap(lambda name: st.tuples(st.just("join"), st.just(name), all_workers(name))),
    st.tuples(st.just("leave"), st.sampled_from(WORKERS), st.none()),
    st.tuples(st.just("tell"), st.sampled_from([*WORKERS, "held"]), st.one_of(st.none(), all_assignments())),
    st.tuples(
        st.just("hear"),
        st.sampled_from(WORKERS),
        st.tuples(st.builds(VersionId, st.sampled_from(NAMES), st.integers(1, 2)), st.one_of(st.none(), STATES)),
    ),
    st.tuples(st.just("hold"), st.sampled_from([*WORKERS, "held"]), st.none()),
    st.tuples(st.just("write"), st.just(""), st.none()),
)


@given(clusters(), st.lists(st.lists(CHANGES, min_size=1, max_size=2), max_size=4))
@settings(max_examples=2 * EXAMPLES, deadline=None)
def test_a_plan_of_what_changed_is_the_plan_of_everything(snapshot: ClusterSnapshot, steps: list[list[Change]]) -> None:
    planner = Planner()
    planner.known.learn(snapshot)
    planned = planner.plan()
    assert planned == plan(snapshot)
    for step in steps:
        for change in step:
            snapshot = _apply(planner, snapshot, planned, change)
        planned = planner.plan()
        assert planned == plan(snapshot)


def _apply(planner: Planner, snapshot: ClusterSnapshot, planned: Plan, change: Change) -> ClusterSnapshot:
    """The same change to both."""
    kind, name, value = change
    known = planner.known
    match kind:
        case "want" | "forget":
            known.want(name, value or ())
            rest = tuple(item for item in snapshot.wanted if item.id.name != name)
            return replace(snapshot, wanted=rest + (value or ()))
        case "join" | "leave":
            known.join(name, value)
            return replace(snapshot, workers=_with(snapshot.workers, name, value))
        case "tell":
            known.tell(name, value)
            return replace(snapshot, assignments=_with(snapshot.assignments, name, value))
        case "hear":
            known.hear(name, *value)
            return replace(snapshot, states=_with(snapshot.states, (name, value[0]), value[1]))
        case "hold":
            known.hold(frozenset({name}))
            return replace(snapshot, held=frozenset({name}))
    for worker, replicas in changes(snapshot, planned).items():
        known.tell(worker, replicas)
    return carried_out(snapshot, planned)


def _with(mapping: Mapping[Any, Any], key: object, value: object) -> dict[Any, Any]:
    rest = {other: found for other, found in mapping.items() if other != key}
    return rest if value is None else rest | {key: value}
