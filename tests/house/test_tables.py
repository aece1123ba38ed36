"""Documentation that says what code says is equal to it."""

from __future__ import annotations

import ast
import re

import pytest

from penstock import errors, signals
from penstock.cluster import keys
from tests.house import tables

from .source import PRODUCT, dotted, files, shown, tree


@pytest.mark.parametrize("name", sorted({file for file, _ in tables.TABLES.values()}))
def test_the_tables_are_fresh(name: str) -> None:
    text = (tables.DOCS / name).read_text()
    assert tables.with_tables(name, text) == text, "stale: run `python -m tests.house.tables --write`"


def test_every_error_has_its_row() -> None:
    text = (tables.DOCS / "errors.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| `(\w+)` \| (\d+) \w+ \| (\d+) \|", text, re.MULTILINE)
    wanted = [(each.code.name, each.__name__, str(each.code.grpc), str(each.code.http)) for each in errors.ALL]
    assert rows == wanted


def test_every_metric_and_span_has_its_row() -> None:
    text = (tables.DOCS / "telemetry.md").read_text()
    for metric in tables.metrics():
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        assert text.count(f"| `{name}` |") == 1
    for span in signals.SPANS:
        assert text.count(f"| `{span}` |") == 1


def test_metrics_are_declared_well() -> None:
    declared = tables.metrics()
    assert len({metric.name for metric in declared}) == len(declared)
    for metric in declared:
        assert re.fullmatch(r"penstock_[a-z]+(_[a-z]+)*", metric.name)
        assert not metric.name.endswith("_total"), "prometheus appends it"
        assert metric.service in tables.SERVICES
        prefix = "penstock_" if metric.service == "every" else f"penstock_{metric.service}_"
        assert metric.name.startswith(prefix)
        assert metric.help and not metric.help.endswith(".")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.merge or metric.service not in tables.SUPERVISED, f"{metric.name}: say how processes are merged"


def test_every_metric_is_used_somewhere() -> None:
    names = {name for name, value in vars(signals).items() if isinstance(value, signals.Metric)}
    used = {
        dotted(node).split(".")[-1]
        for path in files(*PRODUCT)
        if path.name != "signals.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert names <= used, f"declared and never used: {sorted(names - used)}"


def test_metrics_are_made_from_declarations_alone() -> None:
    wrong = [
        shown(path, node)
        for path in files(*PRODUCT)
        if not path.match("penstock/kit/metrics.py")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and node.module == "prometheus_client"
        and any(alias.name in ("Counter", "Histogram", "Summary", "Info") for alias in node.names)
        and not path.match("services/*/metrics.py")
    ]
    assert not wrong


def test_every_key_of_etcd_is_documented_with_its_writer() -> None:
    text = (tables.DOCS / "etcd.md").read_text()
    for key in keys.TABLE:
        row = f"| `{key.form}` | `{key.example}` | `{key.record}` | {key.writer} |"
        assert row in text, f"docs/etcd.md lacks {row}"
    documented = set(re.findall(r"^\| `(/penstock/[^`]*)` \|", text, re.MULTILINE))
    assert documented == {key.form for key in keys.TABLE}


def test_every_prefix_has_a_row_in_the_table_of_keys() -> None:
    prefixes = {
        value
        for name, value in vars(keys).items()
        if name.isupper() and isinstance(value, str) and value.startswith(keys.PREFIX) and value != keys.PREFIX
    }
    assert prefixes == {key.form.partition("{")[0].partition("{")[0] for key in keys.TABLE}
