"""TenantService over gRPC: checks, translates, decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from penstock import names
from penstock.kit.identity import caller
from penstock.v1 import tenants_pb2 as pb
from penstock.v1 import tenants_pb2_grpc as rpc

from ..threads import Threads
from .checks import checked
from .store import TenantStore

Context = grpc.aio.ServicerContext[Any, Any]


def register(
    server: grpc.aio.Server, tenants: TenantStore, threads: Threads, changed: Callable[[], None]
) -> tuple[str, ...]:
    """Adds the service and returns its full name. changed: called after what the gateways should hear of."""
    rpc.add_TenantServiceServicer_to_server(TenantServicer(tenants, threads, changed), server)
    return (pb.DESCRIPTOR.services_by_name["TenantService"].full_name,)


class TenantServicer(rpc.TenantServiceServicer):
    """Who may do what."""

    def __init__(self, tenants: TenantStore, threads: Threads, changed: Callable[[], None]) -> None:
        self._tenants, self._threads, self._changed = tenants, threads, changed

    async def SetTenant(self, request: pb.SetTenantRequest, context: Context) -> pb.SetTenantResponse:
        tenant = checked(request.tenant)
        # `finally`: a caller that leaves may leave after the transaction.
        try:
            return pb.SetTenantResponse(tenant=await self._threads.run(self._tenants.set, tenant, caller()))
        finally:
            self._changed()

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.GetTenantResponse:
        return pb.GetTenantResponse(tenant=await self._threads.run(self._tenants.get, names.tenant(request.name)))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        tenants, token = await self._threads.run(self._tenants.list, request.page_size, request.page_token)
        return pb.ListTenantsResponse(tenants=tenants, next_page_token=token)

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Context) -> pb.DeleteTenantResponse:
        name = names.tenant(request.name)
        try:
            await self._threads.run(self._tenants.delete, name)
        finally:
            self._changed()
        return pb.DeleteTenantResponse()
