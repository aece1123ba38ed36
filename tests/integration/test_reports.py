"""Reports over real gRPC: every scheduler is told, and one that cannot be told harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from penstock.cluster import reports
from penstock.cluster.reports import Reports
from penstock.internal.v1 import demand_pb2 as pb
from penstock.internal.v1.records_pb2 import ServiceRecord
from tests.harness.etcd import free_port
from tests.harness.waiting import Changed
from tests.integration.scheduler_double import scheduler


@dataclass
class Known:
    """What Reports reads of a Mirror."""

    records: dict[str, ServiceRecord] = field(default_factory=dict)

    def add(self, *records: ServiceRecord) -> None:
        self.records |= {record.id: record for record in records}


class Source:
    """A process that has something to tell as long as `busy`."""

    def __init__(self) -> None:
        self.busy = True
        self.made = 0
        self.heard: list[pb.ReportDemandResponse] = []
        self.changed = Changed()

    async def has_made(self, more: int) -> None:
        """Waits for so many reports more."""
        enough = self.made + more
        await self.changed.until(lambda: self.made >= enough)

    def report(self, now: float) -> pb.ReportDemandRequest:
        self.made += 1
        self.changed()
        versions = [pb.VersionDemand(name="m", version=1, requests=self.made)] if self.busy else []
        return pb.ReportDemandRequest(seconds=1.0, versions=versions)


@asynccontextmanager
async def reporting(source: Source, known: Known, interval: float = 0.02) -> AsyncIterator[Reports]:
    made = Reports("gateway-1", known, source.report, heard=source.heard.append, token="secret", interval=interval)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        assert not running.done()
        running.cancel()
        await made.close()


async def test_all_are_told_the_same_and_those_who_cannot_be_are_left_alone() -> None:
    source, known = Source(), Known()
    away = ServiceRecord(service="scheduler", id="away", address=f"127.0.0.1:{free_port()}")
    async with scheduler("one") as one, scheduler("two") as two, scheduler("old", old=True) as old:
        one.estimates = [pb.LoadEstimate(name="m", version=1, seconds=3.0)]
        known.add(away, old.record, one.record, two.record)
        async with reporting(source, known):
            await one.changed.until(lambda: len(one.reports) >= 5)
            await two.changed.until(lambda: len(two.reports) >= 5)
        assert {report.source for report in one.reports} == {"gateway-1"}
        assert one.callers == {"Bearer secret"}
        assert one.reports[0] == two.reports[0]
        assert any(answer.estimates for answer in source.heard)


async def test_a_scheduler_that_comes_back_elsewhere_is_told_again() -> None:
    source, known = Source(), Known()
    async with reporting(source, known):
        async with scheduler() as first:
            known.add(first.record)
            await first.changed.until(lambda: first.reports)
        async with scheduler() as second:
            known.add(second.record)
            await second.changed.until(lambda: second.reports)


async def test_one_that_cannot_be_reached_is_tried_again() -> None:
    """Its port is not there yet; nothing else says that it is now."""
    source, known, port = Source(), Known(), free_port()
    known.add(ServiceRecord(service="scheduler", id="scheduler-1", address=f"127.0.0.1:{port}"))
    async with reporting(source, known):
        await source.has_made(3)
        async with scheduler(port=port) as one:
            await one.changed.until(lambda: one.reports)


async def test_without_news_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "QUIET", 0.1)
    source, known = Source(), Known()
    source.busy = False
    async with scheduler() as one:
        known.add(one.record)
        async with reporting(source, known):
            await source.has_made(20)
            assert one.reports == []
            source.busy = True
            await one.changed.until(lambda: one.reports)
            source.busy = False
            await source.has_made(30)
            told = len(one.reports)
            assert not one.reports[-1].versions, "that there is nothing is told, for a while"
            await source.has_made(10)
            assert len(one.reports) <= told + 1


async def test_wishes_that_come_together_are_one_report_at_once() -> None:
    source, known = Source(), Known()
    async with scheduler() as one:
        known.add(one.record)
        async with reporting(source, known, interval=3600.0) as it:
            await asyncio.sleep(0)
            for _ in range(50):
                it.soon()
            await one.changed.until(lambda: one.reports)
            assert len(one.reports) == 1


async def test_what_is_too_large_for_one_message_comes_in_parts_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reports, "MOST_VERSIONS", 2)
    known = Known()

    def report(now: float) -> pb.ReportDemandRequest:
        versions = [pb.VersionDemand(name=f"m{number}", version=1, requests=1) for number in range(5)]
        return pb.ReportDemandRequest(seconds=1.0, versions=versions)

    async with scheduler() as one:
        known.add(one.record)
        made = Reports("gateway-1", known, report, interval=0.02)
        running = asyncio.create_task(made.run())
        await one.changed.until(lambda: len(one.reports) >= 6)
        running.cancel()
        await made.close()
        assert [(each.source, each.part, len(each.versions)) for each in one.reports[:6]] == [
            ("gateway-1", part, size) for part, size in ((0, 2), (1, 2), (2, 1))
        ] * 2
