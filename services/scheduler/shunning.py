"""Replicas that say that they are READY and answer late, wrongly or not at all: when to take them elsewhere. Pure.

Gateways keep away from such a replica by themselves and at once. When at least half of those that call its version
have done so for HELD seconds, the version leaves that worker: another becomes READY first, then it goes (the plan's
leaving), and it does not come back there for SHUNNED seconds, or until the worker has been started anew. Bounded: at
most a third of a version's replicas leave so at a time, and a version shuns at most a third of the workers; one at
least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from .snapshot import VersionId

HELD: Final = 10.0
"""Seconds for which gateways must have kept away from it."""
SHUNNED: Final = 600.0
"""Seconds for which it is not placed on that worker again."""


class Term(NamedTuple):
    """until: when it is over. started: when the worker's process was, None if it was not there."""

    until: float
    started: float | None


class Shunning:
    """Which workers each version leaves, and until when."""

    def __init__(self) -> None:
        self._terms: dict[VersionId, dict[str, Term]] = {}
        self._anew: dict[str, float] = {}  # workers that were pardoned for it, and when

    def look(
        self,
        gray: Mapping[tuple[VersionId, str], list[float]],
        *,
        callers: Callable[[VersionId], int],
        told: Callable[[VersionId], frozenset[str]],
        started: Callable[[str], float | None],
        workers: int,
        now: float,
    ) -> dict[VersionId, frozenset[str]]:
        """All that a version shuns from now on, for the versions of which that has changed.

        gray: by version and worker, since when each gateway keeps away. callers: gateways that can judge a version.
        told: workers that have been told to run it. started: when a worker's process was, on any clock; None while it
        is not there. workers: how many are live.
        """
        changed = self._expire(started, now)
        for (version, worker), since in sorted(gray.items()):
            there = self._terms.get(version, {})
            # What is said of a process that has gone is still said for a moment.
            held = sum(1 for time in since if now - max(time, self._anew.get(worker, time)) >= HELD)
            if worker in there or not held or 2 * held < callers(version):
                continue
            at = told(version)
            leaving = sum(1 for other in there if other in at)
            if worker not in at or leaving >= max(len(at) // 3, 1) or len(there) >= max(workers // 3, 1):
                continue
            self._terms.setdefault(version, {})[worker] = Term(now + SHUNNED, started(worker))
            changed.add(version)
        return {version: frozenset(self._terms.get(version, {})) for version in changed}

    def next_look(self, now: float) -> float | None:
        """Seconds until a version may come back somewhere; None when none is kept away."""
        ends = (term.until for there in self._terms.values() for term in there.values())
        return min((max(until - now, 0.0) for until in ends), default=None)

    def _expire(self, started: Callable[[str], float | None], now: float) -> set[VersionId]:
        self._anew = {worker: at for worker, at in self._anew.items() if now - at < HELD}
        changed = set()
        for version, there in list(self._terms.items()):
            anew = {worker for worker, term in there.items() if started(worker) not in (None, term.started)}
            left = {worker: term for worker, term in there.items() if term.until > now and worker not in anew}
            self._anew |= dict.fromkeys(anew, now)
            if len(left) < len(there):
                changed.add(version)
                self._terms[version] = left
            if not left:
                del self._terms[version]
        return changed
