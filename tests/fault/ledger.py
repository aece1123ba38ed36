"""What became of every request. Pure: times are passed in, seconds of one monotonic clock.

A request is sent once and ends once. Four words for what can go wrong, of which the first three must never happen:
lost (it never ended), wrong (its answer is not the one computed here), duplicated (it ended more than once), failed (it
ended with an error).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

OK = "OK"
WRONG = "WRONG"
WINDOW = 2.0
"""Seconds of requests that must all be well for a recovery to count."""
SLACK = 0.05
"""Seconds by which the slow ones may be slower than before anyway: a shared machine is that noisy."""


@dataclass(slots=True)
class Entry:
    """One request. endings: when and how it ended, in the order in which the client was told; worker, gateway: who
    answered; why: of a failure, in words."""

    sent: float
    endings: list[tuple[float, str]] = field(default_factory=list)
    worker: str = ""
    gateway: str = ""
    why: str = ""

    @property
    def right(self) -> bool:
        return bool(self.endings) and self.endings[0][1] == OK

    @property
    def took(self) -> float:
        """Seconds from sending to the first ending; infinite without one."""
        return self.endings[0][0] - self.sent if self.endings else math.inf


@dataclass(frozen=True, slots=True)
class Account:
    """The sums. failed: by code."""

    sent: int
    right: int
    lost: int
    wrong: int
    duplicated: int
    failed: dict[str, int]
    p50: float
    p99: float
    slowest: float

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    @property
    def broken(self) -> list[str]:
        """What must never happen and did."""
        never = {"lost": self.lost, "wrong": self.wrong, "duplicated": self.duplicated}
        return [f"{word} {count}" for word, count in never.items() if count]


class Ledger:
    """Entries by request id."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.right = 0

    def sent(self, number: int, at: float) -> None:
        """A request goes out; raises ValueError for an id that was used before."""
        if number in self.entries:
            raise ValueError(f"request {number} was sent before")
        self.entries[number] = Entry(at)

    def ended(
        self, number: int, at: float, outcome: str, *, worker: str = "", gateway: str = "", why: str = ""
    ) -> None:
        """The client was told of an end; outcome: OK, WRONG or the code of an error."""
        entry = self.entries[number]
        entry.endings.append((at, outcome))
        if len(entry.endings) == 1:
            entry.worker, entry.gateway, entry.why = worker, gateway, why
        self.right += outcome == OK and len(entry.endings) == 1

    def account(self, since: float = -math.inf, until: float = math.inf) -> Account:
        """The sums over what was sent in that time."""
        entries = self._between(since, until)
        failed: dict[str, int] = {}
        for entry in entries:
            for _, outcome in entry.endings[:1]:
                if outcome not in (OK, WRONG):
                    failed[outcome] = failed.get(outcome, 0) + 1
        took = self.took(since, until)
        return Account(
            sent=len(entries),
            right=sum(entry.right for entry in entries),
            lost=sum(not entry.endings for entry in entries),
            wrong=sum(any(outcome == WRONG for _, outcome in entry.endings) for entry in entries),
            duplicated=sum(len(entry.endings) > 1 for entry in entries),
            failed=failed,
            p50=quantile(took, 0.5),
            p99=quantile(took, 0.99),
            slowest=max(took, default=math.nan),
        )

    def took(self, since: float, until: float) -> list[float]:
        """Seconds of each that was sent in that time and ended well, the least first."""
        return sorted(entry.took for entry in self._between(since, until) if entry.right)

    def p99(self, since: float, until: float, window: float = 5.0) -> float:
        """The median of the p99 of each whole window in that time, seconds: one hiccup of the machine decides nothing.
        NaN without a whole window."""
        starts = [since + number * window for number in range(int((until - since) / window))]
        return quantile(sorted(self.account(start, start + window).p99 for start in starts), 0.5)

    def recovery(self, injected: float) -> float:
        """Seconds from a fault to the first request from which on, for WINDOW seconds, at least 99.9 % are right and
        the p99 is at most half again what it was before the fault (or SLACK more); infinite if that never comes."""
        before = self.account(until=injected).p99
        limit = before + max(0.5 * before, SLACK)
        entries = self._between(injected, math.inf)
        if not entries:
            return math.inf
        last = entries[-1].sent
        for entry in entries:
            if entry.sent + WINDOW > last:
                break
            window = self.account(entry.sent, entry.sent + WINDOW)
            if window.right >= 0.999 * window.sent and window.p99 <= limit:
                return entry.sent - injected
        return math.inf

    def _between(self, since: float, until: float) -> list[Entry]:
        entries = list(self.entries.values())  # at once: more may come while this is reckoned
        return sorted((entry for entry in entries if since <= entry.sent < until), key=lambda entry: entry.sent)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed; NaN of nothing."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
