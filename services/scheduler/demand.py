"""What versions are asked for, from the reports of all gateways and workers. Pure: the time is passed in.

A report says how it was in its sender's last interval, about a second. The newest of each sender counts, all senders
together make a `Sample`. Nothing is stored: every scheduler hears all reports, so one that begins to lead knows them.

Bounded: a sender that went silent is forgotten after SILENT seconds, a version that is no longer deployed with the next
`sweep`; there are at most MOST_SOURCES senders, and rpc.py bounds a report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .scaling import Sample
from .snapshot import VersionId

SILENT: Final = 5.0
"""Seconds after which what a sender said last says nothing any more."""
MOST_SOURCES: Final = 4096
"""Senders that are listened to at the same time; what others say is dropped."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one process has seen of one version in an interval; 0 for what it does not know. See demand.proto.

    rate, dequeue_rate: a second. busy: part of the interval, of all its replicas together.
    """

    rate: float = 0.0
    outstanding: float = 0.0
    waiting: int = 0
    idle_seconds: float = 0.0
    dequeue_rate: float = 0.0
    queue_seconds: float = 0.0
    busy: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anybody has used the version in this interval."""
        return bool(self.rate or self.outstanding or self.waiting or self.dequeue_rate)


@dataclass(slots=True)
class _Source:
    heard: float
    versions: dict[VersionId, Said] = field(default_factory=dict)
    gray: dict[tuple[VersionId, str], float] = field(default_factory=dict)


class Demand:
    """The newest word of everybody.

    active: versions that somebody has used, or that anything has changed of, since it was last cleared.
    """

    def __init__(self) -> None:
        self.active: set[VersionId] = set()
        self._sources: dict[str, _Source] = {}
        self._by_version: dict[VersionId, dict[str, Said]] = {}
        self._used: dict[VersionId, float] = {}
        self._began: float | None = None

    def report(
        self, source: str, versions: dict[VersionId, Said], gray: Iterable[tuple[VersionId, str]], now: float
    ) -> None:
        """Takes in a report in place of the last of its source. gray: (version, worker) that it keeps away from."""
        if self._began is None:
            self._began = now
        before = self._sources.pop(source, None)
        if before is None and len(self._sources) >= MOST_SOURCES:
            return
        held = before.gray if before is not None else {}
        found = self._sources[source] = _Source(now, versions, {replica: held.get(replica, now) for replica in gray})
        for version in before.versions.keys() - versions.keys() if before is not None else ():
            self._silence(source, version)
        for version, said in found.versions.items():
            self._by_version.setdefault(version, {})[source] = said
            used = now if said.active else now - said.idle_seconds
            if used > self._used.get(version, -1.0) and (said.active or said.idle_seconds):
                self._used[version] = used
            if said.active:
                self.active.add(version)

    def sweep(self, now: float, deployed: Callable[[VersionId], bool]) -> None:
        """Forgets who went silent and what nobody wants."""
        for source in [source for source, found in self._sources.items() if now - found.heard > SILENT]:
            for version in self._sources.pop(source).versions:
                self._silence(source, version)
        for version in [version for version in self._used.keys() | self._by_version.keys() if not deployed(version)]:
            self._used.pop(version, None)
            for source in self._by_version.pop(version, {}):
                self._sources[source].versions.pop(version, None)
        self.active = {version for version in self.active if deployed(version)}

    def sample(self, version: VersionId, replicas: int, now: float) -> Sample | None:
        """Of this moment; None while nobody reports at all. replicas: how many are READY."""
        if not self._is_heard(now):
            return None
        said = self._of(version, now)
        dequeued = sum(item.dequeue_rate for item in said)
        waited = sum(item.queue_seconds * item.dequeue_rate for item in said)
        return Sample(
            time=now,
            # A gateway that cannot reach this scheduler is heard of through the workers that it calls.
            rate=max(sum(item.rate for item in said), dequeued),
            outstanding=sum(max(item.outstanding, item.waiting) for item in said),
            queue_seconds=waited / dequeued if dequeued else 0.0,
            utilisation=sum(item.busy for item in said) / max(replicas, 1),
            replicas=replicas,
        )

    def heard(self, now: float) -> int:
        """Senders that are not silent."""
        return sum(1 for found in self._sources.values() if now - found.heard <= SILENT)

    def waiting(self, version: VersionId, now: float) -> int:
        """Requests that wait for a first replica."""
        return sum(item.waiting for item in self._of(version, now))

    def in_use(self, version: VersionId, now: float) -> bool:
        """Whether a request is under way or waits, or one was in the newest interval of anybody."""
        return any(item.active for item in self._of(version, now))

    def idle_seconds(self, version: VersionId, now: float) -> float:
        """Since somebody last used it; since anybody was heard first where nobody ever did."""
        if self.in_use(version, now):
            return 0.0
        used = self._used.get(version, self._began if self._began is not None else now)
        return max(now - used, 0.0)

    def gray(self, now: float) -> dict[tuple[VersionId, str], list[float]]:
        """Replicas that are kept away from, by version and worker: since when, by each gateway that does."""
        found: dict[tuple[VersionId, str], list[float]] = {}
        for source in self._sources.values():
            if now - source.heard <= SILENT:
                for replica, since in source.gray.items():
                    found.setdefault(replica, []).append(since)
        return found

    def callers(self, version: VersionId, now: float) -> int:
        """Gateways that can judge a version's replicas: that have called it in their newest interval, or keep away
        from one."""
        return sum(
            1
            for source in self._sources.values()
            if now - source.heard <= SILENT and (_calls(source, version) or any(v == version for v, _ in source.gray))
        )

    def _is_heard(self, now: float) -> bool:
        return any(now - found.heard <= SILENT for found in self._sources.values())

    def _of(self, version: VersionId, now: float) -> list[Said]:
        there = self._by_version.get(version)
        if not there:
            return []
        return [said for source, said in there.items() if now - self._sources[source].heard <= SILENT]

    def _silence(self, source: str, version: VersionId) -> None:
        there = self._by_version.get(version, {})
        said = there.pop(source, None)
        if not there:
            self._by_version.pop(version, None)
        if said is not None and said.active:
            self.active.add(version)


def _calls(source: _Source, version: VersionId) -> bool:
    said = source.versions.get(version)
    return said is not None and bool(said.rate or said.outstanding)
