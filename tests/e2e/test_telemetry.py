"""One trace from the caller through gateway, queue, batch and engine; metrics on every process; logs with trace ids."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock import Client
from penstock.errors import NotFound
from penstock.signals import SPANS
from tests.e2e.conftest import grpc_address, serve
from tests.harness import models


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    running = Suite(tmp_path_factory.mktemp("traced"), Ports.free(), trace_ratio=0.0)
    running.up()
    yield running
    running.down()


def spans_of(suite: Suite, trace_id: str, count: int) -> list[dict[str, Any]]:
    """The spans of one trace once `count` of them are on disk (exporters write twice a second)."""
    deadline = time.monotonic() + 60
    while True:
        path = suite.state / "traces.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        spans = [json.loads(line) for line in lines if trace_id in line]
        if len(spans) >= count or time.monotonic() > deadline:
            return spans
        time.sleep(0.1)


def test_one_trace_from_client_to_engine(traced: Suite, tmp_path: Path) -> None:
    trace_id, span_id = f"{random.getrandbits(128) | 1:032x}", f"{random.getrandbits(64) | 1:016x}"
    with Client(grpc_address(traced), trace_context=lambda: f"00-{trace_id}-{span_id}-01") as client:
        serve(client, models.add_one(tmp_path / "add1"))
        client.infer("add1", {"x": np.ones((1, 16), np.float32)})
    by_name = {span["name"]: span for span in spans_of(traced, trace_id, 3)}
    assert set(by_name) <= set(SPANS), "every span is declared in penstock/signals.py"
    gateway, worker, batch = by_name["gateway.infer"], by_name["worker.infer"], by_name["engine.batch"]
    assert gateway["parent_id"] == f"0x{span_id}"
    assert worker["parent_id"] == gateway["context"]["span_id"]
    # A batch serves many requests, so it is linked to each of them.
    linked = {link["context"]["span_id"] for link in batch["links"]}
    assert worker["context"]["span_id"] in linked
    services = {span["resource"]["attributes"]["service.name"] for span in by_name.values()}
    assert services == {"gateway", "worker"}


def test_an_unsampled_call_leaves_no_span(traced: Suite, tmp_path: Path) -> None:
    quiet, loud = (f"{random.getrandbits(128) | 1:032x}" for _ in range(2))
    parents = [f"00-{quiet}-{'1' * 16}-00"]
    with Client(grpc_address(traced), trace_context=lambda: parents[-1]) as client:
        serve(client, models.add_one(tmp_path / "quiet", "quiet"))
        client.infer("quiet", {"x": np.ones((1, 16), np.float32)})
        parents.append(f"00-{loud}-{'1' * 16}-01")
        client.infer("quiet", {"x": np.ones((1, 16), np.float32)})
    # Spans leave in order: when the later call's are there, the earlier one's would be.
    assert len(spans_of(traced, loud, 3)) == 3
    assert quiet not in (traced.state / "traces.jsonl").read_text()


@pytest.mark.parametrize("process", ["gateway", "registry", "scheduler-1", "scheduler-2", "worker-1", "worker-2"])
def test_every_process_has_metrics_and_health(traced: Suite, process: str) -> None:
    port = traced.ports[f"{process.replace('-', '_')}_admin"]

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    assert "penstock_ready 1.0" in get("/metrics")
    assert get("/healthz") == get("/readyz") == "ok\n"


def test_a_request_that_fails_is_in_the_access_log(traced: Suite) -> None:
    trace_id = f"{random.getrandbits(128) | 1:032x}"
    with (
        Client(grpc_address(traced), trace_context=lambda: f"00-{trace_id}-{'1' * 16}-00") as client,
        pytest.raises(NotFound),
    ):
        client.infer("nobody", {"x": np.ones((1, 16), np.float32)})
    deadline, log = time.monotonic() + 60, traced.state / "logs" / "gateway.log"
    lines: list[dict[str, Any]] = []
    while not lines and time.monotonic() < deadline:
        lines = [json.loads(line) for line in log.read_text().splitlines() if trace_id in line]
    (line,) = lines
    assert (line["event"], line["model"], line["code"], line["caller"]) == ("request", "nobody", "NOT_FOUND", "local")
    assert line["request_id"]


@pytest.mark.parametrize("process", ["gateway", "registry", "scheduler-1", "worker-1"])
def test_logs_are_one_json_object_a_line(traced: Suite, process: str) -> None:
    lines = (traced.state / "logs" / f"{process}.log").read_text().splitlines()
    assert lines
    for line in lines:
        record = json.loads(line)
        assert {"timestamp", "level", "event", "service", "process"} <= set(record), line
