"""What versions are asked for, as this process sees it: counters that requests touch, and what is told of them. Pure:
times are passed in, seconds of one monotonic clock.

A request costs a few additions. Time under way is kept as a sum of ends less a sum of beginnings, whose mean over an
interval is exact, whatever came and went between two looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from penstock.internal.v1 import demand_pb2 as pb

from .route_table import RouteTable

Served = tuple[str, int]
"""A model and its version: with an address, one replica."""

TOLD: Final = 10.0
"""Seconds for which it is told that nobody asks for a version any more: one report may be lost."""


class Flow:
    """The requests of one version. Its counters are touched where requests come and go (upstream.Place).

    requests: that came since the last look; outstanding: under way or waiting; area: ends less beginnings since then;
    waiting: those of `outstanding` that wait for a first replica.
    """

    __slots__ = ("_active_at", "area", "outstanding", "requests", "waiting")

    def __init__(self) -> None:
        self.requests = self.outstanding = self.waiting = 0
        self.area = 0.0
        self._active_at: float | None = None

    def began(self, now: float) -> None:
        """A request came."""
        self.requests += 1
        self.outstanding += 1
        self.area -= now

    def ended(self, now: float) -> None:
        """One that came is over."""
        self.outstanding -= 1
        self.area += now

    def refused(self) -> None:
        """A request came and could not be taken."""
        self.requests += 1

    def repeated(self) -> None:
        """The next request that begins has been counted before: it waited, or was sent elsewhere."""
        self.requests -= 1

    def taken(self, name: str, version: int, since: float, now: float) -> pb.VersionDemand | None:
        """What there is to tell of the time since the last look, which is over with this; None for nothing."""
        requests, under_way = self.requests, self.area + self.outstanding * now
        self.requests, self.area = 0, -self.outstanding * now
        if self.outstanding:
            self._active_at = now
        elif requests > 0 or under_way > 0:
            # Somewhere in between; not known better, and at most an interval off.
            self._active_at = since
        elif self._active_at is None or now - self._active_at > TOLD:
            return None
        return pb.VersionDemand(
            name=name,
            version=version,
            requests=max(0, requests),
            outstanding=max(0.0, under_way / (now - since)) if now > since else 0.0,
            waiting=self.waiting,
            idle_seconds=now - self._active_at,
        )


class Demand:
    """The flows of all versions that were ever asked for."""

    def __init__(self, now: float) -> None:
        self._flows: dict[Served, Flow] = {}
        self._since = now

    def flow(self, served: Served) -> Flow:
        """That of a version."""
        known = self._flows.get(served)
        return known if known is not None else self._flows.setdefault(served, Flow())

    def forget(self, served: Served) -> None:
        """Nobody has that flow any more: neither a replica's pace nor somebody who waits."""
        flow = self._flows.get(served)
        if flow is not None and not flow.outstanding:
            del self._flows[served]

    @property
    def waiting(self) -> int:
        """Requests that wait for a first replica, of all versions."""
        return sum(flow.waiting for flow in self._flows.values())

    def taken(self, now: float, table: RouteTable) -> pb.ReportDemandRequest:
        """The interval since the last look, which is over with this. The source is left to whoever sends it."""
        told = (flow.taken(*served, self._since, now) for served, flow in self._flows.items())
        versions = [each for each in told if each is not None]
        report = pb.ReportDemandRequest(seconds=now - self._since, versions=inherited(versions, table))
        self._since = now
        return report


def inherited(versions: Iterable[pb.VersionDemand], table: RouteTable) -> list[pb.VersionDemand]:
    """The same, and a default version without a replica is asked for what one that retires serves in its place.
    Otherwise nobody would ask for the default, and the old one would serve for ever."""
    found = {(told.name, told.version): told for told in versions}
    for told in list(found.values()):
        model = table.models.get(told.name)
        if model is None or not told.requests:
            continue
        serving, default = model.versions.get(told.version), model.versions[model.default_version]
        if serving is not None and serving.retiring and default.on_demand and not default.replicas:
            key = told.name, default.version
            heir = found.setdefault(key, pb.VersionDemand(name=told.name, version=default.version))
            heir.requests += told.requests
            heir.outstanding += told.outstanding
            heir.idle_seconds = told.idle_seconds
    return list(found.values())
