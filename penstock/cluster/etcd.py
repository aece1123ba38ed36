"""etcd's v3 API as Penstock needs it: a thin client over grpc.aio.

Every call has a timeout and raises a PenstockError. A member that does not answer, or has no leader, is left for the
next endpoint; reads are tried there at once, writes are not, since the first may have been done: Unavailable from a
write means "unknown", and whoever repeats it reads back first or writes what may be written twice.
A watch is one stream; it ends with an error when it breaks, and resuming is `watch.Mirror`'s business.
Why not a library: docs/decisions/0002-own-etcd-client.md.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import grpc

from penstock import signals
from penstock.cluster import messages
from penstock.cluster.kv import (
    Changes,
    Compacted,
    Compare,
    KeyValue,
    LeaseGone,
    NoSpace,
    Op,
    Put,
    Range,
    Renewal,
    Rewound,
    TxnResult,
    check_size,
)
from penstock.cluster.members import Credentials, Member, Members
from penstock.cluster.session import Headers, Login, Session
from penstock.errors import PenstockError, TooLarge, Unavailable
from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc
from penstock.kit.metrics import counter

Request = TypeVar("Request")
Response = TypeVar("Response")
Answer = TypeVar("Answer")

HEARTBEAT = 2.0
"""Seconds after which a watch asks the member for a sign of life. gRPC's keepalive alone would take 13 s."""

PAGE: Final = 500
"""Keys that one answer of a read may hold, so that a large prefix is many small answers."""

_LEADER: Final = (("hasleader", "true"),)
"""A member that has no leader refuses at once, and ends its watches, rather than waiting for one
(https://etcd.io/docs/v3.5/learning/api_guarantees/, `WithRequireLeader` of etcd's own client)."""


class Etcd:
    """A connection to an etcd cluster. Make it inside a running loop; `close` it last.

    Args:
        endpoints: `host:port` of members, tried in turn.
        timeout: seconds for one call, unless the call says otherwise.
        credentials: gives those of TLS, others after a change; None speaks plain text.
        login: the user that it is to the store; None for a store without users.
        heartbeat: seconds between signs of life of a watch.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout: float = 3.0,
        credentials: Credentials = lambda: None,
        login: Login | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self.endpoints = tuple(endpoints)
        self.timeout = timeout
        self._members = Members(endpoints, credentials, _Stubs)
        self._session = Session(_LEADER, login)
        self._heartbeat = heartbeat
        self._failures = counter(signals.ETCD_FAILURES)

    @classmethod
    def of_service(cls, endpoints: Sequence[str], credentials: Credentials, login: Login | None = None) -> Etcd:
        """As services use it: begins with any of the endpoints, so that many processes share out over the members."""
        return cls(random.sample(endpoints, len(endpoints)), credentials=credentials, login=login)

    async def close(self) -> None:
        """Closes the channels. End mirrors, memberships and elections first."""
        await self._members.close()

    async def get(self, key: str, *, within: float | None = None) -> KeyValue | None:
        """The key now (linearisable), or None. within: seconds to wait, instead of `timeout`."""
        answer = await self._read(lambda stubs: stubs.kv.Range, pb.RangeRequest(key=messages.name(key)), within)
        return messages.key_value(answer.kvs[0]) if answer.kvs else None

    async def range(self, prefix: str) -> Range:
        """All keys that begin with the prefix, or the one key where it does not end with a slash (linearisable), in
        order and of one revision. Raises Compacted when that revision was forgotten between two pages."""
        key, end, point = messages.name(prefix), messages.end_of(prefix), None
        items: list[KeyValue] = []
        while True:
            request = pb.RangeRequest(key=key, range_end=end, limit=PAGE, revision=point.revision if point else 0)
            answer = await self._read(lambda stubs: stubs.kv.Range, request)
            point = point or messages.point(answer.header)
            items += map(messages.key_value, answer.kvs)
            if not answer.more:
                return Range(point, items)
            key = answer.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Writes a key; the revision of the write. Raises LeaseGone, TooLarge, NoSpace."""
        self._check_size([Put(key, value)])
        request = pb.PutRequest(key=messages.name(key), value=value, lease=lease)
        return (await self._write(lambda stubs: stubs.kv.Put, request)).header.revision

    async def delete(self, key: str) -> bool:
        """Deletes a key; False if there was none."""
        request = pb.DeleteRangeRequest(key=messages.name(key))
        return (await self._write(lambda stubs: stubs.kv.DeleteRange, request)).deleted > 0

    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        within: float | None = None,
    ) -> TxnResult:
        """Does `then` if all conditions hold, else `otherwise`, in one step. within: seconds to wait, instead of
        `timeout`. Raises LeaseGone, TooLarge, NoSpace."""
        self._check_size([*then, *otherwise])
        request = pb.TxnRequest(
            compare=[messages.condition(item) for item in compare],
            success=[messages.operation(op) for op in then],
            failure=[messages.operation(op) for op in otherwise],
        )
        answer = await self._write(lambda stubs: stubs.kv.Txn, request, within)
        return TxnResult(answer.succeeded, answer.header.revision)

    async def alarms(self) -> frozenset[str]:
        """Alarms that the cluster has raised: NOSPACE (it refuses writes), CORRUPT (its members disagree)."""
        answer = await self._read(lambda stubs: stubs.maintenance.Status, pb.StatusRequest())
        return messages.alarms(answer.errors)

    async def compact(self, revision: int) -> None:
        """Forgets the history before that revision. etcd does this itself in operation; tests ask for it."""
        await self._write(lambda stubs: stubs.kv.Compact, pb.CompactionRequest(revision=revision, physical=True))

    async def grant(self, ttl: float) -> int:
        """Id of a new lease that lasts at least `ttl` seconds (etcd counts whole seconds and has a minimum). Raises
        NoSpace."""
        answer = await self._write(lambda stubs: stubs.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=math.ceil(ttl)))
        if answer.error:
            raise Unavailable("the coordination store gives no lease", detail=answer.error)
        return answer.ID

    async def keepalive(self, lease: int, *, within: float | None = None) -> Renewal:
        """Renews a lease once. within: seconds to wait, instead of `timeout`."""

        async def renew(stubs: _Stubs, headers: Headers, timeout: float) -> pb.LeaseKeepAliveResponse | None:
            requests = _once(pb.LeaseKeepAliveRequest(ID=lease))
            call = stubs.lease.LeaseKeepAlive(requests, timeout=timeout, metadata=headers)
            try:
                answer = await call.read()
            finally:
                call.cancel()
            return answer if isinstance(answer, pb.LeaseKeepAliveResponse) else None

        member = await self._members.first()
        answer = await self._asked(member, renew, within)
        if answer is None:
            raise self._failure(member, None)
        return Renewal(float(max(answer.TTL, 0)), messages.point(answer.header))

    async def revoke(self, lease: int, *, within: float | None = None) -> None:
        """Ends a lease and all keys under it; fine if it is gone already."""
        with suppress(LeaseGone):
            await self._write(lambda stubs: stubs.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease), within)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        """Changes of all keys under a prefix from that revision on; begins with an empty one when the watch stands.

        Iterate inside `contextlib.aclosing`, which ends the stream. Raises Compacted, Rewound, or Unavailable when it
        breaks; a member that is silent for longer than heartbeat + timeout counts as broken.
        """
        member = await self._members.first()
        with self._asking(member):
            headers = await self._session.headers(self._enter(member, self.timeout))
        call = member.stubs.watch.Watch(self._watch_requests(prefix, start_revision), metadata=headers)
        revision = start_revision - 1
        with member.called():
            try:
                while True:
                    with self._asking(member):
                        async with asyncio.timeout(self._heartbeat + self.timeout):
                            answer = await call.read()
                    if not isinstance(answer, pb.WatchResponse):
                        raise self._failure(member, None)
                    # The watch fails; whoever opens it again will have another token.
                    self._session.end(headers, answer.cancel_reason)
                    changes = messages.changes(answer, revision)
                    revision = changes.revision
                    yield changes
            finally:
                call.cancel()

    async def _watch_requests(self, prefix: str, start_revision: int) -> AsyncIterator[pb.WatchRequest]:
        create = pb.WatchCreateRequest(
            key=messages.name(prefix),
            range_end=messages.end_of(prefix),
            start_revision=start_revision,
            progress_notify=True,
        )
        yield pb.WatchRequest(create_request=create)
        while True:
            await asyncio.sleep(self._heartbeat)
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())

    def _check_size(self, operations: Sequence[Op]) -> None:
        try:
            check_size(operations)
        except TooLarge as failure:
            self._failures.labels(_reason(failure)).inc()
            raise

    async def _read(
        self,
        method: Callable[[_Stubs], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
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
        method: Callable[[_Stubs], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        within: float | None = None,
    ) -> Response:
        """Tries one endpoint once."""

        async def send(stubs: _Stubs, headers: Headers, timeout: float) -> Response:
            return await method(stubs)(request, timeout=timeout, metadata=headers)

        return await self._asked(await self._members.first(), send, within)

    async def _asked(
        self,
        member: Member[_Stubs],
        send: Callable[[_Stubs, Headers, float], Awaitable[Answer]],
        within: float | None,
    ) -> Answer:
        """What a member answers; asked again where it has refused our token, since it has done nothing then."""
        timeout = within or self.timeout
        # Together they take no longer than one may.
        with self._asking(member):
            async with asyncio.timeout(timeout):
                return await self._sent(member, send, timeout)

    async def _sent(
        self, member: Member[_Stubs], send: Callable[[_Stubs, Headers, float], Awaitable[Answer]], timeout: float
    ) -> Answer:
        enter = self._enter(member, timeout)
        headers = await self._session.headers(enter)
        try:
            return await send(member.stubs, headers, timeout)
        except grpc.aio.AioRpcError as error:
            if not self._session.end(headers, error.details() or ""):
                raise
        return await send(member.stubs, await self._session.headers(enter), timeout)

    def _enter(self, member: Member[_Stubs], timeout: float) -> Callable[[str, str], Awaitable[str]]:
        """How to get a token from a member; empty where the store has no users (yet)."""

        async def enter(user: str, password: str) -> str:
            request = pb.AuthenticateRequest(name=user, password=password)
            try:
                return (await member.stubs.auth.Authenticate(request, timeout=timeout, metadata=_LEADER)).token
            except grpc.aio.AioRpcError as error:
                if "authentication is not enabled" in (error.details() or ""):
                    return ""
                raise

        return enter

    @contextmanager
    def _asking(self, member: Member[_Stubs]) -> Iterator[None]:
        """Turns every way in which a call fails into one of our errors."""
        try:
            with member.called():
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

    def _failure(self, member: Member[_Stubs], error: grpc.aio.AioRpcError | None) -> PenstockError:
        """What to raise; a member that did not answer is passed over."""
        failure = messages.refused(error)
        if isinstance(failure, Unavailable):
            self._members.pass_over(member)
        if not isinstance(failure, Compacted | Rewound | LeaseGone):
            self._failures.labels(_reason(failure)).inc()
        return failure


class _Stubs:
    """What is called on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv = rpc.KVStub(channel)
        self.lease = rpc.LeaseStub(channel)
        self.watch = rpc.WatchStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)
        self.auth = rpc.AuthStub(channel)


def _reason(failure: PenstockError) -> str:
    if isinstance(failure, NoSpace):
        return "no_space"
    if isinstance(failure, TooLarge):
        return "too_large"
    return "away" if isinstance(failure, Unavailable) else "refused"


async def _once(request: Request) -> AsyncIterator[Request]:
    yield request
