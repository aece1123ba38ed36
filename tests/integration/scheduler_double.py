"""A scheduler as gateways and workers meet it: a real gRPC server that keeps reports and answers what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1 import demand_pb2_grpc as rpc
from penstock.internal.v1.records_pb2 import ServiceRecord
from tests.harness.waiting import Changed


class SchedulerDouble(rpc.DemandServiceServicer):
    """reports: in order of arrival; estimates: what it answers; callers: credentials that it was shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.reports: list[pb.ReportDemandRequest] = []
        self.estimates: Sequence[pb.LoadEstimate] = ()
        self.callers: set[str] = set()
        self.changed = Changed()

    async def ReportDemand(self, request: pb.ReportDemandRequest, context: Any) -> pb.ReportDemandResponse:
        self.callers.add(dict(context.invocation_metadata()).get("authorization", ""))
        self.reports.append(request)
        self.changed()
        return pb.ReportDemandResponse(estimates=self.estimates)

    @property
    def record(self) -> ServiceRecord:
        """As it is announced."""
        return ServiceRecord(service="scheduler", id=self.name, address=self.address)

    def of(self, name: str, version: int = 1) -> list[pb.VersionDemand]:
        """What was said of a version."""
        told = [each for report in self.reports for each in report.versions]
        return [each for each in told if (each.name, each.version) == (name, version)]


@asynccontextmanager
async def scheduler(name: str = "scheduler-1", *, port: int = 0, old: bool = False) -> AsyncIterator[SchedulerDouble]:
    """One that listens. old: of a release that knew no reports."""
    made = SchedulerDouble(name)
    server = grpc.aio.server()
    if not old:
        rpc.add_DemandServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)
