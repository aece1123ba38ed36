"""A gateway of two processes in the whole suite: killed and renewed under load, through gRPC and REST."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock import Client, errors
from penstock.oip import inference_pb2 as oip
from penstock.v1 import models_pb2
from tests.e2e.calling import Load, by_grpc, wait_until
from tests.e2e.conftest import grpc_address, serve
from tests.harness import models
from tests.harness.processes import children_of

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [1.0] * 16}]})
ENDED = 'penstock_gateway_requests_total{code="OK",model="add1"}'

WAITING = 4
"""Requests that may wait in all."""


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite whose gateway is two processes, with add1 on both workers."""
    flags = {"gateway": [f"--waiting-requests={WAITING}"]}
    running = Suite(tmp_path_factory.mktemp("paired"), Ports.free(), trace_ratio=1.0, gateway_processes=2, flags=flags)
    running.up()
    try:
        wait_until(lambda: "2 of 2" in admin(running, "/readyz"))
        with Client(grpc_address(running), timeout=30) as client:
            serve(client, models.add_one(tmp_path_factory.mktemp("models") / "add1"), replicas=2)
        yield running
    finally:
        killed = running.down()
    assert killed == [], "these had to be killed: they did not drain"


def admin(suite: Suite, path: str) -> str:
    """What the gateway's admin port says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{suite.ports['gateway_admin']}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def processes(suite: Suite) -> list[int]:
    """Pids of those that serve."""
    return children_of(suite.running()["gateway"])


def counted(suite: Suite) -> float:
    """Requests to add1 that ended well, of all processes."""
    return sum(map(float, re.findall(rf"^{re.escape(ENDED)} (\S+)$", admin(suite, "/metrics"), re.MULTILINE)))


def logged(suite: Suite, event: str) -> int:
    """How often the gateway's log has it."""
    text = (suite.state / "logs" / "gateway.log").read_text()
    return text.count(f'"event": "{event}"')


def by_rest(suite: Suite) -> Callable[[], bool]:
    """A call over a connection of its own: HTTP/1.1 cannot say on one that is kept which request came too late."""

    def call() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", suite.ports["gateway_rest"], timeout=30)
        try:
            connection.request("POST", "/v2/models/add1/infer", BODY, {"connection": "close"})
            answer = connection.getresponse()
            document = json.loads(answer.read())
            return answer.status == 200 and document["outputs"][0]["data"] == [2.0] * 16
        finally:
            connection.close()

    return call


def clients(suite: Suite, count: int) -> list[Client]:
    """Without retries, so that every failure shows. gRPC has those that are open together share a connection."""
    return [Client(grpc_address(suite), timeout=30, retries=0) for _ in range(count)]


def test_it_is_one_gateway_to_everybody(paired: Suite) -> None:
    with Client(grpc_address(paired), timeout=30) as client:
        found = [service for service in client.status().services if service.service == "gateway"]
        assert [(each.id, each.address) for each in found] == [("gateway", grpc_address(paired))]
        before = counted(paired)
        # REST has a connection for each: as many as it takes for both processes to have served some.
        others = clients(paired, 16)
        for other in others:
            assert by_grpc(other)()
            assert by_rest(paired)()
            other.close()
    assert counted(paired) == before + 32
    text = admin(paired, "/metrics")
    assert "penstock_gateway_models 1.0" in text and "penstock_gateway_workers 2.0" in text
    names = {"gateway", "gateway.1", "gateway.2"}
    assert set(re.findall(r'^process_cpu_seconds_total{process="(.*)"}', text, re.MULTILINE)) == names
    # Spans are written a while after their requests, by whichever process served.
    wait_until(lambda: instances(paired) >= {"gateway.1", "gateway.2"})


def instances(suite: Suite) -> set[str]:
    """Which processes have written spans; every line is whole."""
    spans = [json.loads(line) for line in (suite.state / "traces.jsonl").read_text().splitlines()]
    return {span["resource"]["attributes"]["service.instance.id"] for span in spans}


def test_a_killed_process_breaks_its_own_connections_and_no_others(paired: Suite) -> None:
    callers = clients(paired, 8)
    before, restarts = processes(paired), logged(paired, "process_ended")
    with Load(*map(by_grpc, callers)) as load:
        load.wait_for(200)
        seen = counted(paired)
        os.kill(before[0], signal.SIGKILL)
        load.wait_for(200)
        wait_until(lambda: "2 of 2" in admin(paired, "/readyz"))
        load.wait_for(100)
    assert logged(paired, "process_ended") == restarts + 1
    assert len(processes(paired)) == 2 and before[1] in processes(paired)
    assert load.wrong == 0
    # One thread has one call in flight; a connection that was about to be accepted is another.
    assert load.breaks <= 2 * len(callers), load.failures
    assert all(isinstance(failure, errors.Unavailable) for failure in load.failures), load.failures
    assert counted(paired) >= seen
    with Client(grpc_address(paired), timeout=30) as client:
        assert [each.id for each in client.status().services if each.service == "gateway"] == ["gateway"]
    for caller in callers:
        caller.close()


def test_a_renewal_fails_no_request(paired: Suite) -> None:
    callers = clients(paired, 4)
    before, renewed, start = processes(paired), logged(paired, "renewed"), counted(paired)
    with Load(*map(by_grpc, callers), by_rest(paired), by_rest(paired)) as load:
        load.wait_for(100)
        paired.kill("gateway", signal.SIGHUP)
        wait_until(lambda: logged(paired, "renewed") == renewed + 1)
        load.wait_for(100)
    assert (load.wrong, load.failures) == (0, [])
    assert not set(before) & set(processes(paired))
    assert counted(paired) == start + load.right, "what the old processes counted is handed over"
    for caller in callers:
        caller.close()


def test_a_process_that_dies_while_etcd_is_away_is_not_missed(paired: Suite) -> None:
    """Its successor knows no model yet: it must not take connections that the other serves."""
    callers = clients(paired, 4)
    with Load(*map(by_grpc, callers)) as load:
        load.wait_for(50)
        paired.kill("etcd")
        try:
            os.kill(processes(paired)[0], signal.SIGKILL)
            wait_until(lambda: "1 of 2" in admin(paired, "/readyz") and "routes" in admin(paired, "/readyz"))
            so_far = len(load.failures)
            others = clients(paired, 8)
            for other in others:
                assert by_grpc(other)()
                assert by_rest(paired)()
                other.close()
            load.wait_for(100)
            assert (load.wrong, len(load.failures)) == (0, so_far)
        finally:
            paired.start("etcd")
            paired.wait_ready("etcd")
        wait_until(lambda: "2 of 2" in admin(paired, "/readyz"))
    for caller in callers:
        caller.close()


def test_what_may_wait_in_all_is_divided(paired: Suite, tmp_path: Path) -> None:
    """Forty callers, each by a connection of its own, ask for a model that no worker has room for."""
    manifest = models.add_one(tmp_path / "huge", "huge") / "model.yaml"
    manifest.write_text(manifest.read_text().replace("memory_bytes: 67108864", f"memory_bytes: {1 << 44}"))
    with Client(grpc_address(paired), timeout=30) as client:
        client.deploy("huge", client.publish(tmp_path / "huge").version, scaling=models_pb2.Scaling(max_replicas=1))
        # Each process hears of it by itself.
        wait_until(lambda: grpc.StatusCode.NOT_FOUND not in {call.code() for call in asked(paired, 16, timeout=2)})
        wait_until(lambda: "penstock_gateway_waiting 0.0" in admin(paired, "/metrics"))
        calls = asked(paired, 40, timeout=60)
        wait_until(lambda: sum(call.done() for call in calls) >= len(calls) - WAITING)
        wait_until(lambda: f"penstock_gateway_waiting {WAITING}.0" in admin(paired, "/metrics"))
        refused = [call.code() for call in calls if call.done()]
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (len(calls) - WAITING)
        for call in calls:
            call.cancel()
        client.undeploy("huge", wait=120)


MANY = 24
"""Connections of which both processes have some, but for one time in eight million."""


def statuses(suite: Suite, method: str, path: str, body: str | None = None) -> list[tuple[int, str]]:
    """What MANY requests are told, each over a connection of its own: status and Retry-After."""
    told = []
    for _ in range(MANY):
        connection = http.client.HTTPConnection("127.0.0.1", suite.ports["gateway_rest"], timeout=10)
        connection.request(method, path, body, {"connection": "close"})
        answer = connection.getresponse()
        told.append((answer.status, answer.headers.get("retry-after", "")))
        connection.close()
    return told


@contextmanager
def limited(suite: Suite, models: Sequence[str], **limits: float) -> Iterator[None]:
    """Both processes know what everybody's tenant may do."""

    def told(status: int) -> bool:
        # Asking whether a model is ready is not counted.
        return statuses(suite, "GET", "/v2/models/add1/ready") == [(status, "")] * MANY

    try:
        with Client(grpc_address(suite), timeout=30) as boss:
            boss.set_tenant("local", [])
            wait_until(lambda: told(403))
            boss.set_tenant("local", models, **limits)  # type: ignore[arg-type]
            wait_until(lambda: told(200))
        yield
    finally:
        with Client(grpc_address(suite), timeout=30) as boss:
            boss.delete_tenant("local")


def test_a_tenant_has_one_rate_over_all_processes(paired: Suite) -> None:
    """All of it by one connection, and no more of it by others."""
    with limited(paired, ["add*"], rate=0.001, burst=10):
        connection = http.client.HTTPConnection("127.0.0.1", paired.ports["gateway_rest"], timeout=10)
        for _ in range(10):
            connection.request("POST", "/v2/models/add1/infer", BODY)
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > 0) == (200, True)
        connection.close()
        told = statuses(paired, "POST", "/v2/models/add1/infer", BODY)
        assert [status for status, _ in told] == [429] * MANY
        assert all(900 < int(after) <= 1000 for _, after in told)
        assert f'penstock_gateway_refused_total{{reason="rate"}} {MANY}.0' in admin(paired, "/metrics")


def test_what_a_tenant_has_under_way_is_counted_over_all_processes(paired: Suite, tmp_path: Path) -> None:
    """Two requests wait for a model that no worker has room for; whoever holds them may be killed."""
    manifest = models.add_one(tmp_path / "vast", "vast") / "model.yaml"
    manifest.write_text(manifest.read_text().replace("memory_bytes: 67108864", f"memory_bytes: {1 << 44}"))

    def held() -> list[Any]:
        """Two that wait."""
        calls: list[Any] = []

        def both() -> bool:
            # A process that does not know the model yet says so.
            calls[:] = [call for call in calls if not call.done()]
            calls.extend(asked(paired, 2 - len(calls), timeout=60, model="vast"))
            return "penstock_gateway_waiting 2.0" in admin(paired, "/metrics")

        wait_until(both)
        return calls

    def told(status: int, after: str = "") -> bool:
        return statuses(paired, "POST", "/v2/models/add1/infer", BODY) == [(status, after)] * MANY

    with limited(paired, ["*"], concurrent=2):
        with Client(grpc_address(paired), timeout=30) as client:
            version = client.publish(tmp_path / "vast").version
            client.deploy("vast", version, scaling=models_pb2.Scaling(max_replicas=1))
        first = held()
        assert told(429, "1")
        first[0].cancel()
        wait_until(lambda: told(200))
        first[1].cancel()
        second = held()
        for pid in processes(paired):
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(replaced, paired, pid), 60)
        wait_until(lambda: all(call.done() for call in second))
        for call in held():
            call.cancel()
        with Client(grpc_address(paired), timeout=30) as client:
            client.undeploy("vast", wait=60)


def replaced(suite: Suite, pid: int) -> bool:
    """Whether another process serves in its place."""
    return pid not in processes(suite) and "2 of 2" in admin(suite, "/readyz")


def asked(suite: Suite, count: int, timeout: float, model: str = "huge") -> list[Any]:
    """Calls of a model that have begun, each on a connection of its own."""
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=[bytes(64)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    apart = [("grpc.use_local_subchannel_pool", 1)]
    channels: list[Any] = [grpc.insecure_channel(grpc_address(suite), options=apart) for _ in range(count)]
    ask = "/inference.GRPCInferenceService/ModelInfer"
    return [channel.unary_unary(ask).future(request.SerializeToString(), timeout=timeout) for channel in channels]
