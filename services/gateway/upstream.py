"""Connections to workers: opened when first needed, counted, kept away from while broken, closed when unrouted.

Two kinds of evidence, two ejections. A connection that fails says something of the worker: everything there is
avoided. A worker that answers "not now" says something of one replica: only that one is avoided, which matters because
a replica that refuses quickly would otherwise look idle and draw all requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from penstock.errors import DeadlineExceeded, Unavailable
from penstock.kit.log import get_logger
from penstock.wire.call import Answer, Done, Pending
from penstock.wire.client import ConnectionLost, Field

from .ejection import Ejection

_log = get_logger()


Served = tuple[str, int]
"""A model and its version: with an address, one replica."""


class Connection(Protocol):
    """The part of penstock.wire.client.Peer that is used."""

    async def unary(self, method: str, payload: bytes, *, deadline: float, headers: Mapping[str, str]) -> Answer: ...
    def begin(
        self, method: str, payload: bytes, *, constant: tuple[Field, ...], varying: list[Field], done: Done
    ) -> Pending | None: ...
    async def close(self) -> None: ...


class Upstream:
    """One worker address. outstanding: our own requests in flight there."""

    __slots__ = ("connection", "ejection", "outstanding", "replicas", "retired")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.ejection = Ejection()
        self.outstanding = 0
        self.replicas: dict[Served, Ejection] = {}  # those that refused, until they answer again
        self.retired = False

    @property
    def fine(self) -> bool:
        """Nothing speaks against the worker or any replica there."""
        return self.ejection.fine and not self.replicas


class Place:
    """A request's place at one replica: counted there until `ended` or `left`, one of which happens once."""

    __slots__ = ("_served", "_upstream", "_upstreams", "address")

    def __init__(self, upstreams: Upstreams, upstream: Upstream, address: str, served: Served) -> None:
        self._upstreams, self._upstream, self.address, self._served = upstreams, upstream, address, served
        upstream.outstanding += 1

    def ended(self, problem: BaseException | None) -> None:
        """The replica answered (None), or what else became of the request."""
        if problem is not None or not self._upstream.fine:
            self._upstreams.judge(self.address, self._upstream, self._served, problem)
        self.left()

    def left(self) -> None:
        """Nothing is known of the request: its caller is gone, or it was never sent."""
        upstream = self._upstream
        upstream.outstanding -= 1
        if upstream.retired and upstream.outstanding == 0:
            self._upstreams.note_empty()


class Upstreams:
    """All worker connections of this gateway."""

    def __init__(
        self,
        connect: Callable[[str], Connection],
        *,
        clock: Callable[[], float] | None = None,
        on_lost: Callable[[str], None] = lambda address: None,
        on_ejected: Callable[[], None] = lambda: None,
    ) -> None:
        """connect: makes a connection to host:port, without blocking; on_lost: told the address of each that broke;
        on_ejected: told when a pause begins."""
        self._connect = connect
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._on_lost = on_lost
        self._on_ejected = on_ejected
        self._known: dict[str, Upstream] = {}
        self._to_close = asyncio.Event()

    def outstanding(self, address: str) -> int:
        """Our requests in flight at that worker."""
        upstream = self._known.get(address)
        return upstream.outstanding if upstream is not None else 0

    def ejected(self, address: str, served: Served) -> bool:
        """True while requests for that model and version should go elsewhere."""
        upstream = self._known.get(address)
        if upstream is None or upstream.fine:
            return False
        now = self._clock()
        replica = upstream.replicas.get(served)
        return upstream.ejection.ejected(now) or (replica is not None and replica.ejected(now))

    async def call(
        self, address: str, served: Served, method: str, payload: bytes, *, deadline: float, headers: Mapping[str, str]
    ) -> Answer:
        """One attempt at one replica; raises what Peer.unary raises and remembers what it says of the replica."""
        upstream = self._known.get(address) or self._opened(address)
        probes = self._probes(upstream, served)
        place = Place(self, upstream, address, served)
        problem: BaseException | None = None
        try:
            return await upstream.connection.unary(method, payload, deadline=deadline, headers=headers)
        except BaseException as raised:
            problem = raised
            raise
        finally:
            place.ended(problem)
            for probe in probes:
                probe.left()

    def free(self, address: str, served: Served) -> tuple[Place, Connection] | None:
        """A place at a replica against which nothing speaks, and the connection to it; None where `call` has to see to
        the request. The place must be `ended`."""
        upstream = self._known.get(address) or self._opened(address)
        if not upstream.fine:
            return None
        return Place(self, upstream, address, served), upstream.connection

    def judge(self, address: str, upstream: Upstream, served: Served, problem: BaseException | None) -> None:
        """Remembers what the end of a request says of the replica."""
        match problem:
            case ConnectionLost():
                self._lost(address, upstream)
            case Unavailable():
                upstream.ejection.succeeded()  # the worker did answer; it is the replica that cannot
                upstream.replicas.setdefault(served, Ejection()).failed(self._clock())
            case DeadlineExceeded():
                pass  # the caller's haste is no evidence against the worker
            case None | Exception():
                self._answered(address, upstream, served)  # any other error is an answer: the replica works

    def note_empty(self) -> None:
        """The last request at a worker that no route needs has ended."""
        self._to_close.set()

    def keep(self, addresses: frozenset[str]) -> None:
        """The addresses that routes name now; connections to others close once their last request is done."""
        for address, upstream in self._known.items():
            upstream.retired = address not in addresses
            if upstream.retired and upstream.outstanding == 0:
                self._to_close.set()

    async def run(self) -> None:
        """Closes what is retired, until cancelled."""
        while True:
            await self._to_close.wait()
            self._to_close.clear()
            for address, upstream in list(self._known.items()):
                if upstream.retired and upstream.outstanding == 0:
                    del self._known[address]
                    await upstream.connection.close()

    async def close(self) -> None:
        """Closes everything; requests in flight are cut off."""
        while self._known:
            _, upstream = self._known.popitem()
            await upstream.connection.close()

    @property
    def open(self) -> int:
        """Number of workers connected to."""
        return len(self._known)

    @property
    def in_flight(self) -> int:
        """Requests that wait for a worker now."""
        return sum(upstream.outstanding for upstream in self._known.values())

    def _opened(self, address: str) -> Upstream:
        upstream = self._known[address] = Upstream(self._connect(address))
        return upstream

    def _probes(self, upstream: Upstream, served: Served) -> tuple[Ejection, ...]:
        """The ejections for which this request is the probe; almost always none."""
        if upstream.ejection.fine and not upstream.replicas:
            return ()
        now = self._clock()
        suspects = (upstream.ejection, upstream.replicas.get(served))
        return tuple(suspect for suspect in suspects if suspect is not None and suspect.started(now))

    def _answered(self, address: str, upstream: Upstream, served: Served) -> None:
        if not upstream.ejection.fine:
            _log.info("worker_back", address=address)
            upstream.ejection.succeeded()
        if upstream.replicas:
            upstream.replicas.pop(served, None)

    def _lost(self, address: str, upstream: Upstream) -> None:
        if upstream.ejection.failed(self._clock()):
            self._on_ejected()
            _log.warning("worker_ejected", address=address)
        self._on_lost(address)
