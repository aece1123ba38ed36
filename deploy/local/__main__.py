"""`python -m deploy.local up | down | status`: what `make up`, `make down` and `make status` call."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite, SuiteError


def state_folder() -> Path:
    """Where a local run keeps its state: PENSTOCK_STATE_DIR, or .penstock in the repository."""
    return Path(os.environ.get("PENSTOCK_STATE_DIR", ROOT / ".penstock")).resolve()


def pool(text: str) -> tuple[int, int] | None:
    """What PENSTOCK_LOCAL_POOL says: LEAST:MOST workers, empty for a fixed number. Raises ValueError."""
    if not text:
        return None
    least, colon, most = text.partition(":")
    if not (colon and least.isascii() and least.isdigit() and most.isascii() and most.isdigit()):
        raise ValueError(f"PENSTOCK_LOCAL_POOL={text!r} is not LEAST:MOST")
    if not 1 <= int(least) <= int(most) <= 64:
        raise ValueError(f"PENSTOCK_LOCAL_POOL={text!r}: LEAST and MOST are between 1 and 64, in this order")
    return int(least), int(most)


def suite_of(environ: Mapping[str, str]) -> Suite:
    """The suite that runs, else the one that the environment asks for."""
    try:
        return Suite.found(state_folder(), say=_say)
    except SuiteError:
        return fresh(environ)


def fresh(environ: Mapping[str, str]) -> Suite:
    """The suite that the environment asks for."""
    wanted = pool(environ.get("PENSTOCK_LOCAL_POOL", ""))
    return Suite(state_folder(), Ports.read(environ), say=_say, pool=wanted)


def _say(line: str) -> None:
    print(line, flush=True)


def up(suite: Suite, as_json: bool) -> int:
    """Starts the suite unless it runs."""
    running = suite.running()
    if running and all(row.name in running for row in suite.table()):
        print("already up:", ", ".join(sorted(running)))
    else:
        if running:
            print("some processes of an earlier run are left:", ", ".join(sorted(running)), "- stopping them first")
            suite.down()
        suite = fresh(os.environ)
        suite.up()
    ports = suite.ports
    print(
        f"gRPC 127.0.0.1:{ports['gateway_grpc']}   REST http://127.0.0.1:{ports['gateway_rest']} (API: /docs)   "
        f"logs {suite.state}/logs"
    )
    print("next: penstock models · penstock status · make logs · make down")
    return 0


def down(suite: Suite, as_json: bool) -> int:
    """Drains and stops the suite."""
    if not suite.running():
        print("nothing runs")
        return 0
    return 1 if suite.down() else 0


def status(suite: Suite, as_json: bool) -> int:
    """One line per process: pid and readiness. Exit status 1 when something is not ready."""
    running = suite.running()
    rows = [
        {"name": row.name, "pid": running.get(row.name), "ready": row.name in running and suite.is_ready(row)}
        for row in suite.table()
    ]
    if as_json:
        print(json.dumps(rows))
    else:
        for row in rows:
            state = "ready" if row["ready"] else "not ready" if row["pid"] else "down"
            print(f"{row['name']:<12} {state:<10} {row['pid'] or ''}")
    return 0 if all(row["ready"] for row in rows) else 1


def main() -> int:
    """Parses and runs."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    commands = {"up": up, "down": down, "status": status}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--json", action="store_true", help="for scripts (status)")
    arguments = parser.parse_args()
    try:
        suite = suite_of(os.environ)
        return commands[arguments.command](suite, arguments.json)
    except (SuiteError, ValueError) as problem:
        print(f"penstock: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
