"""Clusters for tests of placement: small builders, and any cluster at all for properties."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from penstock.v1 import cluster_pb2 as pb
from services.scheduler import placement
from services.scheduler.fitting import Cluster
from services.scheduler.placement import Plan, Planner, plan
from services.scheduler.snapshot import (
    PLAIN,
    ClusterSnapshot,
    Device,
    Needs,
    Replica,
    Reserved,
    VersionId,
    Wanted,
    Worker,
)

READY = pb.REPLICA_STATE_READY
LOADING = pb.REPLICA_STATE_LOADING
MIB = 2**20


def wanted(
    name: str,
    version: int = 1,
    *,
    replicas: int = 1,
    memory: int = 10,
    engine: str = "onnx",
    retiring: bool = False,
    needs: Needs = PLAIN,
) -> Wanted:
    digest = f"sha256:{name}{version}"
    return Wanted(VersionId(name, version), replicas, memory, digest, engine, not retiring, retiring, needs)


def worker(
    name: str,
    memory: int = 100,
    *,
    engines: tuple[str, ...] = ("onnx",),
    draining: bool = False,
    gpus: tuple[int, ...] = (),
    labels: dict[str, str] | None = None,
    taints: tuple[str, ...] = (),
    domain: str = "",
    reserved: tuple[Reserved, ...] = (),
) -> Worker:
    missing = {} if "torch" in engines else {"torch": "not installed"}
    devices = tuple(Device(index, "gpu", size) for index, size in enumerate(gpus))
    there = frozenset(engines), missing, draining, devices, labels or {}, frozenset(taints), domain, reserved
    return Worker(name, memory, *there)


def cluster(items: list[Wanted], workers: list[Worker]) -> ClusterSnapshot:
    return ClusterSnapshot(tuple(sorted(items, key=lambda item: item.id)), {w.id: w for w in workers})


def changes(
    snapshot: ClusterSnapshot, planned: Plan, *, only_add: bool = False
) -> dict[str, tuple[Replica, ...] | None]:
    """What a leader that knows this cluster would write."""
    planner = Planner()
    planner.known.learn(snapshot)
    return placement.changes(planner.known, planned, only_add=only_add)


def carried_out(snapshot: ClusterSnapshot, planned: Plan) -> ClusterSnapshot:
    """The snapshot after the plan's writes; what workers say has not changed yet."""
    assignments = dict(snapshot.assignments)
    for name, replicas in changes(snapshot, planned).items():
        if replicas is None:
            del assignments[name]
        else:
            assignments[name] = replicas
    return replace(snapshot, assignments=assignments)


def seen(snapshot: ClusterSnapshot, *, unsure: bool = False) -> Cluster:
    """What a plan of this cluster hands on to decisions about workers."""
    planned = plan(snapshot)
    items = {item.id: item for item in snapshot.wanted}
    lacking = [(items[version], count) for version, count in planned.lacking.items()]
    return Cluster(snapshot.workers, planned.assignments, lacking, items.get, snapshot.ready, unsure)


def with_ready(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    """The snapshot once workers run exactly what they are told."""
    states = {
        (name, replica.id): READY
        for name, replicas in snapshot.assignments.items()
        if name in snapshot.workers
        for replica in replicas
    }
    return replace(snapshot, states=states)


def where(planned: Plan) -> dict[str, list[str]]:
    """Versions by worker; those that are leaving with a minus."""
    return {
        name: [f"{'-' if replica.leaving else ''}{replica.id.name}@{replica.id.version}" for replica in replicas]
        for name, replicas in planned.assignments.items()
    }


NAMES = ("a", "b", "c", "d")
WORKERS = ("w0", "w1", "w2", "w3", "w4")
STATES = st.sampled_from([READY, READY, READY, *(state for state in pb.ReplicaState.values() if state)])
ENGINES = st.sampled_from(["onnx", "torch"])
TENANTS = st.sampled_from(["", "", "", "t1", "t2"])


@st.composite
def all_needs(draw: st.DrawFn) -> Needs:
    """Any needs, plain ones often."""
    if draw(st.booleans()):
        return PLAIN
    devices = draw(st.integers(0, 2))
    names = st.frozensets(st.sampled_from(NAMES), max_size=1)
    return Needs(
        devices=devices,
        device_bytes=draw(st.integers(0, 60)) if devices else 0,
        device_percent=draw(st.sampled_from([0, 30, 50])) if devices else 0,
        exclusive=draw(st.booleans()) if devices else False,
        selector=draw(st.sampled_from([(), (("disk", "ssd"),)])),
        tolerations=draw(st.sampled_from([frozenset[str](), frozenset({"batch"})])),
        affinity=draw(names),
        anti_affinity=draw(names),
        spread_required=draw(st.booleans()),
        pinned=draw(st.booleans()),
        priority=draw(st.integers(0, 2)),
        tenant=draw(TENANTS),
    )


def all_reserved() -> st.SearchStrategy[tuple[Reserved, ...]]:
    """What a worker keeps for tenants; most keep nothing."""
    one = st.builds(
        Reserved, st.just("t1"), st.integers(0, 60), st.sampled_from([(), (), (("gpu", 20),), (("gpu", 70),)])
    )
    other = st.builds(Reserved, st.just("t2"), st.integers(0, 40))
    return st.one_of(st.just(()), st.just(()), st.tuples(one), st.tuples(one, other))


@st.composite
def all_workers(draw: st.DrawFn, name: str) -> Worker:
    """Any worker of that id."""
    return Worker(
        name,
        draw(st.integers(0, 100)),
        frozenset(draw(st.sets(ENGINES, min_size=1))),
        draining=draw(st.integers(0, 5)) == 0,
        devices=tuple(Device(index, "gpu", draw(st.integers(1, 100))) for index in range(draw(st.integers(0, 3)))),
        labels=draw(st.sampled_from([{}, {"disk": "ssd"}])),
        taints=draw(st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"batch"})])),
        failure_domain=draw(st.sampled_from(["", "z1", "z2"])),
        reserved=draw(all_reserved()),
    )


@st.composite
def all_models(draw: st.DrawFn, name: str) -> tuple[Wanted, ...]:
    """Anything that may be wanted of that model."""
    items: list[Wanted] = []
    for version in range(1, draw(st.integers(1, 2)) + 1):
        kind = draw(st.sampled_from(["default", "plain", "retiring"]))
        default = kind == "default" and not any(item.default for item in items)
        items.append(
            Wanted(
                VersionId(name, version),
                draw(st.integers(0, 4)),
                draw(st.integers(0, 60)),
                "sha256:x",
                draw(ENGINES),
                default,
                kind == "retiring",
                draw(all_needs()),
            )
        )
    return tuple(items)


@st.composite
def all_assignments(draw: st.DrawFn) -> tuple[Replica, ...]:
    """Anything that a worker may have been told."""
    told = draw(st.sets(st.builds(VersionId, st.sampled_from([*NAMES, "gone"]), st.integers(1, 2)), max_size=4))
    devices = st.sampled_from([(), (), ((0, 20),), ((0, 10), (1, 10))])
    return tuple(
        Replica(version, "sha256:x", draw(st.integers(0, 60)), "onnx", draw(devices), draw(st.integers(0, 3)) == 0)
        for version in sorted(told)
    )


@st.composite
def calm_models(draw: st.DrawFn, name: str) -> tuple[Wanted, ...]:
    """One version that fits somewhere, or one that replaces another."""
    gpus = draw(st.integers(0, 4)) == 0
    needs = Needs(
        devices=int(gpus),
        device_bytes=draw(st.integers(10, 60)) if gpus else 0,
        exclusive=gpus and draw(st.integers(0, 3)) == 0,
        pinned=draw(st.integers(0, 5)) == 0,
        priority=draw(st.sampled_from([0, 0, 0, 1, 2])),
        tenant=draw(TENANTS),
    )
    replicas = draw(st.sampled_from([1, 1, 2, 2, 3]))
    memory = draw(st.integers(5, 70))
    new = wanted(name, 2, replicas=replicas, memory=memory, needs=needs)
    if draw(st.integers(0, 3)):
        return (new,)
    return (wanted(name, 1, replicas=replicas, memory=memory, retiring=True, needs=needs), new)


@st.composite
def settled_clusters(draw: st.DrawFn) -> ClusterSnapshot:
    """A cluster at rest to which something has happened: a model came, grew or went, a worker came, went or drains."""
    workers = [
        worker(
            name,
            draw(st.integers(60, 120)),
            gpus=draw(st.sampled_from([(), (), (50, 100)])),
            domain=zone,
            reserved=draw(all_reserved()),
        )
        for name, zone in zip(WORKERS, draw(st.permutations(["z1", "z1", "z2", "z2", "z2"])), strict=True)
    ][: draw(st.integers(2, 5))]
    models = {name: draw(calm_models(name)) for name in (*NAMES, "e", "f")[: draw(st.integers(1, 6))]}
    late = draw(st.sets(st.sampled_from(sorted(models)), max_size=2))
    early = [items[-1] for name, items in models.items() if name not in late]
    old = [items[0] if items[0].retiring else items[-1] for name, items in models.items() if name not in late]
    old = [replace(item, default=True, retiring=False) for item in old] if draw(st.booleans()) else early
    absent = draw(st.sets(st.sampled_from([found.id for found in workers]), max_size=2))
    snapshot = cluster(old, [found for found in workers if found.id not in absent])
    for _ in range(6):
        snapshot = with_ready(carried_out(snapshot, plan(snapshot)))
    draining = draw(st.sets(st.sampled_from([found.id for found in workers]), max_size=1))
    there = {found.id: replace(found, draining=found.id in draining) for found in workers}
    for name in draw(st.sets(st.sampled_from(sorted(there)), max_size=1)) - absent:
        del there[name]
    items = tuple(item for name in sorted(models) for item in models[name])
    assignments = {name: told for name, told in snapshot.assignments.items() if name in there}
    return replace(snapshot, wanted=items, workers=there, assignments=assignments)


def clusters() -> st.SearchStrategy[ClusterSnapshot]:
    """Both kinds."""
    return st.one_of(settled_clusters(), all_clusters())


@st.composite
def all_clusters(draw: st.DrawFn) -> ClusterSnapshot:
    """Any cluster: whatever was assigned before, to workers that may have gone, shrunk, or begun to drain."""
    names = WORKERS[: draw(st.integers(0, 5))]
    models = [draw(all_models(name)) for name in NAMES[: draw(st.integers(0, 4))]]
    told = {name: draw(all_assignments()) for name in draw(st.sets(st.sampled_from([*names, "lost", "held"])))}
    versions = [replica.id for replicas in told.values() for replica in replicas]
    pairs = [(name, version) for name in names for version in versions]
    return ClusterSnapshot(
        tuple(item for items in models for item in items),
        {name: draw(all_workers(name)) for name in names},
        told,
        draw(st.dictionaries(st.sampled_from(pairs), STATES)) if pairs else {},
        frozenset({"held"}) if draw(st.booleans()) else frozenset(),
    )
