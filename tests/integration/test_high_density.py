"""Many more models than memory: real gateway, scheduler and worker as processes over a real etcd, and requests that do
not know of it. `-s` shows the figures."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import struct
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.errors import PenstockError
from penstock.internal.v1.records_pb2 import DeploymentRecord, WantedVersion
from penstock.oip import inference_pb2 as oip
from penstock.wire.client import Peer
from tests.harness import models
from tests.harness.processes import Service, started
from tests.integration.worker_harness import READY, Bench, bench

MODELS = 30
ROOM = 3
"""Models that find a place at a time."""
SIZE = 256 << 20
SECONDS = 5.0
CALLERS = 4
DEADLINE = 40.0


class Suite:
    """A gateway before one worker, and a scheduler that takes reports."""

    def __init__(self, it: Bench, gateway: str, admin: str) -> None:
        self.worker = it
        self.admin = admin
        self.peer = Peer(gateway)

    async def deploy(self, folder: Path, name: str) -> None:
        """A model that is loaded on demand; returns when the gateway knows it."""
        assigned = self.worker.publish(models.add_one(folder / name, name))
        wanted = WantedVersion(
            version=1, memory_bytes=SIZE, manifest_digest=assigned.manifest_digest, engine="onnx", replicas=0
        )
        wanted.scaling.max_replicas = 1
        record = DeploymentRecord(name=name, generation=1, versions=[wanted], default_version=1)
        await self.worker.store.put(keys.deployment(name), records.to_json(record))
        asked = oip.ModelReadyRequest(name=name).SerializeToString()
        async with asyncio.timeout(60):
            while True:
                deadline = asyncio.get_running_loop().time() + 30
                answer = await self.peer.unary("ModelReady", asked, deadline=deadline, headers={})
                if oip.ModelReadyResponse.FromString(answer.payload).ready:
                    return

    async def ask(self, name: str, number: int, timeout: float = DEADLINE) -> str:
        """The outcome of one request: `ok`, `wrong`, or the error's code."""
        values = struct.pack("<16f", *[float(number)] * 16)
        request = oip.ModelInferRequest(model_name=name, id=str(number), raw_input_contents=[values])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            answer = await self.peer.unary("ModelInfer", request.SerializeToString(), deadline=deadline, headers={})
        except PenstockError as error:
            return f"{error.code.name}: {error.message}"
        response = oip.ModelInferResponse.FromString(answer.payload)
        right = (response.model_name, response.id) == (name, str(number))
        right = right and response.raw_output_contents == [struct.pack("<16f", *[number + 1.0] * 16)]
        return "ok" if right else "wrong"

    def is_loaded(self, name: str) -> bool:
        """By the record of the worker."""
        record = self.worker.record(name)
        return record is not None and record.state == READY

    def waited(self) -> int:
        """Requests that the gateway kept waiting until their model was loaded."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        found = re.search(r'^penstock_gateway_waited_seconds_count\{end="went"\} (\S+)$', text, re.M)
        return int(float(found.group(1))) if found else 0


def states(worker: Service, state: str) -> list[str]:
    """The models that came to that state, in order, as far as the log was read."""
    return [
        str(record["model"])
        for record in worker.records
        if (record.get("event"), record.get("state")) == ("replica_state", state)
    ]


@asynccontextmanager
async def suite(store: Etcd, endpoint: str, folder: Path) -> AsyncIterator[Suite]:
    flags = (f"--etcd={endpoint}", "--admin-port=0", "--port=0")
    async with (
        started("tests.harness.hasty_scheduler", *flags, "--id=scheduler-1") as scheduler,
        started("services.gateway", *flags, "--id=gateway-1", "--http-port=0") as gateway,
        bench(store, endpoint, folder, f"--memory-bytes={ROOM * SIZE}", "--load-timeout=120") as it,
    ):
        await scheduler.event("started", within=60)
        said = await gateway.event("started", within=60)
        made = Suite(it, said["address"], said["admin"])
        reading = [asyncio.create_task(_read(each)) for each in (scheduler, gateway, it.process)]
        try:
            yield made
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            await made.peer.close()


async def _read(service: Service) -> None:
    """Keeps its log from filling the pipe."""
    while await service._next() is not None:
        pass


@pytest.fixture
async def store(clean_etcd: str) -> AsyncIterator[Etcd]:
    made = Etcd([clean_etcd])
    yield made
    await made.close()


async def test_ten_times_more_models_than_memory(store: Etcd, clean_etcd: str, tmp_path: Path) -> None:
    """Requests by Zipf's law; one model is in use all the time and is never taken away."""
    async with suite(store, clean_etcd, tmp_path) as it:
        names = [f"m{number:02}" for number in range(MODELS)]
        for name in names:
            await it.deploy(tmp_path / "models", name)
        draw, numbers = random.Random(4), itertools.count()
        weights = [1.0 / (rank + 1) for rank in range(MODELS - 1)]
        outcomes: list[str] = []
        hits: list[float] = []
        cold: list[float] = []
        end = time.monotonic() + SECONDS

        async def caller() -> None:
            while time.monotonic() < end:
                (name,) = draw.choices(names[:-1], weights)
                for _ in range(10):  # callers of a model come in crowds
                    loaded, began = it.is_loaded(name), time.monotonic()
                    outcomes.append(await it.ask(name, next(numbers)))
                    (hits if loaded else cold).append(time.monotonic() - began)

        async def steady() -> None:
            while callers:
                outcomes.append(await it.ask(names[-1], next(numbers)))
                await asyncio.sleep(0.1)

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        used = asyncio.create_task(steady())
        await asyncio.gather(*callers)
        callers.clear()
        await used
        evicted = states(it.worker.process, "draining")
        loads = states(it.worker.process, "ready")
        print(
            f"\n{MODELS} models, room for {ROOM}: {len(hits) + len(cold)} requests, hit rate "
            f"{len(hits) / (len(hits) + len(cold)):.2f}, "
            f"hit {median(hits) * 1e3:.1f} ms, cold hit {median(cold):.2f} s (at most {max(cold):.2f}), "
            f"{len(loads)} loads, {len(evicted)} evictions, {await asyncio.to_thread(it.waited)} waited"
        )
        assert set(outcomes) == {"ok"}
        assert len(evicted) >= 1, "more was asked for than there is room for"
        assert len(loads) - len(evicted) <= ROOM
        assert loads.count(names[-1]) == 1 and names[-1] not in evicted, "it was in use all the time"


async def test_a_herd_for_a_cold_model_is_one_load(store: Etcd, clean_etcd: str, tmp_path: Path) -> None:
    """Two hundred at once; what others do meanwhile is not hindered."""
    async with suite(store, clean_etcd, tmp_path) as it:
        await it.deploy(tmp_path / "models", "herd")
        outcomes = await asyncio.gather(*(it.ask("herd", number) for number in range(200)))
        assert set(outcomes) == {"ok"}
        assert await asyncio.to_thread(it.waited) > 0
        pulled = [digest for digest, _ in it.worker.shelf.downloads]
        assert len(pulled) == len(set(pulled)) == 2, "manifest and file, once each"
        async with asyncio.timeout(30):
            while "herd" not in states(it.worker.process, "ready"):  # noqa: ASYNC110 - the log is read as it comes
                await asyncio.sleep(0.01)
        assert states(it.worker.process, "ready") == ["herd"]
