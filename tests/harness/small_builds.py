"""The small gateway's build, storage and tenant services: whatever is asked for is done at once, and every gate
passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from penstock.v1 import builds_pb2 as pb
from penstock.v1 import builds_pb2_grpc, storage_pb2, storage_pb2_grpc, tenants_pb2, tenants_pb2_grpc


class Builds(builds_pb2_grpc.BuildServiceServicer):
    """Jobs by id."""

    def __init__(self) -> None:
        self.made: dict[str, pb.Build] = {}
        self.asked: list[pb.CreateBuildRequest] = []

    async def CreateBuild(self, request: Any, context: Any) -> pb.CreateBuildResponse:
        self.asked.append(request)
        build = pb.Build(id=f"{len(self.made) + 1:032x}", name=request.name, source_version=1, result_version=2)
        build.state, build.gate = pb.BUILD_STATE_SUCCEEDED, pb.GATE_VERDICT_PASSED
        for step in request.spec.steps:
            build.steps.add(id=step.step, step=step.step, state=pb.BUILD_STATE_SUCCEEDED)
        self.made[build.id] = build
        return pb.CreateBuildResponse(build=build)

    async def GetBuild(self, request: Any, context: Any) -> pb.GetBuildResponse:
        return pb.GetBuildResponse(build=self.made[request.id])

    async def WatchBuild(self, request: Any, context: Any) -> AsyncIterator[pb.WatchBuildResponse]:
        yield pb.WatchBuildResponse(build=self.made[request.id])

    async def ListBuilds(self, request: Any, context: Any) -> pb.ListBuildsResponse:
        return pb.ListBuildsResponse(builds=list(self.made.values()))

    async def CancelBuild(self, request: Any, context: Any) -> pb.CancelBuildResponse:
        return pb.CancelBuildResponse(build=self.made[request.id])

    async def FindEngine(self, request: Any, context: Any) -> pb.FindEngineResponse:
        return pb.FindEngineResponse()

    async def ListOverrides(self, request: Any, context: Any) -> pb.ListOverridesResponse:
        return pb.ListOverridesResponse()


class Storage(storage_pb2_grpc.StorageServiceServicer):
    """Frees one artifact with every collection."""

    def __init__(self) -> None:
        self.made: list[storage_pb2.Collection] = []

    async def CollectArtifacts(self, request: Any, context: Any) -> storage_pb2.CollectArtifactsResponse:
        collection = storage_pb2.Collection(who="me", dry_run=request.dry_run, freed_artifacts=1, freed_bytes=2048)
        collection.kept_artifacts, collection.kept_bytes["versions"] = 2, 100
        collection.largest.add(digest="sha256:" + "a" * 64, size_bytes=2048)
        if not request.dry_run:
            self.made.append(collection)
        return storage_pb2.CollectArtifactsResponse(collection=collection)

    async def ListCollections(self, request: Any, context: Any) -> storage_pb2.ListCollectionsResponse:
        return storage_pb2.ListCollectionsResponse(collections=self.made[::-1])


class Tenants(tenants_pb2_grpc.TenantServiceServicer):
    """Keeps what is said, unchecked."""

    def __init__(self) -> None:
        self.said: dict[str, tenants_pb2.Tenant] = {}

    async def SetTenant(self, request: Any, context: Any) -> tenants_pb2.SetTenantResponse:
        self.said[request.tenant.name] = request.tenant
        return tenants_pb2.SetTenantResponse(tenant=request.tenant)

    async def GetTenant(self, request: Any, context: Any) -> tenants_pb2.GetTenantResponse:
        return tenants_pb2.GetTenantResponse(tenant=self.said[request.name])

    async def ListTenants(self, request: Any, context: Any) -> tenants_pb2.ListTenantsResponse:
        return tenants_pb2.ListTenantsResponse(tenants=[self.said[name] for name in sorted(self.said)])

    async def DeleteTenant(self, request: Any, context: Any) -> tenants_pb2.DeleteTenantResponse:
        self.said.pop(request.name, None)
        return tenants_pb2.DeleteTenantResponse()
