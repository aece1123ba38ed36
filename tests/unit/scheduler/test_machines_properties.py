"""What must hold of every decision about workers, for any cluster; and a whole cluster that lives by the decisions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.fitting import LABEL
from services.scheduler.machines import Course, Pace, Pool, decide
from services.scheduler.placement import plan
from services.scheduler.snapshot import ClusterSnapshot, Wanted, Worker

from .clusters import NAMES, all_models, calm_models, carried_out, clusters, seen, settled_clusters, with_ready, worker

PACE = Pace(rise_seconds=2.0, fall_seconds=20.0)
EXAMPLES = 30


@st.composite
def labelled(draw: st.DrawFn) -> ClusterSnapshot:
    """Any cluster whose workers are in pools, or in none."""
    snapshot = draw(clusters())
    pools = st.sampled_from(["cpu", "cpu", "gpu", ""])
    workers = {
        name: replace(found, labels={**found.labels, LABEL: pool} if (pool := draw(pools)) else found.labels)
        for name, found in snapshot.workers.items()
    }
    return replace(snapshot, workers=workers)


def all_pools() -> st.SearchStrategy[tuple[Pool, ...]]:
    """One or two pools."""
    sizes = st.tuples(st.integers(0, 2), st.integers(0, 6), st.sampled_from([0.0, 0.0, 0.25]))
    return st.tuples(sizes, sizes).map(
        lambda both: tuple(
            Pool(name, least, max(least, most), spare)
            for name, (least, most, spare) in zip(("cpu", "gpu"), both, strict=True)
        )
    )


@given(labelled(), all_pools(), st.integers(-1, 1))
@settings(max_examples=EXAMPLES, deadline=None)
def test_what_holds_of_every_decision(snapshot: ClusterSnapshot, pools: tuple[Pool, ...], more: int) -> None:
    found = seen(snapshot)
    there = Counter(worker.labels.get(LABEL) for worker in snapshot.workers.values() if not worker.draining)
    courses = {pool.name: Course(max(there[pool.name] + more, 0)) for pool in pools}
    now = 0.0
    for _ in range(16):
        before, courses = courses, decide(pools, courses, found, PACE, now)
        assert decide(pools, before, found, PACE, now) == courses, "the same question has the same answer"
        for pool in pools:
            old, new = before[pool.name].count, courses[pool.name].count
            assert courses[pool.name].reason
            assert new >= min(pool.least, old), "never fewer than the least"
            assert new <= max(pool.most, old), "never more than the most"
            assert new >= pool.least or new >= old
            fresh = courses[pool.name].leaving - before[pool.name].leaving
            assert len(fresh) <= max(old - new, 0)
            for name in fresh:
                assert snapshot.workers[name].labels[LABEL] == pool.name and not snapshot.workers[name].draining
        now += 2.0


@given(settled_clusters(), st.integers(0, 3))
@settings(max_examples=EXAMPLES, deadline=None)
def test_nobody_goes_who_has_the_only_ready_copy_of_what_is_pinned(snapshot: ClusterSnapshot, unready: int) -> None:
    # Roomy, so that somebody could go.
    workers = {
        name: replace(found, labels={LABEL: "cpu"}, memory_bytes=3 * found.memory_bytes)
        for name, found in snapshot.workers.items()
    }
    items = tuple(replace(item, needs=replace(item.needs, pinned=True)) for item in snapshot.wanted)
    ready = dict(sorted(snapshot.states.items())[unready:])
    snapshot = replace(snapshot, workers=workers, wanted=items, states=ready)
    found = seen(snapshot)
    staying = {name for name, worker in workers.items() if not worker.draining}
    courses = {"cpu": Course(len(staying))}
    for second in range(0, 90, 2):
        courses = decide((Pool("cpu", 0, 6),), courses, found, PACE, float(second))
        staying -= courses["cpu"].leaving
        for name in courses["cpu"].leaving:
            versions = {replica.id for replica in found.assignments[name] if not replica.leaving}
            for version in versions:
                assert any(
                    snapshot.ready(other, version) and any(told.id == version for told in found.assignments[other])
                    for other in staying
                )
        gone = {name: found for name, found in snapshot.workers.items() if name not in courses["cpu"].leaving}
        found = replace(found, workers=gone)


class Machines:
    """A provider of the simplest kind: what is ordered is there at once, who is told to go goes when it is empty."""

    def __init__(self, pool: Pool, made: Worker) -> None:
        self.pool = pool
        self._made = made
        self._number = 0
        self.workers: dict[str, Worker] = {}

    def resize(self, count: int, leaving: frozenset[str]) -> None:
        for name in leaving & set(self.workers):
            self.workers[name] = replace(self.workers[name], draining=True)
        while sum(not found.draining for found in self.workers.values()) < count:
            self._number += 1
            name = f"m{self._number}"
            self.workers[name] = replace(self._made, id=name, failure_domain=name)

    def go(self, snapshot: ClusterSnapshot) -> None:
        for name in [name for name, found in self.workers.items() if found.draining]:
            if not snapshot.assignments.get(name):
                del self.workers[name]


@given(
    st.lists(st.one_of(*(calm_models(name) for name in NAMES), *(all_models(name) for name in NAMES)), max_size=5),
    st.integers(40, 120),
    st.sampled_from([0.0, 0.0, 0.25]),
)
@settings(max_examples=EXAMPLES // 2, deadline=None)
def test_a_cluster_comes_to_rest_with_all_placed_that_would_fit(
    models: list[tuple[Wanted, ...]], memory: int, spare: float
) -> None:
    """Fixed wishes: the number of workers rises, then falls, and then stays; never up again for what was let go."""
    items = {item.id: item for items in models for item in items if item.replicas}
    made = replace(worker("m", memory, gpus=(50, 100)), labels={LABEL: "cpu"})
    machines = Machines(Pool("cpu", 1, 12, spare), made)
    machines.resize(1, frozenset())
    snapshot = ClusterSnapshot(tuple(sorted(items.values(), key=lambda item: item.id)), dict(machines.workers))
    courses = {"cpu": Course(1)}
    counts: list[int] = []
    for second in range(120):
        snapshot = replace(snapshot, workers=dict(machines.workers))
        snapshot = with_ready(carried_out(snapshot, plan(snapshot)))
        courses = decide((machines.pool,), courses, seen(snapshot), PACE, float(second))
        counts.append(courses["cpu"].count)
        machines.resize(courses["cpu"].count, courses["cpu"].leaving)
        machines.go(snapshot)
    assert len(set(counts[-40:])) == 1, counts
    fell = [second for second in range(1, 120) if counts[second] < counts[second - 1]]
    rose = [second for second in range(1, 120) if counts[second] > counts[second - 1]]
    assert not fell or not rose or max(rose) < min(fell), counts
    if counts[-1] < machines.pool.most:
        alone = plan(
            replace(snapshot, workers={**machines.workers, "more": replace(made, id="more", failure_domain="x")})
        )
        assert len(alone.lacking) >= len(plan(snapshot).lacking), "one more would have helped"
