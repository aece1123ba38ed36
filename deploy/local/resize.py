"""`python -m deploy.local.resize STATE size POOL | resize POOL COUNT [WORKER ...]`: workers of a suite that runs.

What `make up` gives the schedulers as `provider_command` when PENSTOCK_LOCAL_POOL is set. A worker that goes gets
SIGTERM and drains by itself; those named go first, then those that are not ready, then the one with the highest number.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from deploy.local.ports import Ports
from deploy.local.suite import POOL, Suite, SuiteError, send


def workers(suite: Suite) -> dict[str, int]:
    """Pid by name of the workers that run and were not told to go."""
    leaving = suite.run.read().leaving
    return {name: pid for name, pid in suite.running().items() if name.startswith("worker-") and name not in leaving}


def resize(suite: Suite, count: int, first: list[str]) -> None:
    """Starts or stops workers until there are so many. Raises SuiteError while the suite stops."""
    with suite.run.locked():
        if suite.run.read().stopping:
            raise SuiteError("the suite is stopping")
        there = workers(suite)
        for name in _going(suite, there, first)[: max(len(there) - count, 0)]:
            with suite.run.changing() as run:
                run.leaving = [*(other for other in run.leaving if other in suite.running()), name]
            send(there[name], signal.SIGTERM)
        for _ in range(count - len(there)):
            suite.start(_newcomer(suite))


def _going(suite: Suite, there: dict[str, int], first: list[str]) -> list[str]:
    """All of them, in the order in which they go."""
    rows = {row.name: row for row in suite.table()}
    ready = {name: suite.is_ready(rows[name]) for name in there}
    return sorted(there, key=lambda name: (name not in first, ready[name], -_number(name)))


def _newcomer(suite: Suite) -> str:
    """The first number that nobody has, with ports of its own."""
    running = suite.running()
    number = next(number for number in range(1, len(running) + 2) if f"worker-{number}" not in running)
    key = f"worker_{number}"
    if f"{key}_grpc" not in dict(Ports.read({}).items()):
        free = Ports.free((f"{key}_grpc", f"{key}_admin"))
        suite.ports = Ports(dict(suite.ports.items()) | {name: free[name] for name in (f"{key}_grpc", f"{key}_admin")})
    suite.employ(f"worker-{number}")
    return f"worker-{number}"


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def main() -> int:
    """Parses and runs."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.resize", description=__doc__)
    parser.add_argument("state", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("size").add_argument("pool", choices=[POOL])
    change = commands.add_parser("resize")
    change.add_argument("pool", choices=[POOL])
    change.add_argument("count", type=int)
    change.add_argument("leaving", nargs="*")
    arguments = parser.parse_args()
    try:
        suite = Suite.found(arguments.state)
        if arguments.command == "size":
            print(len(workers(suite)))
        else:
            resize(suite, arguments.count, arguments.leaving)
        return 0
    except (SuiteError, ValueError) as problem:
        print(f"penstock: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
