"""What a conversation with the store is made of: answers, conditions, operations, and the ways it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from penstock import errors
from penstock.errors import ResourceExhausted, TooLarge, Unavailable

MAX_OPERATIONS: Final = 100
"""Operations that one transaction may hold; etcd's own default limit is 128."""

MAX_REQUEST_BYTES: Final = 1024 * 1024
"""What one write may hold, keys and values together; etcd's own default limit is 1.5 MiB."""

_OPERATION_BYTES: Final = 64
"""More than an operation has around its key and its value."""


class Compacted(Unavailable):
    """The revision to watch from is compacted away: read everything again."""


class Rewound(Unavailable):
    """The store is older than what we have seen of it (restored, or emptied): read everything again."""


class NoSpace(ResourceExhausted):
    """The store is full: it reads and renews leases, and refuses writes until somebody makes room (docs/etcd.md)."""


class LeaseGone(errors.NotFound):
    """The lease of a write has ended."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where in the store's history an answer was made."""

    cluster: int
    raft_term: int
    revision: int

    def follows(self, earlier: Point) -> bool:
        """Whether this may be a later point of the same history. False is also possible for a member that lags."""
        return (
            self.cluster == earlier.cluster
            and self.raft_term >= earlier.raft_term
            and self.revision >= earlier.revision
        )


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as read. lease: id of the lease it lives under, 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Range:
    """All keys of a prefix at one revision."""

    point: Point
    items: list[KeyValue]

    @property
    def revision(self) -> int:
        return self.point.revision


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. value: None when the key was deleted."""

    key: str
    value: bytes | None
    revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What one message of a watch says. A watch that breaks after it can resume from `revision` + 1.

    events: in order, all of a revision together; empty for a sign of life.
    point: the member's head when it spoke, which may be ahead of `revision`.
    """

    revision: int
    events: tuple[Event, ...]
    point: Point


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: the key was created (or last modified) at exactly this revision; 0: is absent.
    or_later: last modified then or at any later revision."""

    key: str
    revision: int
    modified: bool = False
    or_later: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Writes a key in a transaction."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a key in a transaction."""

    key: str


Op = Put | Delete


def size(op: Op) -> int:
    """Bytes that the operation takes of a request, at most."""
    return len(op.key) + (len(op.value) if isinstance(op, Put) else 0) + _OPERATION_BYTES


def check_size(operations: Sequence[Op]) -> None:
    """Raises TooLarge for what no single request may hold, so that nobody tries for ever what cannot be."""
    total = sum(map(size, operations))
    if total > MAX_REQUEST_BYTES:
        raise TooLarge(
            f"{total} bytes in one write; the coordination store takes {MAX_REQUEST_BYTES}",
            detail=max(operations, key=size).key,
        )


def batches(operations: Sequence[Op], max_bytes: int = MAX_REQUEST_BYTES) -> Iterator[list[Op]]:
    """All operations in their order, in runs that one transaction may hold. One that is too large comes alone."""
    batch: list[Op] = []
    total = 0
    for op in operations:
        if batch and (len(batch) == MAX_OPERATIONS or total + size(op) > max_bytes):
            yield batch
            batch, total = [], 0
        batch.append(op)
        total += size(op)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class TxnResult:
    """succeeded: whether the conditions held; revision: the store's after the transaction."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """ttl: seconds that the lease has from now, 0 when it is gone."""

    ttl: float
    point: Point


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, 0)


def created(key: str, revision: int) -> Compare:
    """The key exists since exactly that revision."""
    return Compare(key, revision)


def modified(key: str, revision: int) -> Compare:
    """The key was last written at exactly that revision."""
    return Compare(key, revision, modified=True)


def not_older(key: str, revision: int) -> Compare:
    """The key was last written at that revision or later."""
    return Compare(key, revision, modified=True, or_later=True)
