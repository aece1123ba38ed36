"""ClusterService: the cluster from this scheduler's own mirrors, whether it leads or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from penstock import names
from penstock.cluster import Etcd, keys, records
from penstock.cluster.kv import Put, absent
from penstock.errors import InvalidArgument, NotFound, Unavailable
from penstock.internal.v1.records_pb2 import DrainRecord
from penstock.kit.identity import caller
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import cluster_pb2_grpc as rpc

from .placement import explain
from .status import cluster_status
from .view import ClusterView

SHOWN = 20
"""Workers that an error names."""
INTERVAL = 0.1
"""Seconds between two pictures of a watch at least."""


class ClusterService(rpc.ClusterServiceServicer):
    """Answers from a ClusterView. etcd: where wishes for drains are written down."""

    def __init__(self, view: ClusterView, etcd: Etcd) -> None:
        self._view = view
        self._etcd = etcd
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
                    began = time.perf_counter()
                    status = self._status(request.name)
                    spent = time.perf_counter() - began
                    if last is None or _differ(status, last):
                        yield pb.WatchStatusResponse(status=status)
                        last = status
                    # A picture of a hundred thousand models takes seconds; others want to be served too.
                    await asyncio.sleep(max(INTERVAL, 10 * spent))
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

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Any) -> pb.DrainWorkerResponse:
        """Writes down that a worker should be empty; who asked first is remembered. Raises NotFound, Unavailable."""
        self._must_know()
        known = self._view.intake.planner.known
        if request.worker not in known.workers:
            raise self._no_worker(request.worker)
        key, record = keys.drain(request.worker), DrainRecord(worker=request.worker, caller=caller())
        record.create_time.GetCurrentTime()
        await self._etcd.txn([absent(key)], [Put(key, records.to_json(record))])
        there = known.reported.get(request.worker, set()) | known.told.get(request.worker, {}).keys()
        return pb.DrainWorkerResponse(replicas=len(there))

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Any) -> pb.UndrainWorkerResponse:
        """Takes that back. Raises NotFound, Unavailable."""
        self._must_know()
        if request.worker not in {*self._view.intake.planner.known.workers, *self._view.intake.drains}:
            raise self._no_worker(request.worker)
        await self._etcd.delete(keys.drain(request.worker))
        return pb.UndrainWorkerResponse()

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

    def _no_worker(self, worker: str) -> NotFound:
        there = sorted(self._view.intake.planner.known.workers)
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        listed = f"there are {', '.join(there[:SHOWN])}{more}" if there else "there is none"
        return NotFound(f"worker: none is called {worker[:80]!a}; {listed}", field="worker")

    def _must_know(self) -> None:
        if not self._view.known:
            raise Unavailable("the coordination store has not answered yet", retry_after=1.0)


def _differ(status: pb.ClusterStatus, last: pb.ClusterStatus) -> bool:
    """Whether more than the revision is different."""
    same = pb.ClusterStatus()
    same.CopyFrom(last)
    same.revision = status.revision
    return status != same
