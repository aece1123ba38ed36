"""etcd's v3 API as Penstock needs it: a thin client over grpc.aio, and the only file that knows etcd's messages.

Every call has a timeout and raises a PenstockError. A member that does not answer is left for the next endpoint; reads
are tried there at once, writes are not, since the first may have been done: Unavailable from a write means "unknown".
A watch is one stream; it ends with an error when it breaks, and resuming is `watch.Mirror`'s business.
Why not a library: docs/decisions/0002-own-etcd-client.md.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import grpc

from penstock import errors
from penstock.cluster.kv import (
    Changes,
    Compacted,
    Compare,
    Event,
    KeyValue,
    LeaseGone,
    Op,
    Point,
    Put,
    Range,
    Renewal,
    Rewound,
    TxnResult,
)
from penstock.errors import PenstockError, Unavailable
from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_OPERATIONS = 100
"""Operations that one `txn` may hold; etcd's own default limit is 128."""

HEARTBEAT = 2.0
"""Seconds after which a watch asks the member for a sign of life. gRPC's keepalive alone would take 13 s."""

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),
)


class Etcd:
    """A connection to an etcd cluster. Make it inside a running loop; `close` it last.

    Args:
        endpoints: `host:port` of members, tried in turn.
        timeout: seconds for one call, unless the call says otherwise.
        credentials: of TLS; None speaks plain text.
        heartbeat: seconds between signs of life of a watch.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float = 3.0,
        credentials: grpc.ChannelCredentials | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self.endpoints = tuple(endpoints)
        self.timeout = timeout
        self._members = [_Member(endpoint, credentials) for endpoint in endpoints]
        self._heartbeat = heartbeat

    async def close(self) -> None:
        """Closes the channels. End mirrors, memberships and elections first."""
        for member in self._members:
            await member.channel.close()

    async def get(self, key: str, *, within: float | None = None) -> KeyValue | None:
        """The key now (linearisable), or None. within: seconds to wait, instead of `timeout`."""
        answer = await self._read(lambda member: member.kv.Range, pb.RangeRequest(key=key.encode()), within)
        return _key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str) -> Range:
        """All keys that begin with the prefix (linearisable), in order."""
        request = pb.RangeRequest(key=prefix.encode(), range_end=_end_of(prefix))
        answer = await self._read(lambda member: member.kv.Range, request)
        return Range(_point(answer.header), [_key_value(item) for item in answer.kvs])

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Writes a key; the revision of the write. Raises LeaseGone."""
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        return (await self._write(lambda member: member.kv.Put, request)).header.revision

    async def delete(self, key: str) -> bool:
        """Deletes a key; False if there was none."""
        request = pb.DeleteRangeRequest(key=key.encode())
        return (await self._write(lambda member: member.kv.DeleteRange, request)).deleted > 0

    async def txn(self, compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        """Does `then` if all conditions hold, else `otherwise`, in one step. Raises LeaseGone."""
        request = pb.TxnRequest(
            compare=[_compare(item) for item in compare],
            success=[_operation(op) for op in then],
            failure=[_operation(op) for op in otherwise],
        )
        answer = await self._write(lambda member: member.kv.Txn, request)
        return TxnResult(answer.succeeded, answer.header.revision)

    async def compact(self, revision: int) -> None:
        """Forgets the history before that revision. etcd does this itself in operation; tests ask for it."""
        await self._write(lambda member: member.kv.Compact, pb.CompactionRequest(revision=revision, physical=True))

    async def grant(self, ttl: float) -> int:
        """Id of a new lease that lasts at least `ttl` seconds (etcd counts whole seconds and has a minimum)."""
        answer = await self._write(lambda member: member.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=math.ceil(ttl)))
        if answer.error:
            raise Unavailable("the coordination store gives no lease", detail=answer.error)
        return answer.ID

    async def keepalive(self, lease: int, *, within: float | None = None) -> Renewal:
        """Renews a lease once. within: seconds to wait, instead of `timeout`."""
        member = self._members[0]
        call = member.lease.LeaseKeepAlive(_once(pb.LeaseKeepAliveRequest(ID=lease)), timeout=within or self.timeout)
        try:
            with self._asking(member):
                answer = await call.read()
        finally:
            call.cancel()
        if not isinstance(answer, pb.LeaseKeepAliveResponse):
            raise self._failure(member, None)
        return Renewal(float(max(answer.TTL, 0)), _point(answer.header))

    async def revoke(self, lease: int, *, within: float | None = None) -> None:
        """Ends a lease and all keys under it; fine if it is gone already."""
        with suppress(LeaseGone):
            await self._write(lambda member: member.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease), within)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        """Changes of all keys under a prefix from that revision on; begins with an empty one when the watch stands.

        Iterate inside `contextlib.aclosing`, which ends the stream. Raises Compacted, Rewound, or Unavailable when it
        breaks; a member that is silent for longer than heartbeat + timeout counts as broken.
        """
        member = self._members[0]
        call = member.watch.Watch(self._watch_requests(prefix, start_revision), metadata=(("hasleader", "true"),))
        revision = start_revision - 1
        try:
            while True:
                with self._asking(member):
                    async with asyncio.timeout(self._heartbeat + self.timeout):
                        answer = await call.read()
                if not isinstance(answer, pb.WatchResponse):
                    raise self._failure(member, None)
                changes = _changes(answer, revision)
                revision = changes.revision
                yield changes
        finally:
            call.cancel()

    async def _watch_requests(self, prefix: str, start_revision: int) -> AsyncIterator[pb.WatchRequest]:
        create = pb.WatchCreateRequest(
            key=prefix.encode(), range_end=_end_of(prefix), start_revision=start_revision, progress_notify=True
        )
        yield pb.WatchRequest(create_request=create)
        while True:
            await asyncio.sleep(self._heartbeat)
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())

    async def _read(
        self,
        method: Callable[[_Member], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        within: float | None = None,
    ) -> Response:
        """Tries every endpoint once, all within one timeout."""
        tries = len(self._members)
        within = (within or self.timeout) / tries
        for _ in range(tries - 1):
            with suppress(Unavailable):
                return await self._write(method, request, within)
        return await self._write(method, request, within)

    async def _write(
        self,
        method: Callable[[_Member], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        within: float | None = None,
    ) -> Response:
        """Tries one endpoint once."""
        member = self._members[0]
        with self._asking(member):
            return await method(member)(request, timeout=within or self.timeout)

    @contextmanager
    def _asking(self, member: _Member) -> Iterator[None]:
        """Turns every way in which a call fails into one of our errors."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._failure(member, error) from error
        except TimeoutError:
            raise self._failure(member, None) from None
        except asyncio.CancelledError:
            # When a connection breaks while a stream is being written, grpc.aio cancels the call by itself and raises
            # this in the reader, whose task nobody has cancelled and who would end in silence.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._failure(member, None) from None

    def _failure(self, member: _Member, error: grpc.aio.AioRpcError | None) -> PenstockError:
        """What to raise; puts a member that did not answer last in line."""
        failure = _translated(error)
        if isinstance(failure, Unavailable) and self._members[0] is member:
            self._members.append(self._members.pop(0))
        return failure


class _Member:
    """One endpoint: its channel and stubs."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self.kv = rpc.KVStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)


async def _once(request: Request) -> AsyncIterator[Request]:
    yield request


def _changes(answer: pb.WatchResponse, revision: int) -> Changes:
    """One message of a watch that has told everything up to `revision`."""
    point = _point(answer.header)
    if answer.compact_revision:
        raise Compacted("the coordination store has forgotten that revision")
    if answer.canceled:
        raise Unavailable("the coordination store ended a watch", detail=answer.cancel_reason)
    if answer.created:
        # etcd accepts a revision of the future and waits for it in silence: after a restore, perhaps for ever.
        if point.revision < revision:
            raise Rewound("the coordination store is older than it was")
        return Changes(revision, (), point)
    if answer.events:
        # The header may be ahead of what was sent so far, so only events move the point to resume from.
        return Changes(answer.events[-1].kv.mod_revision, tuple(_event(event) for event in answer.events), point)
    # Progress that the member volunteers holds for this watch. The answer to our own question (watch id -1) does not:
    # members before 3.5.8 may send it ahead of events (etcd#15220), so it is a sign of life and no more.
    return Changes(revision if answer.watch_id == -1 else max(revision, point.revision), (), point)


def _translated(error: grpc.aio.AioRpcError | None) -> PenstockError:
    if error is None:
        return Unavailable("the coordination store went silent")
    status, text = error.code(), error.details() or ""
    if status == grpc.StatusCode.NOT_FOUND and "lease" in text:
        return LeaseGone("the lease has ended", detail=text)
    if status == grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return Compacted("the coordination store has forgotten that revision", detail=text)
    if status in _AWAY:
        return Unavailable("the coordination store does not answer", detail=f"{status.name}: {text}")
    number = int(status.value[0])
    failure = errors.from_grpc(number, "the coordination store refused")
    failure.detail = f"{status.name}: {text}"
    return failure


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


def _end_of(prefix: str) -> bytes:
    """The first key after all that begin with the prefix."""
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])


def _point(header: pb.ResponseHeader) -> Point:
    return Point(header.cluster_id, header.raft_term, header.revision)


def _key_value(item: pb.KeyValue) -> KeyValue:
    return KeyValue(item.key.decode(), item.value, item.create_revision, item.mod_revision, item.lease)


def _event(event: pb.Event) -> Event:
    deleted = event.type == pb.Event.DELETE
    value = None if deleted else event.kv.value
    return Event(event.kv.key.decode(), value, event.kv.mod_revision, event.kv.create_revision)


def _compare(item: Compare) -> pb.Compare:
    if item.modified:
        return pb.Compare(target=pb.Compare.MOD, key=item.key.encode(), mod_revision=item.revision)
    return pb.Compare(target=pb.Compare.CREATE, key=item.key.encode(), create_revision=item.revision)


def _operation(op: Op) -> pb.RequestOp:
    if isinstance(op, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=op.key.encode()))
