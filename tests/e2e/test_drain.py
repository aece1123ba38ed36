"""Workers that are emptied on purpose, with requests in flight, by SDK and command."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite
from penstock import Client, errors
from penstock.v1 import cluster_pb2 as pb
from tests.e2e.calling import Load, by_grpc, wait_until
from tests.e2e.conftest import grpc_address, serve
from tests.harness import models


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite of two workers, which these tests empty and fill."""
    running = Suite(tmp_path_factory.mktemp("drained"), Ports.free(), trace_ratio=0.0)
    running.up()
    yield running
    running.down()


@pytest.fixture(scope="module")
def caller(drained: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(grpc_address(drained), timeout=30, retries=0) as client:
        serve(client, models.add_one(tmp_path_factory.mktemp("models") / "add1"))
        yield client


def places(client: Client, name: str) -> dict[str, pb.ReplicaState.ValueType]:
    """State of each replica by worker."""
    return {replica.worker: replica.state for version in client.status(name).versions for replica in version.replicas}


def worker(client: Client, name: str) -> pb.WorkerStatus:
    return next(entry for entry in client.status().workers if entry.id == name)


def test_a_drain_under_load_loses_nothing(caller: Client) -> None:
    (first,) = places(caller, "add1")
    with Load(*[by_grpc(caller)] * 4) as load:
        load.wait_for(50)
        caller.drain(first, wait=120)
        assert first not in places(caller, "add1")
        load.wait_for(50)
        # Twice over: it has nothing to do, and says so.
        caller.drain(first, wait=120)
        caller.undrain(first)
        (second,) = places(caller, "add1")
        wait_until(lambda: not worker(caller, first).draining)
        caller.drain(second, wait=120)
        assert list(places(caller, "add1")) == [first], "what was taken back takes replicas again"
        load.wait_for(50)
        caller.undrain(second)
    assert (load.wrong, load.failures) == (0, [])


def test_what_fits_nowhere_else_goes_on_serving_and_it_is_said_why(caller: Client) -> None:
    caller.deploy("add1", replicas=2, wait=120)
    told: list[pb.ClusterStatus] = []
    with Load(*[by_grpc(caller)] * 4) as load:
        with pytest.raises(
            errors.DeadlineExceeded, match=r"worker-1: 1 replica left; add1@1: stays: 1 of 2 replicas not"
        ):
            caller.drain("worker-1", wait=8, on_status=told.append)
        assert worker(caller, "worker-1").draining
        assert worker(caller, "worker-1").drained_by == "local"
        assert set(places(caller, "add1").values()) == {pb.REPLICA_STATE_READY}
        (why,) = caller.explain("add1")
        verdicts = {verdict.worker: verdict for verdict in why.workers}
        assert verdicts["worker-1"].outcome == pb.PLACEMENT_OUTCOME_LEAVING
        assert verdicts["worker-1"].obstacle == "draining"
        caller.undrain("worker-1")
        caller.wait_ready("add1", timeout=120)
        load.wait_for(20)
    assert told
    assert (load.wrong, load.failures) == (0, [])
    (why,) = caller.explain("add1")
    assert {verdict.outcome for verdict in why.workers} == {pb.PLACEMENT_OUTCOME_HERE}


def test_a_drain_outlives_the_leader_and_the_worker(drained: Suite, caller: Client) -> None:
    caller.deploy("add1", replicas=1, wait=120)
    caller.drain("worker-2", wait=120)
    leader = caller.status().leader
    drained.kill(leader)
    drained.kill("worker-2")

    def is_led_by_another() -> bool:
        # Calls to the scheduler that is gone fail until the gateway has heard of it.
        with contextlib.suppress(errors.Unavailable):
            return caller.status().leader not in ("", leader)
        return False

    wait_until(is_led_by_another)
    drained.start("worker-2")
    drained.wait_ready("worker-2")
    wait_until(lambda: any(entry.id == "worker-2" and entry.draining for entry in caller.status().workers))
    # The new leader places nothing there.
    caller.deploy("add1", replicas=2)
    wait_until(lambda: "worker-2 is draining" in caller.status("add1").versions[0].unplaced_reason)
    assert list(places(caller, "add1")) == ["worker-1"]
    caller.undrain("worker-2")
    caller.wait_ready("add1", timeout=120)
    assert set(places(caller, "add1")) == {"worker-1", "worker-2"}
    drained.start(leader)
    drained.wait_ready(leader)


def penstock(suite: Suite, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli", "--address", grpc_address(suite), *words, "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_the_command_says_what_is_so_and_what_is_wrong(drained: Suite, caller: Client, tmp_path: Path) -> None:
    caller.deploy("add1", replicas=1, wait=120)
    done = penstock(drained, "drain", "worker-2", "--wait", "--timeout", "60")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"worker": "worker-2", "draining": True, "empty": True})
    refused = penstock(drained, "drain", "worker-2", "--wait", "--timeout", "60")
    assert refused.returncode == 0
    late = penstock(drained, "drain", "worker-1", "--wait", "--timeout", "5")
    assert late.returncode == 4
    assert "worker-1: 1 replica left" in json.loads(late.stderr)["error"]["message"]
    for name in ("worker-1", "worker-2"):
        assert penstock(drained, "undrain", name).returncode == 0
    assert penstock(drained, "undrain", "worker-2").returncode == 0, "again is fine"
    for verb in ("drain", "undrain"):
        missing = penstock(drained, verb, "worker-9")
        assert missing.returncode == 3
        assert "there are worker-1, worker-2" in json.loads(missing.stderr)["error"]["message"]
