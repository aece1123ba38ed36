"""The calls of the tenant service: who may call which models, and how much of that at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from penstock import names
from penstock.client.connection import Connection
from penstock.v1 import tenants_pb2 as pb


class TenantCalls:
    """What the registry's tenant service answers; every call may raise any class of `penstock.errors`."""

    _connection: Connection

    async def set_tenant(
        self,
        name: str,
        models: Iterable[str],
        *,
        rate: float = 0.0,
        burst: int = 0,
        concurrent: int = 0,
        timeout: float | None = None,
    ) -> pb.Tenant:
        """Says what a caller may do, in place of all that was said before, and returns it as recorded. Gateways know a
        moment later. Safe to repeat.

        Args:
            name: the caller's name, or `default` for each caller of whom nothing else is said.
            models: names, beginnings of names such as `fraud-*`, or `*`; none: it may call no model.
            rate: requests a second, in the long run; 0 for no limit.
            burst: requests at once after a pause; 0 for what the rate allows in a second.
            concurrent: requests under way at the same time; 0 for no limit.
            timeout: seconds of the call.

        Raises:
            InvalidArgument, with the field.
        """
        patterns = [models] if isinstance(models, str) else models
        tenant = pb.Tenant(name=names.tenant(name), models=patterns, rate=rate, burst=burst, concurrent=concurrent)
        stub = self._connection.stubs.tenants.SetTenant
        request = pb.SetTenantRequest(tenant=tenant)
        return (await self._connection.read_only(stub, request, timeout)).tenant

    async def tenant(self, name: str, *, timeout: float | None = None) -> pb.Tenant:
        """What is said of one caller; raises NotFound."""
        request = pb.GetTenantRequest(name=names.tenant(name))
        return (await self._connection.read_only(self._connection.stubs.tenants.GetTenant, request, timeout)).tenant

    async def tenants(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncGenerator[pb.Tenant]:
        """Tenants by name, page after page."""
        token = ""
        while True:
            request = pb.ListTenantsRequest(page_size=page_size, page_token=token)
            page = await self._connection.read_only(self._connection.stubs.tenants.ListTenants, request, timeout)
            for tenant in page.tenants:
                yield tenant
            token = page.next_page_token
            if not token:
                return

    async def delete_tenant(self, name: str, *, timeout: float | None = None) -> None:
        """Forgets what was said of a caller, for whom `default` holds then; what is not there is fine."""
        request = pb.DeleteTenantRequest(name=names.tenant(name))
        await self._connection.read_only(self._connection.stubs.tenants.DeleteTenant, request, timeout)
