"""A gateway as it is run, with callers who show tokens: each is let in by what is said of him, over gRPC and REST."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from penstock.cluster import Etcd, keys, records
from penstock.errors import NotFound, PenstockError, PermissionDenied, ResourceExhausted
from penstock.internal.v1.records_pb2 import TenantRecord
from penstock.oip import inference_pb2 as oip
from penstock.wire.client import Peer
from tests.harness.etcd import free_port
from tests.harness.processes import started

REQUEST = oip.ModelInferRequest(model_name="fraud-7").SerializeToString()


async def asked(address: str, token: str) -> PenstockError:
    """What somebody is told by gRPC."""
    peer = Peer(address, token=token)
    try:
        await peer.unary("ModelInfer", REQUEST, deadline=asyncio.get_running_loop().time() + 30, headers={})
    except PenstockError as told:
        return told
    finally:
        await peer.close()
    raise AssertionError("there is no such model")


async def by_rest(port: int, token: str) -> httpx.Response:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=30) as client:
        return await client.post(f"http://127.0.0.1:{port}/v2/models/fraud-7/infer", json={"inputs": []})


async def test_each_caller_is_let_in_by_his_own_name(clean_etcd: str, tmp_path: Path) -> None:
    callers, port = tmp_path / "callers", free_port()
    names = ("fraud-team", "ads", "nobody", "fraud-team")
    lines = [f"{name} {hashlib.sha256(str(number).encode()).hexdigest()}" for number, name in enumerate(names)]
    callers.write_text("\n".join(lines))
    store = Etcd([clean_etcd])
    for record in (
        TenantRecord(name="fraud-team", models=["fraud-*"], rate=0.01, burst=2),
        TenantRecord(name="ads", models=["ads-*"]),
        TenantRecord(name="default"),
    ):
        await store.put(keys.tenant(record.name), records.to_json(record))
    flags = (f"--etcd={clean_etcd}", "--port=0", f"--http-port={port}", "--admin-port=0", f"--auth-file={callers}")
    async with started("services.gateway", *flags) as process:
        address = (await process.event("started", within=60))["address"]
        while "has not been read" in (told := await asked(address, "0")).message:
            pass
        assert isinstance(told, NotFound)
        for number in ("1", "2"):
            told = await asked(address, number)
            assert isinstance(told, PermissionDenied) and names[int(number)] in told.message
            assert (await by_rest(port, number)).status_code == 403
        # Another token of the same name is the same tenant: that was the second of two.
        assert (await by_rest(port, "3")).status_code == 404
        told = await asked(address, "3")
        assert isinstance(told, ResourceExhausted) and told.retry_after == pytest.approx(100, abs=30)
        reply = await by_rest(port, "0")
        assert reply.status_code == 429 and 70 <= int(reply.headers["retry-after"]) <= 100
    await store.close()
