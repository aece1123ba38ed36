"""The benchmark of the data plane: `python -m tests.bench.data_plane`, which `make bench` calls.

Starts the suite over a temporary folder, measures, prints the targets of issue 3 beside the measurements and writes
build/bench/data-plane.json. Ends with 0 whatever the speeds; with 1 when an answer was wrong, with 2 when a load
generator is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from deploy.local.suite import SuiteError
from penstock.errors import PenstockError
from penstock.kit import compiled
from tests.bench import batches, conditions, loads, place, report, targets, transport
from tests.bench.cells import Bench
from tests.bench.cpu import Restarted
from tests.bench.output import WrongAnswers
from tests.bench.run import Run

GROUPS: Final[Mapping[str, Callable[[Run], None]]] = {
    "memory": transport.memory,
    "engine": batches.engine,
    "grpc": transport.grpc,
    "rest": transport.rest,
    "caller": transport.caller,
    "idle": transport.idle,
    "telemetry": conditions.telemetry,
    "deployed": conditions.deployed,
    "processes": conditions.processes,
    "image": transport.image,
    "minilm": batches.minilm,
    "batching": batches.batching,
    "greedy": batches.greedy,
}
QUICK: Final = ("memory", "engine", "grpc", "rest")
SECONDS, QUICK_SECONDS = 1.6, 1.0


def about(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Where and how, for whoever reads the numbers later."""
    return {
        "on": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "code": str(compiled.look()),
        "grpcio": version("grpcio"),
        "onnxruntime": version("onnxruntime"),
        "load generators": f"{loads.version(['h2load', '--version'])}, {loads.version(['wrk', '-v']).split(' [')[0]}",
        "trace ratio": place.TRACE_RATIO,
        "seconds per cell": seconds,
        "quick": options.quick,
        "load average before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def measure(
    groups: Sequence[str], seconds: float, logs: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Runs the groups over one suite; the cells, and what went wrong. The services' logs are copied to `logs`."""
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        with place.running(folder / "suite", say) as there:
            run = Run(there, Bench(seconds, folder), folder, seconds, say)
            for group in groups:
                try:
                    GROUPS[group](run)
                except (WrongAnswers, Restarted, PenstockError, OSError) as error:
                    failures.append(f"{group}: {type(error).__name__}: {error}")
                    say(f"FAILED {failures[-1]}")
        shutil.copytree(folder / "suite" / "logs", logs, dirs_exist_ok=True)
        return dict(run.cells), failures


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.data_plane", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"within a minute: {', '.join(QUICK)}")
    parser.add_argument("--cells", metavar="GROUP,…", help=f"only these of {', '.join(GROUPS)}")
    parser.add_argument("--seconds", type=float, help=f"of a cell (default: {SECONDS}, quick: {QUICK_SECONDS})")
    parser.add_argument("--json", type=Path, default=report.RESULTS, metavar="PATH", help="default: %(default)s")
    options = parser.parse_args(arguments)
    groups = options.cells.split(",") if options.cells else QUICK if options.quick else tuple(GROUPS)
    if unknown := [group for group in groups if group not in GROUPS]:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if packages := loads.missing():
        print(f"the load generators are missing: apt-get install {' '.join(packages)}", file=sys.stderr)
        return 2
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    described = about(options, seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the suite is stopped
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    try:
        cells, failures = measure(groups, seconds, options.json.parent / "logs", say)
    except SuiteError as error:
        print(f"the suite does not start: {error}", file=sys.stderr)
        return 1
    described["took"] = f"{time.monotonic() - began:.0f} s"
    described["load average after"] = round(os.getloadavg()[0], 2)
    results: dict[str, Any] = {"about": described, "cells": cells, "failures": failures}
    results["targets"] = [row.document() for row in targets.rows(cells)]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{report.markdown(results)}\n\nwritten to {options.json}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
