"""Clusters for tests of placement: small builders, and any cluster at all for properties."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from penstock.v1 import cluster_pb2 as pb
from services.scheduler.placement import Plan, changes
from services.scheduler.snapshot import PLAIN, ClusterSnapshot, Device, Needs, Replica, VersionId, Wanted, Worker

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
) -> Worker:
    missing = {} if "torch" in engines else {"torch": "not installed"}
    devices = tuple(Device(index, "gpu", size) for index, size in enumerate(gpus))
    return Worker(
        name, memory, frozenset(engines), missing, draining, devices, labels or {}, frozenset(taints), domain
    )


def cluster(items: list[Wanted], workers: list[Worker]) -> ClusterSnapshot:
    return ClusterSnapshot(tuple(sorted(items, key=lambda item: item.id)), {w.id: w for w in workers})


def carried_out(snapshot: ClusterSnapshot, planned: Plan) -> ClusterSnapshot:
    """The snapshot after the plan's writes; what workers say has not changed yet."""
    assignments = dict(snapshot.assignments)
    for name, replicas in changes(snapshot, planned).items():
        if replicas is None:
            del assignments[name]
        else:
            assignments[name] = replicas
    return replace(snapshot, assignments=assignments)


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
    )


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
