"""Two choices, the less busy one; nothing tried, nothing ejected unless there is no other."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import balance
from services.gateway.pace import Pace


@given(st.lists(st.integers(0, 100), min_size=1, max_size=10), st.integers())
def test_one_of_the_candidates_and_never_the_busiest_of_many(loads: list[int], seed: int) -> None:
    candidates = list(range(len(loads)))
    chosen = balance.choose(candidates, lambda each: (loads[each], 0.0), random.Random(seed).randrange)
    assert chosen in candidates
    if len(set(loads)) == len(loads) > 1:
        assert loads[chosen] != max(loads)


def test_two_distinct_candidates_are_compared() -> None:
    for seed in range(50):
        assert (
            balance.choose(
                ["idle", "busy"], {"idle": (0, 0.0), "busy": (1, 0.0)}.__getitem__, random.Random(seed).randrange
            )
            == "idle"
        )


def test_equal_ones_share_evenly() -> None:
    draw = random.Random(7).randrange
    counts = Counter(balance.choose("abcd", lambda _: (0, 0.0), draw) for _ in range(4000))
    assert set(counts) == set("abcd")
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_usable() -> None:
    def usable(tried: str, ejected: str) -> str:
        return "".join(balance.usable("abc", tried.__contains__, ejected.__contains__))

    assert usable("", "") == "abc"
    assert usable("", "b") == "ac"
    assert usable("a", "b") == "c"
    assert usable("a", "bc") == "bc"  # rather a broken one than none
    assert usable("", "abc") == "abc"
    assert usable("abc", "") == ""


def test_the_one_that_would_answer_sooner() -> None:
    def chosen(one: tuple[int, float], other: tuple[int, float]) -> str:
        found = {
            balance.choose(["one", "other"], {"one": one, "other": other}.__getitem__, random.Random(seed).randrange)
            for seed in range(20)
        }
        return "/".join(sorted(found))

    assert chosen((2, 0.010), (0, 0.050)) == "one", "30 ms are less than 50"
    assert chosen((5, 0.010), (0, 0.050)) == "other", "60 ms are more"
    assert chosen((2, 0.010), (0, 0.0)) == "other", "without knowing, the less busy one"
    assert chosen((0, 0.0), (0, 0.050)) == "one/other"


class Server:
    """A worker that serves one request after the other, each in about as long a time. pace: as a gateway sees it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.pace = seconds, Pace()
        self.free_at, self.outstanding = 0.0, 0
        self.ends: list[float] = []


def simulated(
    servers: list[Server], rate: float, until: float, *, known: bool, change: tuple[float, int, float] | None = None
) -> list[tuple[float, int, float]]:
    """When each request came, who got it, how long it took. known: latencies are looked at; change: at this time this
    server takes so long."""
    chance = random.Random(11)
    ends: list[tuple[float, int, float]] = []
    served: list[tuple[float, int, float]] = []
    now = 0.0
    while now < until:
        now += chance.expovariate(rate)
        while ends and ends[0][0] <= now:
            end, number, came = heapq.heappop(ends)
            servers[number].outstanding -= 1
            servers[number].pace.answered(end, end - came)
        if change is not None and now >= change[0]:
            servers[change[1]].seconds = change[2]

        def load(number: int, now: float = now) -> tuple[int, float]:
            server = servers[number]
            return server.outstanding, server.pace.expected(now) if known else 0.0

        number = balance.choose(range(len(servers)), load, chance.randrange)
        server = servers[number]
        server.pace.began(now)
        server.outstanding += 1
        begins = max(now, server.free_at)
        server.free_at = begins + server.seconds * chance.uniform(0.8, 1.2)
        heapq.heappush(ends, (server.free_at, number, now))
        served.append((now, number, server.free_at - now))
    return served


def p99(took: list[float]) -> float:
    return sorted(took)[int(0.99 * len(took))]


@pytest.mark.parametrize(("load", "least", "most"), [(0.6, 0.1, 0.33), (0.9, 0.25, 0.36)])
def test_a_worker_three_times_slower_gets_a_third_and_callers_notice_it_less(
    load: float, least: float, most: float
) -> None:
    """Three workers, one of them three times slower, at a part of what they can do. The busier they are, the nearer the
    slow one's share comes to a third of another's; while the others have time it gets less."""
    capacity = 100.0 + 100.0 + 100.0 / 3
    found = []
    for known in (False, True):
        served = simulated([Server(0.01), Server(0.01), Server(0.03)], load * capacity, 60.0, known=known)
        later = [each for each in served if each[0] > 5.0]
        shares = Counter(number for _, number, _ in later)
        found.append((2 * shares[2] / (shares[0] + shares[1]), p99([took for _, _, took in later])))
    (blind, blind_p99), (share, better_p99) = found
    assert least < share < most < blind
    assert better_p99 < 0.75 * blind_p99


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_one_that_was_slow_is_found_well_again(rate: float) -> None:
    servers = [Server(0.01), Server(0.01), Server(0.05)]
    served = simulated(servers, rate, 120.0, known=True, change=(60.0, 2, 0.01))
    slow = [number for at, number, _ in served if 10 < at < 60].count(2)
    well = [number for at, number, _ in served if at > 90]
    assert slow >= 5, "it is tried now and then"
    assert slow < 0.1 * rate * 50
    assert well.count(2) > 0.25 * len(well)
