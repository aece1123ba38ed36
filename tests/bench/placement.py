"""`python -m tests.bench.placement`: what planning costs with 1,000 workers and 100,000 deployed models, on one core.

The scheduler's own planner decides; records and the store are left out. Half of the workers have GPUs, a tenth of the
models asks for a share of one; five zones. Times are CPU seconds of this process, the median of several where several
are possible; memory is what the planner itself holds, by tracemalloc, in a run of its own.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from penstock.v1 import cluster_pb2 as pb
from services.scheduler.placement import Plan, Planner
from services.scheduler.snapshot import PLAIN, ClusterSnapshot, Device, Needs, VersionId, Wanted, Worker

MIB = 2**20
GIB = 2**30
FULL_TARGET = 2.0
INCREMENTAL_TARGET = 0.05
REPEATS = 9


@dataclass(frozen=True)
class Row:
    """One line of the table. target: seconds, 0 for none."""

    what: str
    seconds: float
    note: str
    target: float = 0.0


def main() -> int:
    """Prints the table; the exit status says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--no-memory", action="store_true", help="leave out the run under tracemalloc, the slow part")
    args = parser.parse_args()
    snapshot = cluster(args.workers, args.models)
    gc.freeze()  # What is made from here on can still be collected; the snapshot need not be looked through again.
    rows = measure(snapshot)
    print(f"{args.workers} workers, {args.models} models, CPU seconds on one core, Python {sys.version.split()[0]}\n")
    print(f"{'what':46} {'seconds':>9} {'target':>8}  note")
    for row in rows:
        target = f"{row.target:.3f}" if row.target else ""
        print(f"{row.what:46} {row.seconds:9.4f} {target:>8}  {row.note}")
    if not args.no_memory:
        print(f"\nmemory of the planner: {memory(snapshot) / MIB:.0f} MiB, the snapshot aside")
    return int(any(row.target and row.seconds > row.target for row in rows))


def cluster(workers: int, models: int, seed: int = 7) -> ClusterSnapshot:
    """A made-up cluster with room for all: 80 % of its memory is asked for."""
    chance = random.Random(seed)
    there = {}
    for number in range(workers):
        gpus = tuple(Device(index, "gpu", 80 * GIB) for index in range(8)) if number % 2 else ()
        name = f"w{number:05}"
        engines = frozenset({"onnx", "torch", "tensorrt"} if gpus else {"onnx", "torch"})
        size = 256 * GIB if gpus else 128 * GIB
        there[name] = Worker(name, size, engines, devices=gpus, failure_domain=f"z{number % 5}")
    mean = int(0.8 * sum(worker.memory_bytes for worker in there.values()) / models)
    items = []
    for number in range(models):
        needs = PLAIN
        if number % 10 == 0:
            needs = Needs(devices=1, device_bytes=chance.randint(1 * GIB, 8 * GIB))
        elif number % 50 == 1:
            needs = Needs(pinned=True, priority=1)
        size = chance.randint(mean // 2, mean * 3 // 2)
        engine = "tensorrt" if needs.devices else chance.choice(("onnx", "torch"))
        items.append(Wanted(VersionId(f"m{number:06}", 1), 1, size, f"sha256:{number:064x}", engine, True, needs=needs))
    return ClusterSnapshot(tuple(items), there)


def measure(snapshot: ClusterSnapshot) -> list[Row]:
    """All rows of the table."""
    planner = Planner()
    learning = timed(lambda: planner.known.learn(snapshot))
    plans: list[Plan] = []
    full = timed(lambda: plans.append(planner.plan()))
    planned = plans[0]
    rows = [
        Row("full plan, nothing placed before", full, f"{planned.missing} without a place", FULL_TARGET),
        Row("  reading the snapshot before it", learning, "indexes by model, version and worker"),
    ]
    with_collector = Planner()
    with_collector.known.learn(snapshot)
    started = time.process_time()
    with_collector.plan()
    collected = time.process_time() - started
    rows.append(Row("  the same, with Python's collector running", collected, "which the other rows leave out"))
    del with_collector
    carry_out(planner, planned)
    again = Planner()
    again.known.learn(_after(snapshot, planned))
    rows.append(Row("full plan, all placed: a new leader's first", timed(again.plan), "", FULL_TARGET))
    rows += [
        Row(what, cost, f"{REPEATS} times, the slowest {worst:.4f}", INCREMENTAL_TARGET)
        for what, cost, worst in (repeated(planner, what, change) for what, change in CHANGES.items())
    ]
    return rows


def _after(snapshot: ClusterSnapshot, planned: Plan) -> ClusterSnapshot:
    states = {
        (worker, replica.id): pb.REPLICA_STATE_READY for worker, told in planned.assignments.items() for replica in told
    }
    return ClusterSnapshot(snapshot.wanted, snapshot.workers, planned.assignments, states)


def carry_out(planner: Planner, planned: Plan) -> None:
    """Workers are told what the plan says, and say that it is READY."""
    for worker in planned.touched:
        planner.known.tell(worker, planned.assignments.get(worker))
    for worker in planned.touched:
        for replica in planned.assignments.get(worker, ()):
            if not planner.known.ready(worker, replica.id):
                planner.known.hear(worker, replica.id, pb.REPLICA_STATE_READY)
    planner.plan()


def repeated(planner: Planner, what: str, change: Callable[[Planner, int], None]) -> tuple[str, float, float]:
    """Median and worst CPU seconds of a plan after such a change, each carried out before the next."""
    costs = []
    for number in range(REPEATS):
        change(planner, number)
        plans: list[Plan] = []
        costs.append(timed(lambda plans=plans: plans.append(planner.plan())))  # type: ignore[misc]
        carry_out(planner, plans[0])
    return what, statistics.median(costs), max(costs)


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of a call, without the collector's."""
    gc.disable()
    started = time.process_time()
    work()
    spent = time.process_time() - started
    gc.enable()
    return spent


def _deploy(planner: Planner, number: int) -> None:
    version = VersionId(f"new{number}", 1)
    planner.known.want(version.name, [Wanted(version, 2, 100 * MIB, "sha256:n", "onnx", True)])


def _scale(planner: Planner, number: int) -> None:
    name = f"m{number * 10 + 2:06}"
    (item,) = planner.known.models[name]
    more = Wanted(item.id, item.replicas + 2, item.memory_bytes, item.manifest_digest, item.engine, True)
    planner.known.want(name, [more])


def _ready(planner: Planner, number: int) -> None:
    version = VersionId(f"m{number * 10 + 4:06}", 1)
    worker = min(planner.known.told_at[version])
    planner.known.hear(worker, version, pb.REPLICA_STATE_LOADING)


def _lose(planner: Planner, number: int) -> None:
    worker = f"w{number * 7:05}"
    for version in tuple(planner.known.reported[worker]):
        planner.known.hear(worker, version, None)
    planner.known.join(worker, None)


def _join(planner: Planner, number: int) -> None:
    planner.known.join(f"x{number}", Worker(f"x{number}", 128 * GIB, frozenset({"onnx"}), failure_domain="z1"))


def _undeploy(planner: Planner, number: int) -> None:
    planner.known.want(f"m{number * 10 + 3:06}", [])


CHANGES: dict[str, Callable[[Planner, int], None]] = {
    "a model with two replicas is deployed": _deploy,
    "a model gets two replicas more": _scale,
    "a model is undeployed": _undeploy,
    "a replica becomes READY": _ready,
    "a worker comes": _join,
    "a worker with all its replicas is lost": _lose,
}


def memory(snapshot: ClusterSnapshot) -> int:
    """Bytes that a planner holds after a full plan; the snapshot itself aside."""
    gc.collect()
    tracemalloc.start()
    planner = Planner()
    planner.known.learn(snapshot)
    planned = planner.plan()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert planned.missing == 0
    return held


if __name__ == "__main__":
    sys.exit(main())
