"""Tells every scheduler what is asked for: one report a second from each gateway and worker, to all of them alike.

A scheduler that follows must know the demand when it begins to lead, so all are told. A report is made once and sent
to each by itself; one that is away, slow or too old to take reports is left alone for a while and harms no other.
Reports are never repeated: the next one is a second away, and says how things are then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

import grpc

from penstock.channel import dial, raising
from penstock.errors import PenstockError, Unsupported
from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1 import demand_pb2_grpc as rpc
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger

INTERVAL: Final = 1.0
COALESCED: Final = 0.02
"""Seconds in which wishes that come together become one report."""
QUIET: Final = 10.0
"""Seconds for which reports without news go on, so that a lost one is made up for."""
TIMEOUT: Final = 2.0
LONGEST_PAUSE: Final = 5.0
"""Seconds for which a scheduler that does not answer is left alone at most."""
OLD_PAUSE: Final = 60.0
"""Seconds for which one is left alone that does not know reports."""

MOST_VERSIONS: Final = 10_000
MOST_GRAY: Final = 1_000
"""Entries of one message at most; a report of more comes in parts."""
MOST_PARTS: Final = 10
"""Of one report; what does not fit into them is left out."""

OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)

log = get_logger()


class Instances(Protocol):
    """The part of Mirror[ServiceRecord] that is used: the schedulers that live."""

    @property
    def records(self) -> Mapping[str, ServiceRecord]: ...


class Reports:
    """What one process tells.

    Args:
        source: id of the process.
        made: the report of the time since the last one, which is over with the call; given the loop's time.
        heard: told each answer.
        token, credentials: as for penstock.channel.dial; credentials are others after a change.
    """

    def __init__(
        self,
        source: str,
        schedulers: Instances,
        made: Callable[[float], pb.ReportDemandRequest],
        *,
        heard: Callable[[pb.ReportDemandResponse], None] = lambda answer: None,
        token: str = "",
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
        interval: float = INTERVAL,
    ) -> None:
        self._source, self._schedulers, self._made, self._heard = source, schedulers, made, heard
        self._token, self._credentials = token, credentials
        self._dialled_with = credentials()
        self._interval = interval
        self._soon = asyncio.Event()
        self._known: dict[str, _Scheduler] = {}
        self._clock = asyncio.get_running_loop().time
        self._news_at = self._clock() - QUIET

    def soon(self) -> None:
        """Somebody cannot wait for the next report."""
        self._soon.set()

    async def run(self) -> None:
        """Reports until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._due()
                now = self._clock()
                report = self._made(now)
                report.source = self._source
                if report.versions or report.gray:
                    self._news_at = now
                if now - self._news_at > QUIET:
                    continue
                parts = parts_of(report)
                for scheduler in await self._there():
                    if scheduler.free(now):
                        group.create_task(scheduler.tell(parts, self._heard))

    async def close(self) -> None:
        """Closes the connections."""
        while self._known:
            await self._known.popitem()[1].channel.close()

    async def _due(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval):
                await self._soon.wait()
                await asyncio.sleep(COALESCED)
        self._soon.clear()

    async def _there(self) -> list[_Scheduler]:
        """The schedulers that live. One that was started anew, or wants other credentials, is another."""
        credentials = self._credentials()
        renewed, self._dialled_with = credentials is not self._dialled_with, credentials
        records = {record.id: record for record in self._schedulers.records.values()}
        for name in list(self._known):
            if renewed or records.get(name) != self._known[name].record:
                await self._known.pop(name).channel.close()
        for name, record in records.items():
            if name not in self._known:
                channel = dial(record.address, token=self._token, credentials=credentials, options=OPTIONS)
                self._known[name] = _Scheduler(record, channel, self._clock)
        return list(self._known.values())


def parts_of(report: pb.ReportDemandRequest) -> Sequence[pb.ReportDemandRequest]:
    """The report in messages that a scheduler takes: itself, if it is one. Of more than all parts hold, what is waited
    for and asked for most is told."""
    count = max(-(-len(report.versions) // MOST_VERSIONS), -(-len(report.gray) // MOST_GRAY))
    if count <= 1:
        return [report]
    versions: Sequence[pb.VersionDemand] = report.versions
    if count > MOST_PARTS:
        count = MOST_PARTS
        versions = sorted(versions, key=lambda told: (told.waiting, told.outstanding, told.requests), reverse=True)
    return [
        pb.ReportDemandRequest(
            source=report.source,
            seconds=report.seconds,
            versions=versions[part * MOST_VERSIONS : (part + 1) * MOST_VERSIONS],
            gray=report.gray[part * MOST_GRAY : (part + 1) * MOST_GRAY],
            parts=count,
            part=part,
        )
        for part in range(count)
    ]


class _Scheduler:
    """One that is told. record: as it was when the channel was made."""

    def __init__(self, record: ServiceRecord, channel: grpc.aio.Channel, clock: Callable[[], float]) -> None:
        self.record, self.channel = record, channel
        self._clock = clock
        self._stub: rpc.DemandServiceAsyncStub = rpc.DemandServiceStub(channel)
        self._pauses = Backoff(INTERVAL, LONGEST_PAUSE)
        self._busy = False
        self._next = 0.0

    def free(self, now: float) -> bool:
        """Whether it may be told something now: it has answered the last report, and is not left alone."""
        return not self._busy and now >= self._next

    async def tell(
        self, parts: Sequence[pb.ReportDemandRequest], heard: Callable[[pb.ReportDemandResponse], None]
    ) -> None:
        """One report, of one part or more; does not raise for what becomes of it."""
        self._busy = True
        try:
            with raising():
                for part in parts:
                    answer = await self._stub.ReportDemand(part, timeout=TIMEOUT)
        except (PenstockError, grpc.aio.UsageError) as problem:
            pause = OLD_PAUSE if isinstance(problem, Unsupported) else self._pauses.next()
            self._next = self._clock() + pause
            log.debug("report_not_taken", scheduler=self.record.id, problem=str(problem), again_in=round(pause, 1))
        else:
            self._pauses.reset()
            heard(answer)
        finally:
            self._busy = False
