"""`make faults`: every scenario on one suite, a table of what was required and what was measured, and JSON beside it.

`python -m tests.fault.table [--only NAME …] [--seed N] [--rate N] [--thorough] [--json FILE]`; exit
status 1 when a row is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.fault.result import Impossible, Result, Scenario
from tests.fault.scenarios import SCENARIOS
from tests.fault.stand import Stand, standing

HEAD = ("row", "scenario", "what was done", "required", "measured", "verdict")


def attempt(scenario: Scenario, stand: Stand) -> Result:
    """A scenario's result; one that could not be carried out is broken, unless this machine has not what it takes."""
    try:
        return scenario.run(stand)
    except Impossible as lack:
        return Result(measured={"not tried": str(lack)})
    except Exception as problem:
        traceback.print_exc()
        return Result(broken=[f"was not carried out: {problem}"])


def verdict(result: Result) -> str:
    """One phrase."""
    if "not tried" in result.measured:
        return "not tried"
    if result.broken:
        return "BROKEN: " + "; ".join(result.broken)
    return "kept, late: " + "; ".join(result.missed) if result.missed else "kept"


def markdown(rows: Sequence[tuple[Scenario, Result]]) -> str:
    """The table."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for scenario, result in rows:
        measured = ", ".join(f"{name} {value}" for name, value in result.measured.items())
        lines.append((scenario.row, scenario.name, scenario.done, scenario.required, measured, verdict(result)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def say(line: str) -> None:
    """What goes on, for people."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m tests.fault.table", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=1, help="of the load's arrivals")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument("--thorough", action="store_true", help="the full numbers of the long ones (an hour)")
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"), help="where the figures go")
    arguments = parser.parse_args()
    rows: list[tuple[Scenario, Result]] = []
    with ExitStack() as held:
        state = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        stand = held.enter_context(
            standing(state, say, seed=arguments.seed, rate=arguments.rate, thorough=arguments.thorough)
        )
        for scenario in SCENARIOS:
            if scenario.name in arguments.only:
                began = time.monotonic()
                result = attempt(scenario, stand)
                rows.append((scenario, result))
                say(f"{scenario.name}: {verdict(result)} ({time.monotonic() - began:.0f} s)")
    print(markdown(rows))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    told = [
        {"row": each.row, "name": each.name, "seed": arguments.seed, "rate": arguments.rate, "measured": got.measured}
        | {"broken": got.broken, "missed": got.missed}
        for each, got in rows
    ]
    arguments.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if any(result.broken for _, result in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
