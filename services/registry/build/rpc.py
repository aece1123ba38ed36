"""BuildService over gRPC: checks names, translates, decides nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from penstock import names
from penstock.errors import InvalidArgument
from penstock.kit.identity import caller
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import builds_pb2_grpc as rpc

from .builds import Builds

Context = grpc.aio.ServicerContext[Any, Any]

_ID: Final = re.compile(r"[0-9a-f]{32}")
_MOST_TEXT: Final = 1024


def register(server: grpc.aio.Server, builds: Builds) -> tuple[str, ...]:
    """Adds the service and returns its full name."""
    rpc.add_BuildServiceServicer_to_server(BuildServicer(builds), server)
    return (pb.DESCRIPTOR.services_by_name["BuildService"].full_name,)


class BuildServicer(rpc.BuildServiceServicer):
    """Jobs, engines, overrides."""

    def __init__(self, builds: Builds) -> None:
        self._builds = builds

    async def CreateBuild(self, request: pb.CreateBuildRequest, context: Context) -> pb.CreateBuildResponse:
        name = names.model(request.name)
        version = names.version_or_alias(request.version) if request.version else None
        key = text(request.request_key, "request_key", 128)
        spec = request.spec if request.HasField("spec") else None
        build = await self._builds.create(name, version, spec, request_key=key, creator=caller())
        return pb.CreateBuildResponse(build=build)

    async def GetBuild(self, request: pb.GetBuildRequest, context: Context) -> pb.GetBuildResponse:
        return pb.GetBuildResponse(build=await self._builds.get(_id(request.id)))

    async def ListBuilds(self, request: pb.ListBuildsRequest, context: Context) -> pb.ListBuildsResponse:
        name = names.model(request.name) if request.name else ""
        builds, token = await self._builds.list_builds(name, request.page_size, request.page_token)
        return pb.ListBuildsResponse(builds=builds, next_page_token=token)

    async def WatchBuild(self, request: pb.WatchBuildRequest, context: Context) -> AsyncIterator[pb.WatchBuildResponse]:
        if request.offset < 0:
            raise InvalidArgument(f"offset: {request.offset} is less than 0", field="offset")
        async with aclosing(self._builds.watch(_id(request.id), request.offset)) as answers:
            async for answer in answers:
                yield answer

    async def CancelBuild(self, request: pb.CancelBuildRequest, context: Context) -> pb.CancelBuildResponse:
        return pb.CancelBuildResponse(build=await self._builds.cancel(_id(request.id)))

    async def FindEngine(self, request: pb.FindEngineRequest, context: Context) -> pb.FindEngineResponse:
        names.digest(request.source_digest, "source_digest")
        for field in ("builder", "builder_version", "architecture", "precision", "profile"):
            text(getattr(request, field), field, _MOST_TEXT)
        return pb.FindEngineResponse(engine=await self._builds.find_engine(request))

    async def ListOverrides(self, request: pb.ListOverridesRequest, context: Context) -> pb.ListOverridesResponse:
        name = names.model(request.name) if request.name else ""
        return pb.ListOverridesResponse(overrides=await self._builds.overrides(name, request.page_size))


def text(given: str, field: str, limit: int) -> str:
    """The text itself if it is short and printable; raises InvalidArgument."""
    if len(given) > limit or not given.isprintable():
        raise InvalidArgument(f"{field}: use at most {limit} printable characters", field=field)
    return given


def _id(given: str) -> str:
    if not _ID.fullmatch(given):
        raise InvalidArgument("id: a build is named by 32 hex digits", field="id")
    return given
