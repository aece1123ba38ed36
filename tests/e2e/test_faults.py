"""Trouble, with requests in flight: serving goes on without the control plane, and no request is lost or hangs.

They share one suite, which each hurts in its own way and heals; processes are killed and frozen by real signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock import Client, errors, signals
from tests.e2e.calling import ONES, Load, by_grpc, wait_until
from tests.e2e.conftest import grpc_address, serve
from tests.harness import models
from tests.harness.processes import children_of


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite that these tests hurt and heal."""
    running = Suite(tmp_path_factory.mktemp("troubled"), Ports.free(), trace_ratio=0.0)
    running.up()
    yield running
    running.down()


@pytest.fixture(scope="module")
def caller(troubled: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("models")
    with Client(grpc_address(troubled), timeout=30, retries=0) as client:
        serve(client, models.add_one(folder / "add1"), replicas=2)
        serve(client, models.slow(folder / "slow"), replicas=2)
        yield client


def test_a_killed_worker_costs_no_answer(troubled: Suite, caller: Client) -> None:
    """Every request in flight is answered elsewhere; the lost replicas come back when the worker does."""
    with Load(*[by_grpc(caller)] * 4) as load:
        load.wait_for(50)
        troubled.kill("worker-1")
        load.wait_for(200)
        troubled.start("worker-1")
        troubled.wait_ready("worker-1")
        caller.wait_ready(timeout=120)
    assert load.wrong == 0
    assert load.failures == []


def test_a_killed_worker_fails_a_lone_request_clearly(troubled: Suite, caller: Client, tmp_path: Path) -> None:
    """With nowhere else to go the caller gets a retryable error well before its deadline."""
    path = models.slow(tmp_path / "alone", "alone")
    serve(caller, path, replicas=1)
    (replica,) = caller.status("alone").versions[0].replicas
    outcome: list[Exception] = []

    def call() -> None:
        try:
            caller.infer("alone", {"times": np.array([200_000])}, timeout=90)
        except errors.PenstockError as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: runs(engine_of_the_busy(troubled, replica.worker)))
    troubled.kill(replica.worker)
    thread.join(40)
    assert not thread.is_alive()
    assert isinstance(outcome[0], errors.Unavailable), outcome
    assert outcome[0].code.retryable
    troubled.start(replica.worker)
    troubled.wait_ready(replica.worker)
    caller.wait_ready(timeout=120)
    caller.undeploy("alone", wait=120)


def test_a_frozen_worker_does_not_hold_a_request_past_its_deadline(troubled: Suite, caller: Client) -> None:
    troubled.kill("worker-2", signal.SIGSTOP)
    try:
        begun = time.monotonic()
        for _ in range(6):
            with contextlib.suppress(errors.DeadlineExceeded, errors.Unavailable):
                caller.infer("add1", {"x": ONES}, timeout=1)
        assert time.monotonic() - begun < 6 * 5
    finally:
        troubled.kill("worker-2", signal.SIGCONT)
    caller.wait_ready(timeout=120)


def test_an_engine_that_dies_takes_nobody_with_it(troubled: Suite, caller: Client) -> None:
    """The engine of one model is killed; the other model on the same worker does not notice, and the engine returns."""
    children = engine_processes(troubled, "worker-1")
    assert len(children) >= 2
    with Load(*[by_grpc(caller)] * 2) as load:
        load.wait_for(20)
        os.kill(children[0], signal.SIGKILL)
        load.wait_for(100)
    assert load.wrong == 0
    assert load.failures == []
    wait_until(lambda: len(engine_processes(troubled, "worker-1")) >= 2)
    caller.wait_ready(timeout=120)


def test_serving_goes_on_while_etcd_is_gone_for_30_seconds(troubled: Suite, caller: Client) -> None:
    with Load(*[by_grpc(caller)] * 2) as load:
        load.wait_for(20)
        troubled.kill("etcd")
        gone = time.monotonic()
        while time.monotonic() - gone < 30:
            load.wait_for(20)
        troubled.start("etcd")
        troubled.wait_ready("etcd")
        caller.wait_ready(timeout=120)
        load.wait_for(50)
    assert load.wrong == 0
    assert load.failures == []
    # The control plane is back: a change goes through.
    caller.deploy("add1", replicas=1, wait=120)
    caller.deploy("add1", replicas=2, wait=120)


def test_serving_goes_on_while_etcd_is_full(troubled: Suite, caller: Client) -> None:
    """The alarm is raised by hand: half a gigabyte takes long to write. What is asked for meanwhile is done after."""
    with Load(*[by_grpc(caller)] * 2) as load:
        load.wait_for(20)
        switch_nospace(troubled, on=True)
        wait_until(lambda: alarms(troubled) > 0)
        caller.deploy("add1", replicas=1)
        began = time.monotonic()
        while time.monotonic() - began < 6:  # longer than a lease, which is the subject
            load.wait_for(20)
        assert len(caller.status("add1").versions[0].replicas) == 2
        switch_nospace(troubled, on=False)
        wait_until(lambda: len(caller.status("add1").versions[0].replicas) == 1)
        wait_until(lambda: alarms(troubled) == 0)
    assert load.wrong == 0
    assert load.failures == []
    caller.deploy("add1", replicas=2, wait=120)


def test_serving_goes_on_while_the_registry_is_gone(troubled: Suite, caller: Client) -> None:
    troubled.kill("registry")
    assert (caller.infer("add1", {"x": ONES})["y"] == 2).all()
    with pytest.raises(errors.Unavailable, match="registry"):
        list(caller.models())
    # A worker that starts meanwhile serves from its cache.
    troubled.kill("worker-1")
    troubled.start("worker-1")
    troubled.wait_ready("worker-1")
    caller.wait_ready("add1", timeout=120)
    troubled.start("registry")
    troubled.wait_ready("registry")
    wait_until(lambda: answers(caller))


def test_the_other_scheduler_leads_when_one_dies(troubled: Suite, caller: Client) -> None:
    first = caller.status().leader
    assert first in ("scheduler-1", "scheduler-2")
    term = caller.status().term
    troubled.kill(first)
    try:
        wait_until(lambda: leads(caller, first))
        assert caller.status().term > term
        caller.deploy("add1", replicas=1, wait=120)
        caller.deploy("add1", replicas=2, wait=120)
    finally:
        troubled.start(first)
        troubled.wait_ready(first)


def test_a_worker_told_to_stop_finishes_and_hands_over(troubled: Suite, caller: Client) -> None:
    with Load(*[by_grpc(caller)] * 4) as load:
        load.wait_for(20)
        troubled.kill("worker-1", signal.SIGTERM)
        wait_until(lambda: "worker-1" not in troubled.running())
        load.wait_for(50)
        troubled.start("worker-1")
        troubled.wait_ready("worker-1")
    assert load.wrong == 0
    assert load.failures == []
    caller.wait_ready(timeout=120)


def switch_nospace(suite: Suite, *, on: bool) -> None:
    """Raises or ends etcd's alarm, as it does itself when its quota is used up (`AlarmRequest`: action, alarm)."""
    request = bytes((0x08, 1 if on else 2, 0x18, 1))
    with grpc.insecure_channel(f"127.0.0.1:{suite.ports['etcd_client']}") as channel:
        alarm: Any = channel.unary_unary("/etcdserverpb.Maintenance/Alarm")
        alarm(request, timeout=60)


def alarms(suite: Suite) -> float:
    """How many schedulers tell of NOSPACE."""
    name = f'{signals.SCHEDULER_ETCD_ALARM.name}{{alarm="NOSPACE"}} '
    told = 0.0
    for scheduler in ("scheduler_1", "scheduler_2"):
        with urllib.request.urlopen(
            f"http://127.0.0.1:{suite.ports[f'{scheduler}_admin']}/metrics", timeout=60
        ) as page:
            told += float(page.read().decode().partition(name)[2].split()[0])
    return told


def leads(client: Client, not_this: str) -> bool:
    try:
        return client.status().leader not in ("", not_this)
    except errors.Unavailable:
        return False


def answers(client: Client) -> bool:
    try:
        return bool(list(client.models()))
    except errors.Unavailable:
        return False


def engine_of_the_busy(suite: Suite, worker: str) -> int:
    """Pid of the engine process that has used the most processor time: the one that computes."""
    return max(engine_processes(suite, worker), key=processor_ticks)


def processor_ticks(pid: int) -> int:
    """User and system time of a process, in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def runs(pid: int) -> bool:
    """Whether a process computes now: its state is R."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R" and processor_ticks(pid) > 60


def engine_processes(suite: Suite, worker: str) -> list[int]:
    """Pids of the engine processes of one worker."""
    return children_of(suite.running()[worker])
