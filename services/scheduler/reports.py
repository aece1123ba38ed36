"""DemandService: takes in what gateways and workers see, and answers when those who wait will be served.

For processes of the cluster: it is called with a service's token, and no gateway passes it on.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from penstock import names
from penstock.cluster.reports import MOST_GRAY, MOST_PARTS, MOST_VERSIONS
from penstock.errors import InvalidArgument
from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1 import demand_pb2_grpc as rpc

from .demand import Said
from .parts import Parts, Report
from .snapshot import VersionId
from .view import ClusterView

MOST_SECONDS: Final = 60.0
"""Length of an interval at most: what is older says nothing about now."""
MOST_SOURCE: Final = 128
"""Characters of a source's id at most."""


class DemandService(rpc.DemandServiceServicer):
    """Tells a ClusterView's judge."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._parts = Parts()

    async def ReportDemand(self, request: pb.ReportDemandRequest, context: Any) -> pb.ReportDemandResponse:
        """One interval of one process, or a part of it. Raises InvalidArgument for a report that none of ours would
        send."""
        _check(request)
        told = Report(
            {_version(item): _said(item, request.seconds) for item in request.versions},
            [(_version(item), item.worker) for item in request.gray],
        )
        judge, now = self._view.judge, asyncio.get_running_loop().time()
        whole = self._parts.take(request.source, request.parts, request.part, told, now)
        if whole is None:
            return pb.ReportDemandResponse()
        judge.report(request.source, whole.versions, whole.gray, now)
        waited = [version for version, said in whole.versions.items() if said.waiting]
        if not waited or not self._view.known:
            return pb.ReportDemandResponse()
        self._view.look()
        self._view.plan()
        found = judge.estimates(waited, now, leading=self._view.decides)
        return pb.ReportDemandResponse(
            estimates=[
                pb.LoadEstimate(
                    name=version.name, version=version.version, seconds=estimate.seconds, obstacle=estimate.obstacle
                )
                for version, estimate in found.items()
            ]
        )


def _check(request: pb.ReportDemandRequest) -> None:
    """Bounds, before anything is made of it."""
    if not 0 < len(request.source) <= MOST_SOURCE:
        raise InvalidArgument(f"source: has {len(request.source)} characters, not 1 to {MOST_SOURCE}", field="source")
    if not 0 < request.seconds <= MOST_SECONDS:
        raise InvalidArgument(
            f"seconds: {request.seconds} is not above 0 and at most {MOST_SECONDS:g}", field="seconds"
        )
    if not 0 <= request.parts <= MOST_PARTS:
        raise InvalidArgument(f"parts: {request.parts} is not 0 to {MOST_PARTS}", field="parts")
    if not 0 <= request.part < max(request.parts, 1):
        raise InvalidArgument(f"part: {request.part} is none of {request.parts} parts, from 0", field="part")
    if len(request.versions) > MOST_VERSIONS:
        raise InvalidArgument(f"versions: {len(request.versions)} of at most {MOST_VERSIONS}", field="versions")
    if len(request.gray) > MOST_GRAY:
        raise InvalidArgument(f"gray: {len(request.gray)} of at most {MOST_GRAY}", field="gray")


def _version(item: pb.VersionDemand | pb.GrayReplica) -> VersionId:
    if item.version < 1:
        raise InvalidArgument(f"version: {item.version} is less than 1", field="version")
    return VersionId(names.model(item.name), item.version)


def _said(item: pb.VersionDemand, seconds: float) -> Said:
    numbers = (
        item.requests,
        item.outstanding,
        item.waiting,
        item.idle_seconds,
        item.dequeued,
        item.queue_seconds,
        item.busy_seconds,
    )
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise InvalidArgument(f"versions: {item.name} has a number that is less than 0 or none", field="versions")
    return Said(
        rate=item.requests / seconds,
        outstanding=item.outstanding,
        waiting=item.waiting,
        idle_seconds=item.idle_seconds,
        dequeue_rate=item.dequeued / seconds,
        queue_seconds=item.queue_seconds / item.dequeued if item.dequeued else 0.0,
        busy=item.busy_seconds / seconds,
    )
