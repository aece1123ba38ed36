"""Who may wait for a version that is not loaded, for how long, in which order, and what he is told when it was in vain.
Pure: times are passed in; the room (room.py) does the waiting.

Only versions that are loaded on demand are waited for. One of them may be

cold, loading, unloading   it is waited for, each request until shortly before its own deadline
failed                     the reason is told at once, to those who wait too
ready                      those who wait go, in the order in which they came, some at a time

A version with a fixed number of replicas that has none is out of order, and nobody is kept waiting for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from penstock.errors import ResourceExhausted, Unavailable

from .demand import Served
from .route_table import RouteTable, VersionView

T = TypeVar("T")

MARGIN_SHARE: Final = 0.1
LEAST_MARGIN: Final = 0.02
MOST_MARGIN: Final = 0.5
"""Of what is left to the deadline, and seconds: for an answer that says why there is none."""

AT_ONCE: Final = 16
"""Requests let go to each replica at a time, by each process of a gateway: those who waited must neither fill its queue
and be refused after all, nor take the processors from those who call others."""

WOKEN: Final = 8
"""Of those, woken in a turn of the loop: requests for other models come between them."""

FULL_RETRY_SECONDS: Final = 1.0

SAID_AGAIN: Final = 2.5
"""Seconds after which what a scheduler says of a version that is waited for is said again at the latest."""

NEWS_SECONDS: Final = 1.0
"""How long news of a replica that says that it is gone may take, when the routes still have it."""


class Prospect(Enum):
    """What a request for a version has before it."""

    GOES = "a replica takes it"
    WAITS = "there is none, and there will be one"
    ENDS = "there is none, and waiting does not help"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a scheduler said of a version that is waited for. ready_at: when it takes requests, None where nobody knows;
    obstacle: why it never will, in public words; said_at: when that was said."""

    ready_at: float | None = None
    obstacle: str = ""
    said_at: float = 0.0

    @property
    def bad(self) -> float:
        """The greater, the worse."""
        if self.obstacle:
            return math.inf
        return self.ready_at if self.ready_at is not None else 0.0


def prospect(version: VersionView | None) -> Prospect:
    """version: None for one that is not deployed any more."""
    if version is None:
        return Prospect.ENDS
    if version.replicas:
        return Prospect.GOES
    return Prospect.WAITS if version.on_demand and not version.failed else Prospect.ENDS


def prospect_of(table: RouteTable, served: Served) -> Prospect:
    """The same, of a version in the table."""
    model = table.models.get(served[0])
    return prospect(model.versions.get(served[1]) if model is not None else None)


def until(deadline: float, now: float) -> float:
    """How long a request may wait that came now."""
    return deadline - min(MOST_MARGIN, max(LEAST_MARGIN, MARGIN_SHARE * (deadline - now)))


def believed(before: Estimate | None, now: Estimate) -> Estimate:
    """Which of two to go by. All schedulers are asked and only the leading one knows of a lack of room: so the worse,
    unless it was not said again lately."""
    if before is None or before.bad <= now.bad or now.said_at - before.said_at > SAID_AGAIN:
        return now
    return before


def in_vain(model: str, version: VersionView, estimate: Estimate, now: float) -> Unavailable:
    """What a request is told whose time to wait is over."""
    what = f"version {version.version} of model '{model}' {version.reason or 'is not ready'}"
    if estimate.obstacle and version.state != "LOADING" and now - estimate.said_at <= 2 * SAID_AGAIN:
        return Unavailable(f"{what}; {estimate.obstacle}")
    if estimate.ready_at is None or estimate.ready_at <= now:
        return Unavailable(f"{what}; it was not ready before the deadline")
    left = estimate.ready_at - now
    return Unavailable(f"{what}; it should be ready in about {max(1, round(left))} s", retry_after=left)


class Lines(Generic[T]):
    """Those who wait: a line per version, in order of arrival.

    most: in all lines; most_each: in one.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._lines: dict[Served, dict[T, None]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def of(self, models: frozenset[str]) -> list[Served]:
        """The versions of these models that somebody waits for."""
        return [served for served in self._lines if served[0] in models]

    def waiting(self, served: Served) -> int:
        """How many wait for a version."""
        return len(self._lines.get(served, ()))

    def everybody(self) -> list[T]:
        """All who wait, who go on doing so."""
        return [each for line in self._lines.values() for each in line]

    def has_room(self, served: Served) -> bool:
        """Whether `join` would take one more."""
        return self._length < self._most and self.waiting(served) < self._most_each

    def join(self, served: Served, one: T) -> bool:
        """Takes the last place; True if it is the first as well. Raises ResourceExhausted."""
        line = self._lines.get(served, {})
        if len(line) >= self._most_each:
            raise ResourceExhausted(
                f"{len(line)} requests wait for version {served[1]} of model '{served[0]}' to be loaded already",
                retry_after=FULL_RETRY_SECONDS,
            )
        if self._length >= self._most:
            raise ResourceExhausted(
                f"{self._length} requests wait for models to be loaded already", retry_after=FULL_RETRY_SECONDS
            )
        self._lines[served] = line
        line[one] = None
        self._length += 1
        return len(line) == 1

    def leave(self, served: Served, one: T) -> None:
        """Gives a place up; nothing if it was taken from the line before."""
        line = self._lines.get(served)
        if line is not None and one in line:
            del line[one]
            self._length -= 1
            if not line:
                del self._lines[served]

    def take(self, served: Served, count: int) -> list[T]:
        """The first of a line, who leave it."""
        first = list(self._lines.get(served, ()))[: max(0, count)]
        for one in first:
            self.leave(served, one)
        return first
