"""Two choices, the less busy one; nothing tried, nothing ejected unless there is no other."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.gateway import balance


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
            balance.choose(["idle", "busy"], {"idle": (0, 0.0), "busy": (1, 0.0)}.__getitem__, random.Random(seed).randrange)
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
