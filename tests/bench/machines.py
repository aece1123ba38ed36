"""`python -m tests.bench.machines`: what deciding on pools of workers costs, in a cluster like that of placement.py.

All workers are of one pool; what is deployed asks for half of their memory, and nothing is pinned, so that some can
go. A look is what the leading scheduler does every second; who could go is looked for twenty times in the cool-down,
every 15 s by default. CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import replace

from services.scheduler.fitting import LABEL, Cluster
from services.scheduler.machines import Course, Pace, Pool, decide
from services.scheduler.placement import Planner
from services.scheduler.snapshot import VersionId, Wanted
from tests.bench.placement import MIB, carry_out, cluster, timed


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--models", type=int, default=100_000)
    args = parser.parse_args()
    snapshot = cluster(args.workers, args.models * 8 // 5)
    items = (replace(item, needs=replace(item.needs, pinned=False)) for item in snapshot.wanted[: args.models])
    snapshot = replace(snapshot, wanted=tuple(items))
    workers = {name: replace(worker, labels={LABEL: "all"}) for name, worker in snapshot.workers.items()}
    planner = Planner()
    planner.known.learn(replace(snapshot, workers=workers))
    planned = planner.plan()
    carry_out(planner, planned)
    gc.freeze()
    quiet = Cluster(workers, planned.assignments, [], planner.known.item, planner.known.ready)
    lacking = [
        (Wanted(VersionId(f"new{number}", 1), 1, 1000 * MIB, "sha256:n", "onnx", True), 1) for number in range(1000)
    ]
    pool, pace = Pool("all", 1, 2 * args.workers), Pace()
    enough = {"all": Course(args.workers)}
    waiting = decide([pool], enough, quiet, pace, 0.0)

    def look(courses: dict[str, Course], found: Cluster, now: float) -> Callable[[], object]:
        return lambda: decide([pool], courses, found, pace, now)

    print(f"{args.workers} workers, {args.models} models, CPU seconds on one core, Python {sys.version.split()[0]}\n")
    for what, work in (
        ("a look that changes nothing", look(waiting, quiet, 1.0)),
        ("a look at 1000 replicas without a place", look(enough, replace(quiet, lacking=lacking), 1.0)),
        ("a look for who could go", look(enough, quiet, 1.0)),
    ):
        print(f"{what:46} {timed(work):9.4f}")
    print(f"\nthe last says: {waiting['all'].reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
