"""Who may call which model, and how much of that at a time: what is said of tenants, decided. Pure: times are passed
in, seconds of one monotonic clock that all processes of a gateway share.

A caller's requests go on his account, which is made with the first of them. A rate is kept by one number, the moment at
which as many requests as the burst allows could come at once again: each request puts it off by the time that the rate
grants for one. So processes need to tell each other no more than that number (tally.py), and the latest holds for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from penstock.errors import PermissionDenied, ResourceExhausted, Unavailable
from penstock.internal.v1.records_pb2 import TenantRecord

from .route_table import shown

DEFAULT: Final = "default"
"""The tenant that holds for callers of whom nothing else is said."""
UNREAD: Final = "what callers may do has not been read yet"
RETRY_SECONDS: Final = 1.0
"""What a caller is told to wait for one of his own requests to end."""
KNOWN: Final = 1024
"""Models of a tenant for which it is remembered whether he may call them."""
LONGEST: Final = 64
"""Characters of a model's name; what is longer is none, and not remembered."""
_ROUNDING: Final = 1e-6
"""Of a request: who comes back when he was told to is let in."""


class Others(Protocol):
    """What the other processes of the gateway let in of one caller's requests, and what they are told of."""

    def full_at(self) -> float:
        """The latest of their moments; 0 where there is none."""
        ...

    def under_way(self) -> float:
        """Their requests under way."""
        ...

    def tell_full_at(self, moment: float) -> None:
        """This process's moment."""
        ...

    def tell_under_way(self, count: int) -> None:
        """This process's requests under way."""
        ...


class Terms:
    """What is said of one tenant, for one of so many gateways: each has its part of the numbers, and at least one
    request of each."""

    __slots__ = (
        "_beginnings",
        "_everything",
        "_known",
        "_names",
        "burst",
        "concurrent",
        "gateways",
        "rate",
        "record",
        "seconds",
    )

    def __init__(self, record: TenantRecord, gateways: int = 1) -> None:
        self.record, self.gateways = record, gateways
        self._everything = "*" in record.models
        self._names = frozenset(pattern for pattern in record.models if not pattern.endswith("*"))
        self._beginnings = tuple(pattern[:-1] for pattern in record.models if pattern.endswith("*"))
        self._known: dict[str, bool] = {}
        self.rate = record.rate / gateways
        self.seconds = 1.0 / self.rate if self.rate > 0 else 0.0
        self.burst = max(1.0, record.burst / gateways)
        # Rounded up: where one may be under way, no gateway turns everybody away.
        self.concurrent = -(-record.concurrent // gateways)

    def allow(self, model: str) -> bool:
        """Whether that model may be called; no name at all is not for this to refuse."""
        known = self._known.get(model)
        if known is None:
            known = self._everything or not model or model in self._names or model.startswith(self._beginnings)
            if len(model) <= LONGEST:
                if len(self._known) >= KNOWN:
                    self._known.clear()
                self._known[model] = known
        return known


class Account:
    """One caller's requests in this process. terms: None while nothing is said of him; under_way: those that were let
    in and are not over."""

    __slots__ = ("_full_at", "_others", "_told", "name", "terms", "under_way")

    def __init__(self, name: str, terms: Terms, told: Callable[[str], None], others: Others | None) -> None:
        """told: why each refused request was; others: None for a gateway of one process."""
        self.name = name
        self.terms: Terms | None = terms
        self.under_way = 0
        self._full_at = 0.0
        self._told, self._others = told, others

    def admit(self, terms: Terms, model: str, now: float) -> None:
        """Lets a request in, which must be told `left` once; raises PermissionDenied, ResourceExhausted."""
        if not terms.allow(model):
            self._told("model")
            raise forbidden(self.name, model)
        others = self._others
        if terms.concurrent:
            elsewhere = 0.0 if others is None else others.under_way()
            if self.under_way + elsewhere >= terms.concurrent:
                self._told("concurrent")
                raise self._crowded(terms)
        if terms.seconds:
            self._take(terms, now)
        self.under_way += 1
        if others is not None:
            others.tell_under_way(self.under_way)

    def left(self) -> None:
        """A request that was let in is over, however it ended."""
        self.under_way -= 1
        if self._others is not None:
            self._others.tell_under_way(self.under_way)

    def undo(self) -> None:
        """A request that was let in begins anew, and will be let in anew: it counts once."""
        self.left()
        if self.terms is not None:
            self._move(self._full_at - self.terms.seconds)

    def change(self, terms: Terms | None, now: float) -> None:
        """Other terms from now on. Nobody is further back than after a whole burst."""
        self.terms = terms
        if terms is not None:
            self._move(min(self._full_at, now + terms.burst * terms.seconds))

    def _move(self, full_at: float) -> None:
        self._full_at = full_at
        if self._others is not None:
            self._others.tell_full_at(full_at)

    def _take(self, terms: Terms, now: float) -> None:
        others, full_at = self._others, self._full_at
        if others is not None:
            full_at = max(full_at, others.full_at())
        behind = full_at - now if full_at > now else 0.0
        left = terms.burst - behind * terms.rate
        if left < 1.0 - _ROUNDING:
            self._told("rate")
            raise self._spent(terms, (1.0 - left) * terms.seconds)
        self._move(now + behind + terms.seconds)
        if others is not None:
            again = others.full_at()
            if again > full_at:
                # Another process took one at the same moment, and may not have seen this one, which comes on top then.
                self._move(max(again, now) + terms.seconds)

    def _crowded(self, terms: Terms) -> ResourceExhausted:
        most = terms.record.concurrent
        has = "1 request" if most == 1 else f"{most} requests"
        return ResourceExhausted(
            f"tenant '{self.name}' may have {has} under way at a time, and has; wait for one to end",
            retry_after=RETRY_SECONDS,
        )

    def _spent(self, terms: Terms, seconds: float) -> ResourceExhausted:
        said, seconds = terms.record, math.ceil(seconds * 1e3) / 1e3
        return ResourceExhausted(
            f"tenant '{self.name}' may send {said.rate:g} requests a second, {said.burst} at once, and has; "
            f"try again in {seconds:g} s",
            retry_after=seconds,
        )


class Admission:
    """What all callers may do, in one process.

    guarded: False where nothing is said of anybody, so that a request need not ask.
    """

    def __init__(
        self,
        *,
        read: bool = True,
        others: Callable[[str], Others | None] = lambda name: None,
        told: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """read: False until `say` tells what holds, and nobody is let in before; others: what the other processes do of
        a caller's; told: why each refused request was: `model`, `rate` or `concurrent`."""
        self.guarded = not read
        self._read = read
        self._others, self._told = others, told
        self._terms: dict[str, Terms] = {}
        self._accounts: dict[str, Account] = {}

    def ready(self) -> str | None:
        """None once it is known what holds."""
        return None if self._read else UNREAD

    def say(self, tenants: Iterable[TenantRecord], gateways: int, now: float) -> None:
        """What holds from now on, at one of so many gateways. What is under way stays on its account."""
        before, self._terms = self._terms, {}
        for record in tenants:
            terms = before.get(record.name)
            if terms is None or terms.record != record or terms.gateways != gateways:
                terms = Terms(record, gateways)
            self._terms[record.name] = terms
        self._read = True
        self.guarded = bool(self._terms)
        for account in self._accounts.values():
            terms = self._of(account.name)
            if terms is not account.terms:
                account.change(terms, now)

    def admit(self, caller: str, model: str, now: float) -> Account | None:
        """Lets a request in: the account to tell once it is over, None where there is nothing to count. Raises
        PermissionDenied, ResourceExhausted, Unavailable before anything was said."""
        account = self._accounts.get(caller)
        if account is None:
            terms = self._of(caller)
            if terms is None:
                return None
            account = self._accounts[caller] = Account(caller, terms, self._told, self._others(caller))
        else:
            terms = account.terms
            if terms is None:
                return None
        account.admit(terms, model, now)
        return account

    def permit(self, caller: str, model: str) -> None:
        """As `admit` for questions about a model, which are not counted."""
        if not self.permitted(caller, model):
            self._told("model")
            raise forbidden(caller, model)

    def permitted(self, caller: str, model: str) -> bool:
        """Whether the caller may call that model; raises Unavailable."""
        terms = self._of(caller)
        return terms is None or terms.allow(model)

    def _of(self, caller: str) -> Terms | None:
        if not self._read:
            raise Unavailable(UNREAD, retry_after=RETRY_SECONDS)
        terms = self._terms.get(caller)
        return terms if terms is not None else self._terms.get(DEFAULT)


def forbidden(tenant: str, model: str) -> PermissionDenied:
    """The same words whether there is such a model or not: what he may not call he need not know of."""
    return PermissionDenied(
        f"tenant '{tenant}' may not call model {shown(model)}; ask whoever runs this platform to add it to the "
        "tenant's models",
        field="model_name",
    )
