"""ClusterService: the cluster from this scheduler's own mirrors, whether it leads or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from penstock import names
from penstock.errors import InvalidArgument, NotFound, Unavailable
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import cluster_pb2_grpc as rpc

from .placement import explain
from .status import cluster_status
from .view import ClusterView

INTERVAL = 0.1
"""Seconds between two pictures of a watch at least."""


class ClusterService(rpc.ClusterServiceServicer):
    """Answers from a ClusterView."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._closing = False
        self._watching: set[asyncio.Event] = set()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """The cluster now. Raises InvalidArgument for a name that cannot be one, Unavailable before the first read."""
        return pb.GetStatusResponse(status=self._status(request.name))

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        """The cluster now and after every change. Ends with Unavailable when this scheduler stops: watch another."""
        last: pb.ClusterStatus | None = None
        with self._view.listening() as changed:
            self._watching.add(changed)
            try:
                while not self._closing:
                    changed.clear()
                    status = self._status(request.name)
                    if last is None or _differ(status, last):
                        yield pb.WatchStatusResponse(status=status)
                        last = status
                    await asyncio.sleep(INTERVAL)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._view.next_look()):
                            await changed.wait()
            finally:
                self._watching.discard(changed)
        raise Unavailable("this scheduler is stopping; watch again")

    async def ExplainPlacement(self, request: pb.ExplainPlacementRequest, context: Any) -> pb.ExplainPlacementResponse:
        """Why it runs where it does. Raises InvalidArgument, NotFound, or Unavailable before the first read."""
        name = names.model(request.name)
        if request.version < 0:
            raise InvalidArgument(f"version: {request.version} is less than 0", field="version")
        self._must_know()
        self._view.plan()
        versions = explain(self._view.intake.planner, name, request.version)
        if not versions:
            what = f"{name}@{request.version}" if request.version else name
            raise NotFound(f"{what} is not deployed")
        return pb.ExplainPlacementResponse(versions=versions, revision=self._view.revision)

    async def close(self) -> None:
        """Ends all watches."""
        self._closing = True
        for event in self._watching:
            event.set()

    def _status(self, name: str) -> pb.ClusterStatus:
        if name:
            names.model(name)
        self._must_know()
        return cluster_status(self._view.picture(), name)

    def _must_know(self) -> None:
        if not self._view.known:
            raise Unavailable("the coordination store has not answered yet", retry_after=1.0)


def _differ(status: pb.ClusterStatus, last: pb.ClusterStatus) -> bool:
    """Whether more than the revision is different."""
    same = pb.ClusterStatus()
    same.CopyFrom(last)
    same.revision = status.revision
    return status != same
