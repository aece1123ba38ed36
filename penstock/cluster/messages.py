"""etcd's messages to the values of `kv` and back; its refusals to our errors. Pure.

Beside `etcd`, which makes the calls, the only file that knows etcd's protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc

from penstock import errors
from penstock.cluster.kv import (
    Changes,
    Compacted,
    Compare,
    Event,
    KeyValue,
    LeaseGone,
    NoSpace,
    Op,
    Point,
    Put,
    Rewound,
)
from penstock.errors import PenstockError, PermissionDenied, TooLarge, Unavailable
from penstock.internal.etcd import rpc_pb2 as pb

_ALARM = re.compile(r"alarm:([A-Z]+)")

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


def name(key: str) -> bytes:
    """A key as etcd has it."""
    return key.encode(errors="surrogateescape")


def end_of(prefix: str) -> bytes:
    """The first key after all that begin with the prefix, which ends with a slash; empty for a single key."""
    data = name(prefix)
    return data[:-1] + bytes([data[-1] + 1]) if prefix.endswith("/") else b""


def point(header: pb.ResponseHeader) -> Point:
    """Where in the store's history an answer was made."""
    return Point(header.cluster_id, header.raft_term, header.revision)


def key_value(item: pb.KeyValue) -> KeyValue:
    """One key as read."""
    return KeyValue(_text(item.key), item.value, item.create_revision, item.mod_revision, item.lease)


def changes(answer: pb.WatchResponse, revision: int) -> Changes:
    """One message of a watch that has told everything up to `revision`. Raises Compacted, Rewound, Unavailable."""
    head = point(answer.header)
    if answer.compact_revision:
        raise Compacted("the coordination store has forgotten that revision")
    if answer.canceled:
        raise Unavailable("the coordination store ended a watch", detail=answer.cancel_reason)
    if answer.created:
        # etcd accepts a revision of the future and waits for it in silence: after a restore, perhaps for ever.
        if head.revision < revision:
            raise Rewound("the coordination store is older than it was")
        return Changes(revision, (), head)
    if answer.events:
        # The header may be ahead of what was sent so far, so only events move the point to resume from.
        return Changes(answer.events[-1].kv.mod_revision, tuple(_event(event) for event in answer.events), head)
    # Progress that the member volunteers holds for this watch. The answer to our own question (watch id -1) does not:
    # members before 3.5.8 may send it ahead of events (etcd#15220), so it is a sign of life and no more.
    return Changes(revision if answer.watch_id == -1 else max(revision, head.revision), (), head)


def alarms(texts: Iterable[str]) -> frozenset[str]:
    """Names of the alarms that a member's status speaks of, such as NOSPACE; its other complaints are passed over."""
    return frozenset(name for text in texts for name in _ALARM.findall(text))


def refused(error: grpc.aio.AioRpcError | None) -> PenstockError:
    """What a failed call means; None: no answer at all."""
    if error is None:
        return Unavailable("the coordination store went silent")
    status, text = error.code(), error.details() or ""
    detail = f"{status.name}: {text}"
    if status == grpc.StatusCode.NOT_FOUND and "lease" in text:
        return LeaseGone("the lease has ended", detail=detail)
    if status == grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return Compacted("the coordination store has forgotten that revision", detail=detail)
    if status == grpc.StatusCode.OUT_OF_RANGE and "future" in text:
        return Rewound("the coordination store is older than it was", detail=detail)
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED and "space" in text:
        return NoSpace(
            "the coordination store is full and takes no writes: compact and defragment it, then disarm its alarm",
            detail=detail,
        )
    if "too large" in text or "larger than max" in text:
        return TooLarge("the request is larger than the coordination store takes", detail=detail)
    if status in _AWAY:
        return Unavailable("the coordination store does not answer", detail=detail)
    if status == grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDenied("the coordination store does not let its user do that: see etcd_user", detail=detail)
    if "authentication failed" in text or "user name is empty" in text or "invalid auth token" in text:
        # Not the caller's fault but ours, whose settings they are; it may be mended while we run.
        return Unavailable(
            "the coordination store does not know us: see etcd_user and etcd_password_file", detail=detail
        )
    failure = errors.from_grpc(int(status.value[0]), "the coordination store refused")
    failure.detail = detail
    return failure


def condition(item: Compare) -> pb.Compare:
    """A condition of a transaction."""
    if item.or_later:
        before = item.revision - 1
        return pb.Compare(result=pb.Compare.GREATER, target=pb.Compare.MOD, key=name(item.key), mod_revision=before)
    if item.modified:
        return pb.Compare(target=pb.Compare.MOD, key=name(item.key), mod_revision=item.revision)
    return pb.Compare(target=pb.Compare.CREATE, key=name(item.key), create_revision=item.revision)


def operation(op: Op) -> pb.RequestOp:
    """An operation of a transaction."""
    if isinstance(op, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=name(op.key), value=op.value, lease=op.lease))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=name(op.key)))


def _event(event: pb.Event) -> Event:
    deleted = event.type == pb.Event.DELETE
    value = None if deleted else event.kv.value
    return Event(_text(event.kv.key), value, event.kv.mod_revision, event.kv.create_revision)


def _text(key: bytes) -> str:
    # Ours are ASCII. A stranger's may be anything: it must not end who only passes by, and whoever may delete it must
    # be able to name it.
    return key.decode(errors="surrogateescape")
