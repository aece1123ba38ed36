"""The results as tables: `python -m tests.bench.report [RESULTS.json]` prints them as Markdown.

`--write` puts them into docs/performance.md between its markers, so that no number there was typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.local.suite import ROOT
from tests.bench import targets

RESULTS: Final = ROOT / "build" / "bench" / "data-plane.json"
PAGE: Final = ROOT / "docs" / "performance.md"
BEGIN: Final = "<!-- results: python -m tests.bench.report --write -->"
END: Final = "<!-- end of results -->"
_GROUPS: Final = ("gateway_us", "worker_us", "server_us", "front_us", "engine_us")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def number(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def target_table(cells: targets.Cells) -> str:
    """Every target beside its measurement."""
    rows = (
        (
            row.what,
            f"{'≤' if row.most else '≥'} {row.limit:,.10g} {row.unit}",
            "–" if row.value is None else f"{number(row.value)} {row.unit}",
            row.mark,
        )
        for row in targets.rows(cells)
    )
    return table(("target of issue 3", "wanted", "measured", ""), rows)


def load_table(cells: targets.Cells) -> str:
    """CPU per request and what the caller saw, for every cell that was a load."""
    head = ("cell", "CPU-µs", "gateway", "worker", "kernel", "waits", "engine", "req/s", "p50 ms", "p99 ms", "requests")
    rows = []
    for name, cell in cells.items():
        if "both_us" not in cell:
            continue
        by = [cell.get(group) for group in _GROUPS]
        worker = next((value for value in by[1:3] if value is not None), None)
        first = by[0] if by[0] is not None else by[3]
        kernel = cell.get("kernel_us"), cell.get("waits")
        figures = (first, worker, *kernel, by[4], cell["rate"], cell.get("p50_ms"), cell.get("p99_ms"))
        rows.append((name, number(cell["both_us"]), *map(number, figures), f"{cell['requests']:,.0f}"))
    return table(head, rows)


def rule_table(cells: targets.Cells) -> str:
    """The service beside the simulated rule."""
    head = ("load", "service p50/p99 ms", "rule alone", "rule with jitter", "requests", "failed", "rows", "late p99 ms")
    rows = (
        (
            name.removeprefix("greedy "),
            f"{number(cell['p50_ms'])} / {number(cell['p99_ms'])}",
            f"{number(cell['rule_p50_ms'])} / {number(cell['rule_p99_ms'])}",
            f"{number(cell['jitter_p50_ms'])} / {number(cell['jitter_p99_ms'])}",
            f"{cell['requests']:,.0f}",
            f"{cell['failed']:,.0f}",
            number(cell["mean_batch"]),
            number(cell["late_p99_ms"]),
        )
        for name, cell in cells.items()
        if name.startswith("greedy ")
    )
    return table(head, rows)


def other_table(cells: targets.Cells) -> str:
    """Everything else that was measured."""
    rows = (
        (name, ", ".join(f"{key} {number(value)}" for key, value in cell.items()))
        for name, cell in cells.items()
        if "both_us" not in cell and not name.startswith("greedy ")
    )
    return table(("also", "figures"), rows)


def markdown(results: Mapping[str, Any]) -> str:
    """The whole section."""
    cells: targets.Cells = results["cells"]
    about = ", ".join(f"{key} {value}" for key, value in results["about"].items())
    parts = [f"Measured: {about}.", target_table(cells)]
    if any("both_us" in cell for cell in cells.values()):
        parts.append(load_table(cells))
    if any(name.startswith("greedy ") for name in cells):
        parts.append(rule_table(cells))
    parts.append(other_table(cells))
    if results["failures"]:
        parts.append("Failed: " + "; ".join(results["failures"]))
    return "\n\n".join(parts)


def inserted(page: str, section: str) -> str:
    """The page with the section between its markers; raises ValueError where it has none."""
    head, _, rest = page.partition(BEGIN)
    _, marker, tail = rest.partition(END)
    if not marker:
        raise ValueError(f"no {BEGIN} … {END}")
    return f"{head}{BEGIN}\n\n{section}\n\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description="Results as Markdown.")
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="default: build/bench/data-plane.json")
    parser.add_argument("--write", action="store_true", help="put them into docs/performance.md")
    options = parser.parse_args(arguments)
    try:
        section = markdown(json.loads(options.results.read_text()))
    except FileNotFoundError:
        print(f"{options.results} is not there; `make bench` writes it", file=sys.stderr)
        return 1
    if options.write:
        PAGE.write_text(inserted(PAGE.read_text(), section))
    else:
        print(section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
