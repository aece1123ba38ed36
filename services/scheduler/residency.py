"""Many more models than memory: which versions that nobody uses go, so that one that is called finds a place. Pure.

Only versions that may go to zero are ever taken, all replicas of one at once, since what nobody uses needs none. Never
is one taken that is pinned, in use, used within the last moments, or that came only just now: then the same few models
would push each other out and in. What goes is the least recently used that is enough; it comes back when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .placement import Planner, would_fit
from .snapshot import VersionId, Wanted

IDLE: Final = 10.0
"""Seconds without a request before a version may be taken for one that is waited for."""
IDLE_FOR_MORE: Final = 60.0
"""The same for a further replica of a version that has one."""
RESIDENCE: Final = 30.0
LOADS: Final = 2.0
"""How long it stays at least once it was called: so many seconds, and so many times what loading it takes."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A version that may go to zero and has replicas.

    idle_seconds: since it was last used. resident_seconds: since it was called; None for long. load_seconds: what
    loading it takes; 0 when nobody knows.
    """

    version: VersionId
    idle_seconds: float
    resident_seconds: float | None
    load_seconds: float

    def stays_seconds(self, idle: float) -> float:
        """Until it may be taken, by time alone. idle: seconds that it must be without a request."""
        least = max(RESIDENCE, LOADS * self.load_seconds)
        left = 0.0 if self.resident_seconds is None else least - self.resident_seconds
        return max(left, idle - self.idle_seconds, 0.0)


@dataclass(frozen=True, slots=True)
class Room:
    """What can be done for one version. evict: versions that go now; empty when it must wait.

    seconds: until so much may go; None when nothing that may ever go is enough.
    """

    evict: tuple[VersionId, ...] = ()
    seconds: float | None = None


def make_room(planner: Planner, item: Wanted, residents: Iterable[Resident]) -> Room:
    """Room for one more replica of `item`, which has none. planner: has just planned.

    residents: versions that are not in use now; `item`'s own model and those that are pinned are passed over.
    """
    idle = IDLE if not planner.draft.count(item.id) else IDLE_FOR_MORE
    known = [
        resident
        for resident in residents
        if resident.version.name != item.id.name and not planner.draft.items[resident.version].needs.pinned
    ]
    known.sort(key=lambda resident: (-resident.idle_seconds, resident.version))
    now = _enough(planner, item, [resident for resident in known if not resident.stays_seconds(idle)])
    if now:
        return Room(now, 0.0)
    later = _enough(planner, item, known)
    waits = {resident.version: resident.stays_seconds(idle) for resident in known}
    return Room((), max(waits[version] for version in later) if later else None)


def _enough(planner: Planner, item: Wanted, residents: list[Resident]) -> tuple[VersionId, ...]:
    """The least recently used that make room on one worker, none of them needless; empty when all are too few.

    One after the other goes, until some worker has room: so the last to go was used the longest ago that it can be.
    """
    draft = planner.draft
    everything: dict[str, list[VersionId]] = {}
    for resident in residents:
        for worker in draft.at.get(resident.version, ()):
            everything.setdefault(worker, []).append(resident.version)
    # Where all of them are too few, fewer need not be tried.
    hopeful = {worker for worker, versions in everything.items() if would_fit(draft, item, worker, versions)}
    at: dict[str, list[VersionId]] = {}
    for resident in residents if hopeful else ():
        for worker in sorted(draft.at.get(resident.version, set()) & hopeful):
            going = at.setdefault(worker, [])
            going.append(resident.version)
            if would_fit(draft, item, worker, going):
                # Whoever's staying does not matter stays, the most recently used first.
                for version in tuple(reversed(going)):
                    rest = [other for other in going if other != version]
                    if rest and would_fit(draft, item, worker, rest):
                        going = rest
                return tuple(going)
    return ()
