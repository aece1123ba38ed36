"""Targets and tables from results."""

from __future__ import annotations

import pytest

from tests.bench import report, targets

CELLS = {
    "grpc add1 8x8": {"both_us": 36.0, "gateway_us": 20.0, "worker_us": 16.0, "kernel_us": 9.0, "waits": 0.5,
                      "engine_us": 5.0, "rate": 20000.0, "p50_ms": 3.0, "p99_ms": 6.0, "requests": 48000.0},
    "bare grpc.aio add1 8x8": {"both_us": 200.0, "server_us": 200.0, "rate": 4000.0, "p50_ms": 3.0, "p99_ms": 6.0,
                               "requests": 9600.0},
    "rest add1 8x8": {"both_us": 81.0, "gateway_us": 60.0, "worker_us": 21.0, "rate": 9000.0, "requests": 20000.0},
    "greedy 70 %": {"p50_ms": 10.0, "p99_ms": 12.5, "rule_p50_ms": 9.0, "rule_p99_ms": 10.0, "jitter_p50_ms": 9.1,
                    "jitter_p99_ms": 11.0, "requests": 900.0, "failed": 0.0, "mean_batch": 2.5, "late_p99_ms": 0.5},
    "memory": {"gateway_mb": 95.0, "worker_mb": 68.0},
}  # fmt: skip


def row(what: str) -> targets.Row:
    return next(row for row in targets.rows(CELLS) if row.what.startswith(what))


def test_targets_are_marked() -> None:
    assert row("gRPC add1 8x8: CPU").mark == "reached"
    assert row("REST JSON add1 8x8").mark == "NOT reached"
    assert row("gRPC add1 1x1: CPU").mark == "not measured"
    assert row("resident memory of an idle gateway").mark == "NOT reached"


def test_ratios_and_percentages() -> None:
    assert row("gRPC add1 8x8: ratio").value == pytest.approx(0.18)
    assert row("greedy rule at 70 %").value == pytest.approx(25.0)
    assert row("greedy rule at 70 %").mark == "reached"


def test_refusals_are_not_within_the_limit() -> None:
    cells = {"greedy 70 %": {**CELLS["greedy 70 %"], "failed": 1.0}}
    found = next(row for row in targets.rows(cells) if row.what.startswith("greedy rule at 70 %"))
    assert found.mark == "NOT reached"
    assert found.document()["value"] is None
    assert "∞ %" in report.target_table(cells)


def test_a_lower_limit() -> None:
    found = [
        targets.Target("gain", 3.7, "×", lambda cells: cells["gain"]["value"], most=False).row(
            {"gain": {"value": value}}
        )
        for value in (3.6, 3.7, 4.0)
    ]
    assert [each.mark for each in found] == ["NOT reached", "reached", "reached"]


def test_every_table_is_in_the_text() -> None:
    text = report.markdown({"about": {"cores": 2}, "cells": CELLS, "failures": ["idle: WrongAnswers: x"]})
    assert "cores 2" in text
    assert "| gRPC add1 8x8: CPU-µs per request, gateway + worker " in text
    assert "| cell                   | CPU-µs | gateway | worker | kernel | waits | engine | req/s  | p50 ms |" in text
    assert "| grpc add1 8x8          | 36.0   | 20.0    | 16.0   | 9.00   | 0.50  | 5.00   | 20,000 | 3.00   |" in text
    assert "| bare grpc.aio add1 8x8 | 200    | –       | 200    | –      | –     | –      |" in text
    assert (
        "| rest add1 8x8          | 81.0   | 60.0    | 21.0   | –      | –     | –      | 9,000  | –      | –      |"
        in text
    )
    assert "10.0 / 12.5" in text
    assert "gateway_mb 95.0" in text
    assert "Failed: idle: WrongAnswers: x" in text


def test_the_section_of_the_page_is_replaced() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    assert report.inserted(page, "new") == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="no <!--"):
        report.inserted("nothing here", "new")


def test_the_page_has_a_place_for_them() -> None:
    report.inserted(report.PAGE.read_text(), "new")
