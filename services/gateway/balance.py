"""Which replica gets a request: power of two choices by when it would be answered. Pure.

Two candidates are drawn at random and the one that would answer sooner wins. That is within a constant of always taking
the best, without the herd that a common "best" attracts when several gateways see the same picture (Mitzenmacher, "The
Power of Two Choices in Randomized Load Balancing", 2001). A replica would answer after its mean latency for each of our
own requests that it has and for this one, so one that is three times slower gets a third of the requests. Where the
latency of either is not known (pace.py says when), the one with fewer of our requests wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

Load = tuple[int, float]
"""Our requests that a replica has, and the seconds that it takes for one; 0 where that is not known."""


def choose(candidates: Sequence[T], load: Callable[[T], Load], randrange: Callable[[int], int]) -> T:
    """One of the candidates, of which there must be at least one.

    randrange(n) draws an integer from 0 to n-1; it is called twice unless there is no choice.
    """
    count = len(candidates)
    if count == 1:
        return candidates[0]
    first = randrange(count)
    second = randrange(count - 1)
    if second >= first:
        second += 1  # the other one, drawn evenly from the rest
    one, other = candidates[first], candidates[second]
    return other if _sooner(load(other), load(one)) else one


def _sooner(load: Load, than: Load) -> bool:
    outstanding, latency = load
    its_outstanding, its_latency = than
    if latency and its_latency:
        return (outstanding + 1) * latency < (its_outstanding + 1) * its_latency
    return outstanding < its_outstanding


def usable(candidates: Sequence[T], tried: Callable[[T], bool], ejected: Callable[[T], bool]) -> Sequence[T]:
    """Candidates not tried yet, without the ejected ones unless nothing else is left.

    When everything is ejected, trying is still better than a certain failure.
    """
    fresh = [candidate for candidate in candidates if not tried(candidate)]
    healthy = [candidate for candidate in fresh if not ejected(candidate)]
    return healthy or fresh
