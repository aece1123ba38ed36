"""Workers that really come and go: `make up` with a pool, on this host, under load."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.local.ports import Ports
from deploy.local.resize import workers
from deploy.local.suite import ROOT, Suite
from penstock import Client
from penstock.v1 import cluster_pb2 as pb
from tests.e2e.calling import wait_until
from tests.e2e.conftest import grpc_address
from tests.harness import models

MIB = 2**20


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[Suite]:
    """One worker, two at most, each with room for one big model and a small one; a short cool-down."""
    running = Suite(
        tmp_path / "suite",
        Ports.free(),
        trace_ratio=None,
        pool=(1, 2),
        environment={"PENSTOCK_WORKER_MEMORY_BYTES": str(450 * MIB), "PENSTOCK_SCHEDULER_POOL_FALL_SECONDS": "3"},
    )
    running.up()
    yield running
    assert running.down() == []
    assert running.running() == {}


def big(client: Client, folder: Path, name: str, add: float) -> None:
    """Publishes a model of which a worker has room for one."""
    path = models.add_one(folder / name, name, add)
    manifest = yaml.safe_load((path / "model.yaml").read_text())
    manifest["resources"]["memory_bytes"] = 300 * MIB
    (path / "model.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    client.publish(path)


def until(client: Client, holds: Callable[[pb.ClusterStatus], bool]) -> pb.ClusterStatus:
    """Follows the status until it shows that."""
    for picture in client.watch_status():
        if holds(picture):
            return picture
    raise AssertionError("the watch has ended")


def where(client: Client, name: str) -> list[str]:
    """Workers of a model's replicas."""
    return [replica.worker for version in client.status(name).versions for replica in version.replicas]


@contextmanager
def called(address: str, name: str, add: float) -> Iterator[Callable[[int], None]]:
    """Calls a model all the time; yields what waits for so many more answers. At the end every one was right."""
    stop, answered, wrong = threading.Event(), threading.Semaphore(0), list[str]()
    x = np.zeros((1, 16), np.float32)

    def call() -> None:
        with Client(address, timeout=30) as client:
            while not stop.is_set():
                try:
                    if not (client.infer(name, {"x": x})["y"] == add).all():
                        wrong.append("another answer")
                except Exception as problem:
                    wrong.append(repr(problem))
                answered.release()

    def more(count: int) -> None:
        for _ in range(count):
            assert answered.acquire(timeout=120)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield more
        more(3)
    finally:
        stop.set()
        caller.join()
    assert not wrong


def test_a_worker_comes_for_what_has_no_place_and_goes_when_it_is_needed_no_more(pooled: Suite, tmp_path: Path) -> None:
    address = grpc_address(pooled)
    with Client(address, timeout=30) as client:
        big(client, tmp_path, "first", 1.0)
        big(client, tmp_path, "second", 2.0)
        client.deploy("first", 1, wait=120)
        assert list(workers(pooled)) == ["worker-1"]
        client.deploy("second", 1, wait=120)
        assert sorted(workers(pooled)) == ["worker-1", "worker-2"]
        (pool,) = until(client, lambda picture: bool(picture.pools) and picture.pools[0].workers == 2).pools
        assert (pool.name, pool.wanted, pool.least, pool.most, pool.problem) == ("local", 2, 1, 2, "")
        client.publish(models.add_one(tmp_path / "small", "small", 3.0))
        client.deploy("small", 1, wait=120)
        assert where(client, "small") == ["worker-1"]
        # The fleet looks once in a while: until then it says what it saw before the worker came.
        wait_until(lambda: client.status().pools[0].reason.startswith("2 are enough"))
        shown = subprocess.run(
            [sys.executable, "-m", "penstock.cli", "--address", address, "status"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert re.search(r"^local +2 +2 +1 to 2 +2 are enough", shown.stdout, re.MULTILINE), shown.stdout
        with called(address, "second", 2.0) as more, called(address, "small", 3.0) as more_of_small:
            more(3)
            more_of_small(3)
            # worker-1 then has the small one alone, which has room on the newcomer: it moves, called all the time.
            client.undeploy("first")
            picture = until(client, lambda picture: [worker.id for worker in picture.workers] == ["worker-2"])
            assert [pool.wanted for pool in picture.pools] == [1]
            more(3)
            more_of_small(3)
        assert where(client, "small") == ["worker-2"]
        assert list(workers(pooled)) == ["worker-2"]
        found = Suite.found(pooled.state)
        assert [row.name for row in found.table() if row.name.startswith("worker")] == ["worker-2"]
        assert all(found.is_ready(row) for row in found.table())
