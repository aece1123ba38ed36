"""TenantService over real gRPC, on a real database: as callers, by both faces of the SDK, and by the command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock import errors
from penstock.channel import dial, raising
from penstock.client import AsyncClient, Client
from penstock.kit.identity import Authenticator
from penstock.kit.server import build_server
from penstock.v1 import tenants_pb2 as pb
from penstock.v1 import tenants_pb2_grpc as rpc
from services.registry.database import Database
from services.registry.tenants.rpc import register
from services.registry.tenants.store import TenantStore
from services.registry.threads import Threads


@pytest.fixture
def changes() -> list[None]:
    """How often the projector would have been told."""
    return []


@pytest.fixture
async def address(tmp_path: Path, changes: list[None]) -> AsyncIterator[str]:
    """Of a registry's service."""
    threads, database = Threads("test", 2), Database(f"sqlite:///{tmp_path}/registry.db")
    await threads.run(database.migrate)
    server, _ = build_server(Authenticator(""))
    assert register(server, TenantStore(database), threads, lambda: changes.append(None)) == (
        "penstock.v1.TenantService",
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(5)
    await threads.run(database.close)
    threads.close()


@pytest.fixture
async def tenants(address: str) -> AsyncIterator[rpc.TenantServiceAsyncStub]:
    async with dial(address) as channel:
        yield rpc.TenantServiceStub(channel)


async def test_a_tenant_is_set_shown_listed_and_deleted(
    tenants: rpc.TenantServiceAsyncStub, changes: list[None]
) -> None:
    said = pb.Tenant(name="fraud-team", models=["fraud-*"], rate=2.5, concurrent=4)
    made = (await tenants.SetTenant(pb.SetTenantRequest(tenant=said))).tenant
    assert (made.burst, made.who, made.HasField("update_time")) == (3, "local", True)
    assert (await tenants.SetTenant(pb.SetTenantRequest(tenant=said))).tenant == made
    assert (await tenants.GetTenant(pb.GetTenantRequest(name="fraud-team"))).tenant == made
    other = (await tenants.SetTenant(pb.SetTenantRequest(tenant=pb.Tenant(name="default")))).tenant
    first = await tenants.ListTenants(pb.ListTenantsRequest(page_size=1))
    rest = await tenants.ListTenants(pb.ListTenantsRequest(page_size=1, page_token=first.next_page_token))
    assert [*first.tenants, *rest.tenants] == [other, made] and not rest.next_page_token
    assert len(changes) == 3
    for _ in range(2):
        await tenants.DeleteTenant(pb.DeleteTenantRequest(name="fraud-team"))
    assert len(changes) == 5
    with pytest.raises(errors.NotFound):
        await asked(tenants, "fraud-team")


async def asked(tenants: rpc.TenantServiceAsyncStub, name: str) -> pb.Tenant:
    with raising():
        return (await tenants.GetTenant(pb.GetTenantRequest(name=name))).tenant


async def test_what_is_refused_names_its_field(tenants: rpc.TenantServiceAsyncStub, changes: list[None]) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not 0") as raised, raising():
        await tenants.SetTenant(pb.SetTenantRequest(tenant=pb.Tenant(name="a", rate=-1)))
    assert raised.value.field == "tenant.rate" and not changes
    with pytest.raises(errors.InvalidArgument):
        await asked(tenants, "a/b")
    with pytest.raises(errors.InvalidArgument), raising():
        await tenants.DeleteTenant(pb.DeleteTenantRequest(name=""))


async def test_both_faces_of_the_sdk(address: str) -> None:
    async with AsyncClient(address) as client:
        made = await client.set_tenant("fraud-team", ["fraud-*", "digits"], rate=2.5, burst=5, concurrent=4)
        assert (list(made.models), made.rate, made.burst, made.concurrent) == (["fraud-*", "digits"], 2.5, 5, 4)
        assert await client.tenant("fraud-team") == made
        # A text is one pattern, and not its letters.
        assert list((await client.set_tenant("one", "fraud-*")).models) == ["fraud-*"]
        with pytest.raises(errors.InvalidArgument) as raised:
            await client.set_tenant("one", ["*"], burst=3)
        assert raised.value.field == "tenant.burst"

    def waiting() -> list[str]:
        with Client(address) as client:
            client.set_tenant("default", [])
            client.delete_tenant("one")
            assert client.tenant("fraud-team") == made
            return [tenant.name for tenant in client.tenants(page_size=1)]

    assert await asyncio.to_thread(waiting) == ["default", "fraud-team"]


async def test_the_command(address: str) -> None:
    async def penstock(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-m", "penstock.cli", "tenant", *arguments,
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PENSTOCK_ADDRESS": address},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    assert await penstock("list") == (0, "nothing is said of anybody: everything is allowed\n", "")
    code, out, err = await penstock("set", "fraud-team", "--model", "fraud-*", "--model", "digits", "--rate", "2.5")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:6] == ["fraud-team", "fraud-*,", "digits", "2.5/s", "3", "any"]
    code, out, _ = await penstock("set", "default", "--no-models", "--concurrent", "7", "--json")
    said = json.loads(out)["tenant"]
    assert code == 0 and (said["name"], said["models"], said["concurrent"], said["who"]) == ("default", [], 7, "local")
    code, out, _ = await penstock("list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["TENANT", "default", "fraud-team"]
    assert "none" in out.splitlines()[1]
    code, out, _ = await penstock("show", "fraud-team", "--json")
    assert code == 0 and json.loads(out)["tenant"]["models"] == ["fraud-*", "digits"]
    for _ in range(2):
        assert await penstock("delete", "fraud-team") == (0, "nothing is said of fraud-team any more\n", "")
    assert (await penstock("show", "fraud-team"))[0] == 3
    code, _, err = await penstock("set", "a", "--model", "Fraud-*")
    assert code == 1 and "tenant.models[0]" in err
    for wrong in (["set", "a"], ["set", "a", "--model", "x", "--no-models"], ["set", "a/b", "--model", "x"], []):
        assert (await penstock(*wrong))[0] == 2, wrong
