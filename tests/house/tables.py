"""Tables of the documentation that are made from code.

`python -m tests.house.tables errors` (or `metrics`, `spans`) prints one; `--write` puts all of them into docs/ between
their markers. A test keeps docs/ equal to them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from penstock import errors, signals

DOCS = Path(__file__).resolve().parents[2] / "docs"
SERVICES = ("every", "gateway", "registry", "scheduler", "worker")
SUPERVISED = ("every", "gateway")
"""Whose metrics may come from several processes."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def error_table() -> str:
    """One row per class of penstock.errors."""
    statuses = {status.value[0]: status.name for status in grpc.StatusCode}
    head = ("code", "class", "gRPC", "HTTP", "OpenAI type", "retry", "means")
    rows = (
        (
            f"`{kind.code.name}`",
            f"`{kind.__name__}`",
            f"{kind.code.grpc} {statuses[kind.code.grpc]}",
            str(kind.code.http),
            f"`{kind.code.openai}`",
            "yes" if kind.code.retryable else "no",
            (inspect.getdoc(kind) or "").splitlines()[0],
        )
        for kind in errors.ALL
    )
    return table(head, rows)


def metrics() -> list[signals.Metric]:
    """Every metric declared in penstock.signals, by service and then in the order of its declaration."""
    declared = [value for value in vars(signals).values() if isinstance(value, signals.Metric)]
    return sorted(declared, key=lambda metric: SERVICES.index(metric.service))


def metric_table() -> str:
    """One row per metric, under the name that Prometheus shows."""
    head = ("metric", "kind", "service", "labels", "says", "several processes")
    rows = (
        (
            f"`{metric.name}_total`" if metric.kind == "counter" else f"`{metric.name}`",
            metric.kind,
            metric.service,
            ", ".join(f"`{label}`" for label in metric.labels) or "-",
            metric.help,
            (metric.merge or "-") if metric.service in SUPERVISED else "-",
        )
        for metric in metrics()
    )
    return table(head, rows)


def span_table() -> str:
    """One row per span."""
    return table(("span", "covers"), ((f"`{name}`", text) for name, text in signals.SPANS.items()))


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "errors": ("errors.md", error_table),
    "metrics": ("telemetry.md", metric_table),
    "spans": ("telemetry.md", span_table),
}


def with_tables(name: str, text: str) -> str:
    """The text of docs/`name` with its tables made anew; raises ValueError when a marker is missing."""
    for key, (file, make) in TABLES.items():
        if file == name:
            start, end = f"<!-- table: {key} -->", "<!-- end -->"
            before, _, rest = text.partition(start)
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"docs/{name} lacks {start} … {end}")
            text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


def main() -> int:
    """Prints one table, or writes all."""
    words = sys.argv[1:]
    if words == ["--write"]:
        for name in sorted({file for file, _ in TABLES.values()}):
            path = DOCS / name
            path.write_text(with_tables(name, path.read_text()))
        return 0
    if len(words) != 1 or words[0] not in TABLES:
        print(__doc__, file=sys.stderr)
        return 2
    print(TABLES[words[0]][1]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
