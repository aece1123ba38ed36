"""AsyncClient: the platform from asyncio.

async with AsyncClient("gateway:8001") as client:
    result = await client.infer("digits", {"image": png_bytes})
    print(result["label"])
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from penstock.client.builds import BuildCalls
from penstock.client.catalogue import CatalogueCalls
from penstock.client.cluster import ClusterCalls
from penstock.client.connection import DEFAULT_TIMEOUT, Connection
from penstock.client.inference import InferenceCalls
from penstock.client.payload import Specs
from penstock.client.storage import StorageCalls
from penstock.client.tenants import TenantCalls
from penstock.client.tls import Tls
from penstock.client.trace import current_traceparent


class AsyncClient(InferenceCalls, CatalogueCalls, BuildCalls, StorageCalls, TenantCalls, ClusterCalls):
    """One gateway, over one connection that is shared by any number of concurrent calls.

    Used on one event loop. Connects with the first call, and again by itself after a break.

    Args:
        address: host:port; default: environment PENSTOCK_ADDRESS, else 127.0.0.1:8001.
        token: bearer credential; default: environment PENSTOCK_TOKEN, else none. Kept off logs and messages.
        timeout: seconds for calls that name none; None for no deadline.
        retries: how often inference and read-only calls are tried again when the answer is Unavailable, within their
            deadline and with growing, jittered pauses.
        tls_ca: PEM file of the CAs that the gateway's certificate is verified by, which also means TLS; default:
            environment PENSTOCK_TLS_CA, else plain text. Read once; raises InvalidArgument when it cannot be.
        tls_cert, tls_key: PEM files to show to a gateway that asks callers for certificates; default: environment
            PENSTOCK_TLS_CERT and PENSTOCK_TLS_KEY, else none.
        trace_context: gives the W3C traceparent of a call, or None; default: the current OpenTelemetry span of callers
            who use OpenTelemetry.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = 2,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        trace_context: Callable[[], str | None] = current_traceparent,
    ) -> None:
        self._connection = Connection(
            address, token, timeout, retries, trace_context, Tls.of(tls_ca, tls_cert, tls_key)
        )
        self._specs: dict[tuple[str, str], Specs] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled. Safe to repeat."""
        await self._connection.close()

    @property
    def address(self) -> str:
        """The gateway's host:port."""
        return self._connection.address
