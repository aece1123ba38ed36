"""Puts together reports that come in parts (demand.proto). Pure: times are passed in, seconds of one monotonic clock.

A report takes the place of the last one of its source, so that half of it would say that nobody asks for the other
half. What is not whole says nothing. Bounded: MOST_HELD entries, and each part has OPEN_SECONDS to follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .demand import Said
from .snapshot import VersionId

OPEN_SECONDS: Final = 5.0
"""For which a report waits for its next part."""
MOST_HELD: Final = 1_000_000
"""Entries of reports that are not whole, of all sources; beyond it those that wait longest are dropped."""

Gray = tuple[VersionId, str]
"""A version and a worker that a gateway keeps away from."""


@dataclass(slots=True)
class Report:
    """What one process says of one interval."""

    versions: dict[VersionId, Said] = field(default_factory=dict)
    gray: list[Gray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.versions) + len(self.gray)


@dataclass(slots=True)
class _Open:
    parts: int
    heard: float
    next: int = 0
    report: Report = field(default_factory=Report)


class Parts:
    """Reports of all sources that are not whole yet."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._held = 0

    def take(self, source: str, parts: int, part: int, report: Report, now: float) -> Report | None:
        """Takes in one part; the whole report once it is its last. parts: 0 or 1 for a report that is whole."""
        found = self._take_out(source)
        if parts <= 1:
            return report
        if part == 0:
            found = _Open(parts, now)
        elif found is None or (found.parts, found.next) != (parts, part) or now - found.heard > OPEN_SECONDS:
            return None
        found.report.versions.update(report.versions)
        found.report.gray.extend(report.gray)
        found.next, found.heard = part + 1, now
        if found.next == parts:
            return found.report
        self._open[source] = found
        self._held += len(found.report)
        self._forget(now)
        return None

    def _forget(self, now: float) -> None:
        # In order of when they were last heard of.
        for source, found in list(self._open.items()):
            if self._held <= MOST_HELD and now - found.heard <= OPEN_SECONDS:
                return
            self._take_out(source)

    def _take_out(self, source: str) -> _Open | None:
        found = self._open.pop(source, None)
        if found is not None:
            self._held -= len(found.report)
        return found
