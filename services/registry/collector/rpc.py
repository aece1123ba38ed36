"""StorageService over gRPC: translates, decides nothing."""

from __future__ import annotations

from typing import Any

import grpc

from penstock.kit.identity import caller
from penstock.v1 import storage_pb2 as pb
from penstock.v1 import storage_pb2_grpc as rpc

from .rounds import Rounds

Context = grpc.aio.ServicerContext[Any, Any]


def register(server: grpc.aio.Server, rounds: Rounds) -> tuple[str, ...]:
    """Adds the service and returns its full name."""
    rpc.add_StorageServiceServicer_to_server(StorageServicer(rounds), server)
    return (pb.DESCRIPTOR.services_by_name["StorageService"].full_name,)


class StorageServicer(rpc.StorageServiceServicer):
    """Collections."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds

    async def CollectArtifacts(
        self, request: pb.CollectArtifactsRequest, context: Context
    ) -> pb.CollectArtifactsResponse:
        return pb.CollectArtifactsResponse(collection=await self._rounds.collect(caller(), dry_run=request.dry_run))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        return pb.ListCollectionsResponse(collections=await self._rounds.listed(request.page_size))
