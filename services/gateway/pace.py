"""Which replicas are gray: they take requests, and answer late, wrongly or not at all, while others answer. Pure: the
time is passed in.

A gray replica passes every check of its health; only who sends it requests can tell (Huang et al., "Gray Failure: The
Achilles' Heel of Cloud-Scale Systems", 2017). So each is compared with the others of the same model, as this gateway
has met them:

silent   it had something to answer for SILENCE seconds, and for FACTOR_SILENT times its usual latency, and answered
         nothing; another answered meanwhile. A replica that is asked nothing is not silent, and callers who give up
         do not end a silence.
slow     its mean latency is FACTOR_SLOW times the median of the others' and SLACK seconds more, and still was after
         PATIENCE seconds and ENOUGH_MORE further answers.
failing  the share of its newest answers that were INTERNAL, which blames the server and not the request, is FAILING at
         least and FACTOR_FAILING times the median of the others', who answered meanwhile. Requests that no replica can
         serve make nobody failing. Errors come quickly: without this such a replica would look idle and draw all.

At most a third of a model's replicas are gray at a time, and never the last one: when all suffer, the load is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Final, Literal, TypeVar

from .demand import Flow

K = TypeVar("K")
Reason = Literal["silent", "failing", "slow"]

WEIGHT: Final = 0.1
"""Of the newest latency in the mean, once there are enough."""
OUTLIER: Final = 10.0
"""No answer counts as later than so many times the mean: one alone makes nobody slow."""
SILENCE: Final = 2.5
FACTOR_SILENT: Final = 5.0
FACTOR_SLOW: Final = 3.0
SLACK: Final = 0.01
ENOUGH: Final = 20
"""Answers before a mean says anything."""
ENOUGH_MORE: Final = 10
STALE: Final = 3.0
"""Seconds without a request after which a mean says little: it is tried as if nothing were known."""
WEIGHT_AFRESH: Final = 0.5
"""Of a latency in the mean when it is lower, after so long a time."""
PATIENCE: Final = 1.0
FAILING: Final = 0.5
FACTOR_FAILING: Final = 3.0
WELL: Final = 0.05
"""Share of failures below which nothing is held against a replica any more."""
_WORST_FIRST: Final[tuple[Reason, ...]] = ("silent", "failing", "slow")
"""Those that answer nothing cost most."""


class Pace:
    """How one replica answers. latency: mean of the newest answers, in seconds; seen: answers in all; flow: the
    requests of its version, to all replicas."""

    __slots__ = (
        "_busy_since",
        "_failed_first",
        "_heard",
        "_outstanding",
        "_silent",
        "_since",
        "_suspected",
        "_trouble",
        "flow",
        "latency",
        "seen",
    )

    def __init__(self, flow: Flow | None = None) -> None:
        self.flow = flow if flow is not None else Flow()
        self.latency = 0.0
        self.seen = 0
        self._outstanding = 0
        self._busy_since = 0.0
        self._silent = 0.0  # seconds without an answer before _busy_since, with something to answer
        self._heard = 0.0
        self._suspected: tuple[float, int] | None = None
        self._since = 0.0  # what was sent before says nothing
        self._trouble = 0.0  # share of the newest answers that were failures
        self._failed_first = 0.0

    @property
    def idle(self) -> bool:
        """Whether it has nothing to answer."""
        return self._outstanding == 0

    def is_unused(self, since: float) -> bool:
        """Whether it has nothing to answer and has answered nothing since then."""
        return self._outstanding == 0 and max(self._heard, self._busy_since) < since

    def began(self, now: float) -> bool:
        """A request goes there; `answered`, `failed`, `heard` or `left` must follow. True if it was idle."""
        self._outstanding += 1
        if self._outstanding > 1:
            return False
        self._busy_since = now
        return True

    def expected(self, now: float) -> float:
        """Seconds that an answer takes; 0 for not known: too few were seen, or none lately. One that was thought slow
        is so tried again, by one request at a time."""
        if self.seen < ENOUGH or (self._outstanding == 0 and now - self._heard > STALE):
            return 0.0
        return self.latency

    def answered(self, now: float, took: float) -> None:
        """It gave the answer that was asked for, after so many seconds."""
        self._outstanding -= 1
        stale = now - self._heard > STALE
        self._busy_since = self._heard = now
        self._silent = 0.0
        if now - took < self._since:
            return
        if self._trouble:
            trouble = self._trouble * (1.0 - WEIGHT)
            self._trouble = trouble if trouble > WELL else 0.0
        self.seen = seen = self.seen + 1
        latency = self.latency
        if seen <= ENOUGH:
            self.latency = latency + (took - latency) * max(WEIGHT, 1.0 / seen)
        else:
            most = OUTLIER * latency + SLACK
            weight = WEIGHT_AFRESH if stale and took < latency else WEIGHT
            self.latency = latency + ((took if took < most else most) - latency) * weight

    def failed(self, now: float) -> None:
        """It answered that it cannot, for no fault of the request."""
        if not self._trouble:
            self._failed_first = now
        self._trouble += WEIGHT * (1.0 - self._trouble)
        self.heard(now)

    def heard(self, now: float) -> None:
        """It answered with an error: it is not silent, but how fast it is is not known from that."""
        self._outstanding -= 1
        self._busy_since = self._heard = now
        self._silent = 0.0

    def left(self, now: float) -> None:
        """A request went without an answer."""
        self._outstanding -= 1
        if self._outstanding == 0:
            self._silent += now - self._busy_since

    def silence(self, now: float) -> float:
        """Seconds for which it had something to answer since it last answered anything."""
        return self._silent + (now - self._busy_since if self._outstanding else 0.0)

    def forget(self, now: float) -> None:
        """What was observed is over: it is judged anew, by what is sent from now on."""
        self.seen, self.latency, self._silent, self._suspected = 0, 0.0, 0.0, None
        self._trouble = 0.0
        self._since = self._busy_since = now

    def is_silent(self, others: list[Pace], now: float) -> bool:
        """Whether it is silent while others answer."""
        silence = self.silence(now)
        if self._outstanding == 0 or silence < max(SILENCE, FACTOR_SILENT * self.latency):
            return False
        return any(other._heard > now - silence for other in others)

    def is_failing(self, others: list[Pace]) -> bool:
        """Whether it fails while others answer."""
        if self._trouble < FAILING:
            return False
        means = [other._trouble for other in others if other._heard > self._failed_first]
        return bool(means) and FACTOR_FAILING * median(means) <= self._trouble

    def is_slow(self, others: list[Pace], now: float) -> bool:
        """Whether it is slow, and has been for a while. Remembers when it first was."""
        if self.seen < ENOUGH or not too_slow(self.latency, others):
            self._suspected = None
            return False
        if self._suspected is None:
            self._suspected = now, self.seen
        since, seen = self._suspected
        return now - since >= PATIENCE and self.seen - seen >= ENOUGH_MORE


def too_slow(latency: float, others: list[Pace]) -> bool:
    """Whether a latency is out of what the others show; False while they show too little."""
    means = [other.latency for other in others if other.seen >= ENOUGH]
    if not means:
        return False
    middle = median(means)
    return latency > max(FACTOR_SLOW * middle, middle + SLACK)


def gray(paces: Mapping[K, Pace], already: frozenset[K], now: float) -> dict[K, Reason]:
    """Replicas of one model that turn out gray now; already: those that were before."""
    room = max(1, len(paces) // 3) - len(already)
    found: dict[K, Reason] = {}
    for key, pace in paces.items():
        if key in already:
            continue
        others = [other for its, other in paces.items() if its != key and its not in already]
        slow = pace.is_slow(others, now)  # always asked, since it remembers
        if pace.is_silent(others, now):
            found[key] = "silent"
        elif pace.is_failing(others):
            found[key] = "failing"
        elif slow:
            found[key] = "slow"
    worst = sorted(found, key=lambda key: (_WORST_FIRST.index(found[key]), -paces[key].latency))
    left = len(paces) - len(already) - 1
    return {key: found[key] for key in worst[: max(0, min(room, left))]}
