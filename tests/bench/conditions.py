"""What else a request's cost might depend on: tracing, how many models are deployed, how many gateways share a port."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from deploy.local.suite import ROOT
from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Put
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, WantedVersion
from penstock.v1 import cluster_pb2
from tests.bench import exchange, place
from tests.bench.cells import Cell
from tests.bench.loads import Shape
from tests.bench.output import WrongAnswers
from tests.bench.run import Run
from tests.harness import models as small_models
from tests.harness.etcd import EtcdProcess, free_port

ROUNDS: Final = 3
"""Times that two conditions take turns; a cell is the median of its rounds, so that a slow minute touches both."""
FINE_ROUNDS: Final = 7
"""The same where they differ by less than one round differs from the next."""
MODELS: Final = 10_000
_BUSY: Final = Shape(8, 8)
_MANY: Final = Shape(64, 1)
"""Connections enough for the kernel to spread them evenly."""
_IN_ONE_TXN: Final = 100


def telemetry(run: Run) -> None:
    """add1 with 1 % traced and 1 % in the access log, taking turns with a suite that has neither."""
    with _beside(run, "traced", "untraced", trace_ratio=None) as (traced, untraced):
        rounds = _in_turns({"traced at 1 %": partial(traced, _BUSY), "untraced": partial(untraced, _BUSY)}, FINE_ROUNDS)
    for name, cell in rounds.items():
        run.keep(f"grpc add1 8x8 {name}", cell)


def deployed(run: Run) -> None:
    """A gateway whose table has add1 alone, then ten thousand models more, then add1 alone again; the worker is the
    suite's, the store the gateway's own. CPU of the gateway alone."""
    worker = run.place.worker_address(run.deployed("add1", small_models.add_one))
    etcd = EtcdProcess(run.folder / "table")
    etcd.start()
    try:
        asyncio.run(_put(etcd.endpoint, 0, 1, worker))
        with _gateway(etcd.endpoint, run.folder) as (address, admin, pid):
            cells: dict[str, list[Cell]] = {"1 model": [], f"{MODELS} models": []}
            for name, count in (("1 model", 1), (f"{MODELS} models", MODELS), ("1 model", 1)):
                asyncio.run(_put(etcd.endpoint, 1, count, worker))
                _until(partial(_knows, admin, count))
                for _ in range(ROUNDS - 1):
                    cells[name].append(run.bench.grpc(address, {pid: "gateway"}, exchange.add1(), _BUSY))
    finally:
        etcd.stop()
    for name, each in cells.items():
        run.keep(f"gateway beside {name}", _median(each))


def processes(run: Run) -> None:
    """add1 through one gateway process and, in another suite, through two on one port; taking turns."""
    with _beside(run, "onefold", "twofold", gateways=2) as (one, two):
        rounds = _in_turns({"one gateway": partial(one, _MANY), "two gateways": partial(two, _MANY)})
    for name, cell in rounds.items():
        run.keep(name, cell)


@contextmanager
def _beside(run: Run, usual: str, other: str, **differs: Any) -> Iterator[list[Callable[[Shape], Cell]]]:
    """add1 in two suites of these names, the second of which differs so; what measures each. Both are new, so that they
    differ by nothing else, such as what the groups before have left in their memory."""
    model = small_models.add_one(run.folder / usual / "add1")
    with (
        place.running(run.folder / usual / "suite", run.say) as first,
        place.running(run.folder / other, run.say, **differs) as second,
    ):
        found: list[Callable[[Shape], Cell]] = []
        for each in (first, second):
            each.deploy(model)
            heads = each.heads(each.worker_of(exchange.add1()))
            found.append(partial(run.bench.grpc, each.grpc, heads, exchange.add1()))
        yield found


def _in_turns(conditions: Mapping[str, Callable[[], Cell]], rounds: int = ROUNDS) -> dict[str, Cell]:
    """The median cell of each condition over rounds in which each has its turn, every other round the other way."""
    found: dict[str, list[Cell]] = {name: [] for name in conditions}
    for number in range(rounds):
        for name in sorted(conditions, reverse=number % 2 == 1):
            found[name].append(conditions[name]())
    return {name: _median(cells) for name, cells in found.items()}


def _median(cells: list[Cell]) -> Cell:
    return {figure: statistics.median(cell[figure] for cell in cells) for figure in cells[0]}


async def _put(endpoint: str, first: int, count: int, worker: str) -> None:
    """Makes the models `first` to `count - 1` the ones that are deployed, beside those before them."""
    etcd = Etcd([endpoint])
    try:
        if count <= first:
            for prefix in (keys.DEPLOYMENTS, keys.REPLICAS):
                for item in (await etcd.range(prefix)).items:
                    if "add1" not in item.key:
                        await etcd.delete(item.key)
        puts = [put for number in range(first, count) for put in _records(number, worker)]
        for start in range(0, len(puts), _IN_ONE_TXN):
            await etcd.txn([], puts[start : start + _IN_ONE_TXN])
    finally:
        await etcd.close()


def _records(number: int, worker: str) -> list[Put]:
    name = "add1" if not number else f"model-{number}"
    wanted = DeploymentRecord(name=name, default_version=1, versions=[WantedVersion(version=1, replicas=1)])
    ready = ReplicaRecord(worker="w", name=name, version=1, state=cluster_pb2.REPLICA_STATE_READY, address=worker)
    return [
        Put(keys.deployment(name), records.to_json(wanted)),
        Put(keys.replica("w", name, 1), records.to_json(ready)),
    ]


@contextmanager
def _gateway(endpoint: str, folder: Path) -> Iterator[tuple[str, str, int]]:
    """A gateway by itself: its gRPC address, its admin address, its pid."""
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "services.gateway", f"--etcd={endpoint}", f"--port={port}"]
    command += [f"--admin-port={admin}", "--http-port=0"]
    with (folder / "gateway.log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stderr=log) as process:
        try:
            _until(partial(_knows, f"127.0.0.1:{admin}", 1))
            yield f"127.0.0.1:{port}", f"127.0.0.1:{admin}", process.pid
        finally:
            process.terminate()


def _knows(admin: str, models: int) -> bool:
    """The gateway's table has so many models."""
    try:
        with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10.0) as answer:
            return f"\npenstock_gateway_models {float(models)}\n" in answer.read().decode()
    except OSError:
        return False


def _until(holds: Callable[[], bool]) -> None:
    place.wait_until(holds, 120.0, lambda: WrongAnswers("the gateway did not come to know the models in time"))
