"""The calls of the storage service: free the registry's disk of what nobody needs."""

from __future__ import annotations

from penstock.client.connection import Connection
from penstock.v1 import storage_pb2 as pb


class StorageCalls:
    """What the registry's storage service answers; every call may raise any class of `penstock.errors`."""

    _connection: Connection

    async def collect(self, *, dry_run: bool = False, timeout: float | None = None) -> pb.Collection:
        """Frees what nothing names and nobody has uploaded or asked for lately, and what the cache of builds cannot
        hold; says what that was. It goes on when this call ends before it.

        Args:
            dry_run: only say what would go.
            timeout: seconds of the call.

        Raises:
            Unavailable while another collection is under way.
        """
        request = pb.CollectArtifactsRequest(dry_run=dry_run)
        stub = self._connection.stubs.storage.CollectArtifacts
        return (await self._connection.call(stub, request, timeout=timeout)).collection

    async def collections(self, *, limit: int = 0, timeout: float | None = None) -> list[pb.Collection]:
        """The collections of late, newest first: `limit` at most, 1 to 1000; 0 for 100."""
        request = pb.ListCollectionsRequest(page_size=limit)
        stub = self._connection.stubs.storage.ListCollections
        return list((await self._connection.read_only(stub, request, timeout)).collections)
