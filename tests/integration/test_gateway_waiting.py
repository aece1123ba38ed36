"""A gateway process with requests that wait for a model, told to stop: they are told why, and it ends well."""

from __future__ import annotations

import asyncio
import signal

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import DeploymentRecord, WantedVersion
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer
from penstock.wire.client import Peer
from tests.harness.processes import started
from tests.integration.scheduler_double import scheduler


async def test_a_gateway_that_stops_lets_them_wait_as_long_as_it_drains(clean_etcd: str) -> None:
    store = Etcd([clean_etcd])
    flags = (f"--etcd={clean_etcd}", "--port=0", "--http-port=0", "--admin-port=0", "--id=gateway-1")
    async with scheduler() as boss, started("services.gateway", *flags, "--drain-seconds=3") as process:
        await store.put(keys.service("scheduler", boss.name), records.to_json(boss.record))
        wanted = WantedVersion(version=1)
        wanted.scaling.max_replicas = 1
        record = DeploymentRecord(name="digits", versions=[wanted], default_version=1)
        await store.put(keys.deployment("digits"), records.to_json(record))
        peer = Peer((await process.event("started"))["address"])

        async def ask(method: str, payload: bytes) -> Answer:
            return await peer.unary(method, payload, deadline=asyncio.get_running_loop().time() + 60, headers={})

        asked = oip.ModelReadyRequest(name="digits").SerializeToString()
        while not oip.ModelReadyResponse.FromString((await ask("ModelReady", asked)).payload).ready:
            pass  # its table is being read
        payload = oip.ModelInferRequest(model_name="digits").SerializeToString()
        waits = [asyncio.create_task(ask("ModelInfer", payload)) for _ in range(5)]
        await boss.changed.until(lambda: any(told.waiting == 5 for told in boss.of("digits")))
        assert boss.reports[-1].source == "gateway-1"
        process.send(signal.SIGTERM)
        for wait in waits:
            with pytest.raises(Unavailable, match="version 1 of model 'digits' is not loaded"):
                await wait
        assert await process.ended() == 0
        await peer.close()
    await store.close()
