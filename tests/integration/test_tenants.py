"""TenantService over real gRPC, on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock import errors
from penstock.channel import dial, raising
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
async def tenants(tmp_path: Path, changes: list[None]) -> AsyncIterator[rpc.TenantServiceAsyncStub]:
    threads, database = Threads("test", 2), Database(f"sqlite:///{tmp_path}/registry.db")
    await threads.run(database.migrate)
    server, _ = build_server(Authenticator(""))
    assert register(server, TenantStore(database), threads, lambda: changes.append(None)) == (
        "penstock.v1.TenantService",
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        yield rpc.TenantServiceStub(channel)
    await server.stop(5)
    await threads.run(database.close)
    threads.close()


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
