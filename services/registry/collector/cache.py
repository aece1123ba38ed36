"""What the cache of builds keeps and what every artifact is kept for. Pure: times and sizes are passed in.

An entry is a result of a step or a plan. It costs the bytes of those of its files that nothing else names; where
entries share a file, the one that was used last pays for it. An entry that a waiting or running build uses stays,
whatever the limits say; so does one that costs nothing, until it is too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["results", "plans"]
Why = Literal["versions", "builds", "cache", "new"]
"""What an artifact is kept for: the first that holds, in this order."""

RESULTS: Final[Kind] = "results"
PLANS: Final[Kind] = "plans"


@dataclass(frozen=True, slots=True)
class Entry:
    """A result or a plan. files: digest → bytes. used: microseconds since 1970. busy: a build uses it."""

    kind: Kind
    key: str
    files: Mapping[str, int]
    used: int
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes: of all entries together; age: microseconds since the last use. None: any number."""

    bytes: int | None = None
    age: int | None = None


def evicted(entries: Iterable[Entry], named: Set[str], limits: Limits, now: int) -> tuple[Entry, ...]:
    """The entries that go, those that were not used for longest first.

    named: digests that versions or builds name, which cost nothing here. An entry larger than the whole cache goes by
    itself, so that it does not take the place of all others.
    """
    free, spent, full = set(named), 0, False
    gone: list[Entry] = []
    for entry in sorted(entries, key=lambda one: (one.busy, one.used, one.kind, one.key), reverse=True):
        cost = sum(size for digest, size in entry.files.items() if digest not in free)
        fits = limits.bytes is None or spent + cost <= limits.bytes
        old = limits.age is not None and now - entry.used > limits.age
        if not entry.busy and (old or (cost and (full or not fits))):
            full = full or (not old and limits.bytes is not None and cost <= limits.bytes)
            gone.append(entry)
            continue
        spent += cost
        free |= entry.files.keys()
    return tuple(reversed(gone))


def kept_bytes(entries: Iterable[Entry]) -> dict[Kind, int]:
    """Bytes of the files of results and of plans, each file once for each of the two."""
    files: dict[Kind, dict[str, int]] = {RESULTS: {}, PLANS: {}}
    for entry in entries:
        files[entry.kind].update(entry.files)
    return {kind: sum(sizes.values()) for kind, sizes in files.items()}


def reason(
    digest: str, claimed: float, *, versions: Set[str], builds: Set[str], cache: Set[str], before: float
) -> Why | None:
    """What an artifact is kept for; None where it can go.

    versions, builds, cache: digests that each of them names. claimed: when somebody last wanted it; before: what was
    claimed earlier than this is not new any more. Both in seconds of one clock.
    """
    if digest in versions:
        return "versions"
    if digest in builds:
        return "builds"
    if digest in cache:
        return "cache"
    return "new" if claimed >= before else None
