"""What a scenario gives, and the checks that several of them make.

What must hold always (lost, wrong, duplicated, failed beyond what is allowed, stale commands) makes a row broken; a
time that was missed is only told, since a busy machine misses times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fault.ledger import Entry, Ledger
from tests.fault.stand import GATEWAYS, PROXIED, Load, Stand, wait_until

LEASE = 5.0
"""Seconds of a lease: of a worker, and of the leader's term."""


class Impossible(Exception):
    """This machine cannot carry the scenario out; the message says what it lacks."""


@dataclass(slots=True)
class Result:
    """What a scenario gave. measured: by name, for people and JSON; broken: what must hold and did not; missed: times
    that were not kept."""

    measured: dict[str, float | int | str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def take(self, ledger: Ledger, *, share: float = 0.0, most: int = 0) -> None:
        """Adds the sums of a load. share, most: of requests that may end with an error, the greater counts."""
        account = ledger.account()
        self.measured |= {"sent": account.sent, "lost": account.lost, "wrong": account.wrong}
        self.measured |= {"duplicated": account.duplicated, "failed": account.failures}
        self.measured["p99 ms"] = round(account.p99 * 1e3, 1)
        self.broken += account.broken
        if account.failures > max(most, share * account.sent):
            self.broken.append(f"failed {account.failures} of {account.sent}: {account.failed}")

    def timed(self, name: str, seconds: float, limit: float) -> None:
        """Adds a time that should be at most so long."""
        self.measured[f"{name} s"] = round(seconds, 2)
        if not seconds <= limit:
            self.missed.append(f"{name}: {seconds:.2f} s, at most {limit:g} s asked for")

    def at_most(self, name: str, figure: float, limit: float) -> None:
        """Adds another figure that a busy machine spoils."""
        self.measured[name] = round(figure, 1)
        if not figure <= limit:
            self.missed.append(f"{name}: {figure:.1f}, at most {limit:.1f} asked for")

    def must(self, holds: bool, otherwise: str) -> None:
        """Adds something that must hold."""
        if not holds:
            self.broken.append(otherwise)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row. row: of the table of faults; done: what is done; required: in words; quick: an ordinary test too."""

    row: str
    name: str
    done: str
    required: str
    run: Callable[[Stand], Result]
    quick: bool = False


def answers_again(load: Load, by: Callable[[Entry], bool]) -> None:
    """Waits until something that is sent from now on is answered by that one."""
    now = time.monotonic()
    wait_until(
        lambda: any(entry.right and by(entry) for entry in list(load.ledger.entries.values()) if entry.sent > now)
    )


def only_the_first_fail(ledger: Ledger, at: float, result: Result, known: float = 5.0) -> None:
    """Requests may fail that were sent before anybody could know of the fault: not one that was sent later than so many
    seconds after it."""
    failed = [entry.sent - at for entry in ledger.entries.values() if entry.endings and not entry.right]
    late = [after for after in failed if not -known <= after <= known]
    result.take(ledger, most=len(failed))
    result.must(not late, f"{len(late)} requests failed that were sent elsewhere or later")
    result.timed("last failure", max(failed, default=0.0), 3.0)


def no_stale_commands(stand: Stand, since: int, result: Result) -> None:
    written, stale = stand.stale_commands(since)
    result.measured |= {"assignments written": written, "stale": stale}
    result.must(not stale, f"{stale} of {written} assignments came from a leader of the past")


@contextmanager
def proxied(stand: Stand) -> Iterator[None]:
    """Gateways reach PROXIED through its proxy: its unix socket is gone, and so is the connection to it."""
    stand.unlink_socket(PROXIED)
    for gateway in GATEWAYS:
        stand.ask_to_stop(gateway)
        stand.restart(gateway)
    yield
    stand.ask_to_stop(PROXIED)
    stand.restart(PROXIED)
