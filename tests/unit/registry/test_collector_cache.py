"""What the cache of builds keeps, as values."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.collector.cache import PLANS, RESULTS, Entry, Kind, Limits, evicted, kept_bytes, reason

NOW = 1_000_000


def entry(key: str, used: int, busy: bool = False, kind: Kind = RESULTS, **files: int) -> Entry:
    return Entry(kind, key, files or {key: 10}, used, busy)


def gone(entries: Iterable[Entry], limits: Limits, named: frozenset[str] = frozenset()) -> list[str]:
    return [one.key for one in evicted(entries, named, limits, NOW)]


def test_what_was_not_used_for_longest_goes_first() -> None:
    entries = [entry("b", 2), entry("d", 4), entry("a", 1), entry("c", 3)]
    assert gone(entries, Limits()) == []
    assert gone(entries, Limits(bytes=40)) == []
    assert gone(entries, Limits(bytes=39)) == ["a"]
    assert gone(entries, Limits(bytes=20)) == ["a", "b"]
    assert gone(entries, Limits(bytes=0)) == ["a", "b", "c", "d"]


def test_what_is_older_than_one_that_does_not_fit_goes_even_if_it_would() -> None:
    entries = [entry("old", 1, old=1), entry("middle", 2, middle=6), entry("new", 3, new=6)]
    assert gone(entries, Limits(bytes=8)) == ["old", "middle"]


def test_one_that_is_larger_than_the_cache_does_not_take_the_place_of_others() -> None:
    entries = [entry("old", 1), entry("huge", 2, huge=1000)]
    assert gone(entries, Limits(bytes=100)) == ["huge"]


def test_what_a_build_uses_stays_and_counts() -> None:
    entries = [entry("a", 1, busy=True, a=60), entry("b", 2, b=50), entry("c", 3, c=40)]
    assert gone(entries, Limits(bytes=100)) == ["b"]
    assert gone(entries, Limits(bytes=0, age=0)) == ["b", "c"]


def test_what_others_name_costs_nothing() -> None:
    entries = [entry("free", 1, model=500), entry("small", 2)]
    assert gone(entries, Limits(bytes=10), frozenset({"model"})) == []
    assert gone(entries, Limits(bytes=10)) == ["free"]
    # Too old is too old.
    assert gone(entries, Limits(age=NOW - 2), frozenset({"model"})) == ["free"]


def test_a_file_of_two_entries_is_paid_for_once() -> None:
    plan, result = entry("plan", 2, kind=PLANS, plan=90), entry("step", 1, plan=90, cache=10)
    assert gone([plan, result], Limits(bytes=100)) == []
    assert gone([plan, result], Limits(bytes=99)) == ["step"]
    assert kept_bytes([plan, result]) == {PLANS: 90, RESULTS: 100}


def test_age_is_counted_from_the_last_use() -> None:
    entries = [entry("at the limit", NOW - 10), entry("beyond", NOW - 11), entry("used", NOW, busy=True)]
    assert gone(entries, Limits(age=10)) == ["beyond"]


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.sampled_from((RESULTS, PLANS)),
        st.text("abc", min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("uvwxyz"), st.integers(0, 50), max_size=3),
        st.integers(0, 100),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda one: (one.kind, one.key),
)


@given(ENTRIES, st.frozensets(st.sampled_from("uvwxyz")), st.integers(0, 200))
def test_what_stays_fits_unless_builds_use_it(entries: list[Entry], named: frozenset[str], most: int) -> None:
    out = evicted(entries, named, Limits(bytes=most), NOW)
    assert not any(one.busy for one in out)
    kept = [one for one in entries if one not in out]
    sizes: dict[str, int] = {}
    for one in sorted(kept, key=lambda one: (one.busy, one.used, one.kind, one.key), reverse=True):
        for digest, size in one.files.items():
            sizes.setdefault(digest, size)
    spent = sum(size for digest, size in sizes.items() if digest not in named)
    busy = {digest for one in kept if one.busy for digest in one.files}
    assert spent <= most or {digest for digest, size in sizes.items() if size} <= named | busy
    # Nothing is thrown away that would have been free.
    assert all(set(one.files) - named for one in out)


@pytest.mark.parametrize(
    ("digest", "claimed", "why"),
    [
        ("v", 0, "versions"),
        ("b", 0, "builds"),
        ("c", 0, "cache"),
        ("n", 10, "new"),
        ("n", 9, None),
        ("v", 99, "versions"),
    ],
)
def test_an_artifact_is_kept_for_one_reason(digest: str, claimed: float, why: str | None) -> None:
    found = reason(digest, claimed, versions={"v"}, builds={"v", "b"}, cache={"v", "b", "c"}, before=10)
    assert found == why
