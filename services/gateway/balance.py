"""Which replica gets a request: power of two choices by outstanding requests. Pure.

Two candidates are drawn at random and the one with fewer of our own requests in flight wins. That is within a
constant of always taking the least loaded, without the herd that a common "least loaded" attracts when several
gateways see the same picture (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def choose(candidates: Sequence[T], outstanding: Callable[[T], int], randrange: Callable[[int], int]) -> T:
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
    return other if outstanding(other) < outstanding(one) else one


def usable(candidates: Sequence[T], tried: Callable[[T], bool], ejected: Callable[[T], bool]) -> Sequence[T]:
    """Candidates not tried yet, without the ejected ones unless nothing else is left.

    When everything is ejected, trying is still better than a certain failure.
    """
    fresh = [candidate for candidate in candidates if not tried(candidate)]
    healthy = [candidate for candidate in fresh if not ejected(candidate)]
    return healthy or fresh
