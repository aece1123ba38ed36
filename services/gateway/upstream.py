"""Connections to workers: opened when first needed, counted, kept away from while broken, closed when unrouted.

Three kinds of evidence, three ejections. A connection that fails says something of the worker: everything there is
avoided. A worker that answers "not now" says something of one replica: only that one is avoided, which matters because
a replica that refuses quickly would otherwise look idle and draw all requests. A replica that answers late, with
failures of its own or not at all while others answer is gray (pace.py): that one is avoided too. A request costs two
looks at the clock for this; the verdicts are made by `watch`, a few times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from google.protobuf.message import DecodeError

from penstock.errors import DeadlineExceeded, Internal, PenstockError, Unavailable
from penstock.kit.log import get_logger
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer, Done, Payload, Pending
from penstock.wire.client import ConnectionLost, Field

from . import pace as paces
from .balance import Load
from .demand import Demand, Flow, Served
from .ejection import Ejection, Gray
from .pace import Pace

_log = get_logger()

SWEEP = 0.25
"""Seconds between two looks for gray replicas."""
GREETING = 1.0
"""Seconds in which a worker must answer that a replica is well."""
FORGOTTEN = 600.0
"""Seconds without a request after which nothing is known of a model's replicas any more."""


class Connection(Protocol):
    """The part of penstock.wire.client.Peer that is used."""

    async def unary(self, method: str, payload: Payload, *, deadline: float, headers: Mapping[str, str]) -> Answer: ...
    def begin(
        self, method: str, payload: Payload, *, constant: tuple[Field, ...], varying: list[Field], done: Done
    ) -> Pending | None: ...
    async def close(self) -> None: ...


class Upstream:
    """One worker address. outstanding: our own requests in flight there."""

    __slots__ = ("connection", "ejection", "gray", "outstanding", "paces", "replicas", "retired")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.ejection = Ejection()
        self.outstanding = 0
        self.replicas: dict[Served, Ejection] = {}  # those that refused, until they answer again
        self.gray: dict[Served, Gray] = {}
        self.paces: dict[Served, Pace] = {}
        self.retired = False

    @property
    def fine(self) -> bool:
        """Nothing speaks against the worker or any replica there."""
        return self.ejection.fine and not self.replicas and not self.gray


class Place:
    """A request's place at one replica: counted there until `ended` or `left`, one of which happens once. flow: where
    it counts as demand, in place of that of its version."""

    __slots__ = ("_flow", "_pace", "_served", "_upstream", "_upstreams", "address", "started")

    def __init__(
        self,
        upstreams: Upstreams,
        upstream: Upstream,
        address: str,
        served: Served,
        now: float,
        flow: Flow | None = None,
    ) -> None:
        self._upstreams, self._upstream, self.address, self._served = upstreams, upstream, address, served
        self.started = now
        upstream.outstanding += 1
        pace = self._pace = upstream.paces.get(served) or upstreams.new_pace(address, served)
        if pace.began(now):
            upstreams.stirred.add(served)
        # As Flow.began says, without the call.
        flow = self._flow = flow or pace.flow
        flow.requests += 1
        flow.outstanding += 1
        flow.area -= now

    def ended(self, problem: BaseException | None) -> None:
        """The replica answered (None), or what else became of the request."""
        now, pace = self._upstreams.clock(), self._pace
        if problem is None:
            pace.answered(now, now - self.started)
        elif isinstance(problem, ConnectionLost):
            pace.left(now)
            pace.forget(now)
        elif isinstance(problem, DeadlineExceeded) or not isinstance(problem, Exception):
            pace.left(now)
        elif isinstance(problem, Internal):
            pace.failed(now)
        else:
            pace.heard(now)
        if problem is not None or not self._upstream.fine:
            self._upstreams.judge(self.address, self._upstream, self._served, problem)
        self._gone(now)

    def left(self) -> None:
        """Nothing is known of the request: its caller is gone, or it was never sent."""
        now = self._upstreams.clock()
        self._pace.left(now)
        self._gone(now)

    def _gone(self, now: float) -> None:
        upstream, flow = self._upstream, self._flow
        flow.outstanding -= 1
        flow.area += now
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
        on_ejected: Callable[[str], None] = lambda reason: None,
        demand: Demand | None = None,
    ) -> None:
        """connect: makes a connection to host:port, without blocking; clock: monotonic seconds, the loop's by default;
        on_lost: told the address of each that broke; on_ejected: told why when a first pause begins: `lost`, `silent`,
        `failing` or `slow`; demand: where requests are counted."""
        self._connect = connect
        self.clock = clock or asyncio.get_running_loop().time
        self.demand = demand if demand is not None else Demand(self.clock())
        self._on_lost = on_lost
        self._on_ejected = on_ejected
        self._known: dict[str, Upstream] = {}
        self._to_close = asyncio.Event()
        self._paces: dict[Served, dict[str, Pace]] = {}
        self.stirred: set[Served] = set()  # something was sent since the last look
        self._forget_at = 0.0

    def outstanding(self, address: str) -> int:
        """Our requests in flight at that worker."""
        upstream = self._known.get(address)
        return upstream.outstanding if upstream is not None else 0

    def load(self, address: str, served: Served, now: float) -> Load:
        """Our requests in flight at that worker, and how long the replica takes for one."""
        upstream = self._known.get(address)
        if upstream is None:
            return 0, 0.0
        pace = upstream.paces.get(served)
        return upstream.outstanding, pace.expected(now) if pace is not None else 0.0

    def ejected(self, address: str, served: Served) -> bool:
        """True while requests for that model and version should go elsewhere."""
        upstream = self._known.get(address)
        if upstream is None or upstream.fine:
            return False
        now = self.clock()
        replica, gray = upstream.replicas.get(served), upstream.gray.get(served)
        return (
            upstream.ejection.ejected(now)
            or (replica is not None and replica.ejected(now))
            or (gray is not None and gray.avoided(now))
        )

    async def call(
        self,
        address: str,
        served: Served,
        method: str,
        payload: Payload,
        *,
        deadline: float,
        headers: Mapping[str, str],
        wanted: bool = True,
    ) -> Answer:
        """One attempt at one replica; raises what Peer.unary raises and remembers what it says of the replica.

        wanted: False for a question about a version, which nobody needs to have loaded for its sake.
        """
        upstream = self._known.get(address) or self._opened(address)
        probes = self._probes(upstream, served)
        gray = upstream.gray.get(served)
        if gray is not None and not gray.started(self.clock()):
            gray = None
        place = Place(self, upstream, address, served, self.clock(), None if wanted else Flow())
        problem: BaseException | None = None
        try:
            return await upstream.connection.unary(method, payload, deadline=deadline, headers=headers)
        except BaseException as raised:
            problem = raised
            if gray is not None and isinstance(raised, Internal):
                # The probe is somebody's request, which another replica can answer.
                raise Unavailable(f"a replica of model '{served[0]}' fails", detail=raised.detail) from raised
            raise
        finally:
            place.ended(problem)
            for probe in probes:
                probe.left()
            if gray is not None:
                self._probed(place, upstream, served, gray, problem)

    def free(self, address: str, served: Served, now: float) -> tuple[Place, Connection] | None:
        """A place at a replica against which nothing speaks, and the connection to it; None where `call` has to see to
        the request. The place must be `ended`."""
        upstream = self._known.get(address) or self._opened(address)
        if not upstream.fine:
            return None
        return Place(self, upstream, address, served, now), upstream.connection

    def new_pace(self, address: str, served: Served) -> Pace:
        """What will be known of a replica that nothing was sent to before."""
        pace = self._known[address].paces[served] = Pace(self.demand.flow(served))
        self._paces.setdefault(served, {})[address] = pace
        return pace

    def judge(self, address: str, upstream: Upstream, served: Served, problem: BaseException | None) -> None:
        """Remembers what the end of a request says of the replica."""
        match problem:
            case ConnectionLost():
                self._lost(address, upstream)
            case Unavailable():
                upstream.ejection.succeeded()  # the worker did answer; it is the replica that cannot
                upstream.replicas.setdefault(served, Ejection()).failed(self.clock())
            case DeadlineExceeded():
                pass  # the caller's haste is no evidence against the worker
            case None | Exception():
                self._answered(address, upstream, served)  # any other error is an answer: the replica works

    def note_empty(self) -> None:
        """The last request at a worker that no route needs has ended."""
        self._to_close.set()

    def pardon(self, address: str, served: Served) -> None:
        """A gray replica has gone: nothing is held against it, nor for its sake against others at its worker."""
        del self._known[address].gray[served]
        self._paces[served][address].forget(self.clock())

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
                    for served in upstream.paces:
                        del self._paces[served][address]
                    await upstream.connection.close()

    async def watch(self, interval: float = SWEEP) -> None:
        """Finds gray replicas and greets them when their pauses are over, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(interval)
                for upstream, served, gray in self.sweep():
                    group.create_task(self._greet(upstream, served, gray))

    def sweep(self) -> list[tuple[Upstream, Served, Gray]]:
        """One look: avoids what turns out gray; those that are to be greeted now."""
        now = self.clock()
        for served in list(self.stirred):
            group = self._paces.get(served, {})
            already = frozenset(address for address in group if served in self._known[address].gray)
            for address, reason in paces.gray(group, already, now).items():
                self._known[address].gray[served] = Gray(reason, now)
                self._on_ejected(reason)
                _log.warning("replica_ejected", address=address, model=served[0], version=served[1], reason=reason)
            if all(pace.idle for pace in group.values()):
                self.stirred.discard(served)
        for upstream in self._known.values():
            # A replica that refused because it left may never be asked again, and must not slow the others down.
            for served in [served for served, ejection in upstream.replicas.items() if ejection.is_old(now)]:
                del upstream.replicas[served]
        if now >= self._forget_at:
            self._forget_at = now + FORGOTTEN
            self._forget_unused(now - FORGOTTEN)
        return [
            (upstream, served, gray)
            for upstream in self._known.values()
            for served, gray in upstream.gray.items()
            if gray.greets(now)
        ]

    async def close(self) -> None:
        """Closes everything; requests in flight are cut off."""
        while self._known:
            _, upstream = self._known.popitem()
            await upstream.connection.close()

    def gray(self) -> Iterator[tuple[str, Served, str]]:
        """Address, version and reason of every replica that is avoided as gray."""
        for address, upstream in self._known.items():
            for served, gray in upstream.gray.items():
                yield address, served, gray.reason

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
        now = self.clock()
        suspects = (upstream.ejection, upstream.replicas.get(served))
        return tuple(suspect for suspect in suspects if suspect is not None and suspect.started(now))

    def _answered(self, address: str, upstream: Upstream, served: Served) -> None:
        if not upstream.ejection.fine:
            _log.info("worker_back", address=address)
            upstream.ejection.succeeded()
        if upstream.replicas:
            upstream.replicas.pop(served, None)
        gray = upstream.gray.get(served)
        if gray is not None and gray.reason == "silent":
            self._back(address, upstream, served)  # it answers: nothing else was held against it

    async def _greet(self, upstream: Upstream, served: Served, gray: Gray) -> None:
        """Asks the worker whether it has the version and its engine seems well."""
        deadline = asyncio.get_running_loop().time() + GREETING
        question = oip.ModelReadyRequest(name=served[0], version=str(served[1])).SerializeToString()
        try:
            answer = await upstream.connection.unary("ModelReady", question, deadline=deadline, headers={})
            well = oip.ModelReadyResponse.FromString(bytes(answer.payload)).ready
        except (PenstockError, DecodeError):
            well = False
        if well:
            gray.greeted()
        else:
            gray.failed(self.clock())

    def _probed(
        self, place: Place, upstream: Upstream, served: Served, gray: Gray, problem: BaseException | None
    ) -> None:
        """The probe of a gray replica has ended."""
        if upstream.gray.get(served) is not gray:
            return
        now, group = self.clock(), self._paces[served]
        took = now - place.started
        others = [pace for address, pace in group.items() if address != place.address]
        if problem is None and not paces.too_slow(took, others):
            self._back(place.address, upstream, served)
        elif problem is None or isinstance(problem, DeadlineExceeded | Internal) or took >= paces.SILENCE:
            gray.failed(now)
        else:
            gray.left()

    def _back(self, address: str, upstream: Upstream, served: Served) -> None:
        del upstream.gray[served]
        self._paces[served][address].forget(self.clock())
        _log.info("replica_back", address=address, model=served[0], version=served[1])

    def _forget_unused(self, since: float) -> None:
        for served, group in list(self._paces.items()):
            if all(pace.is_unused(since) for pace in group.values()):
                del self._paces[served]
                self.demand.forget(served)
                for address in group:
                    del self._known[address].paces[served]
                    self._known[address].gray.pop(served, None)

    def _lost(self, address: str, upstream: Upstream) -> None:
        if upstream.ejection.failed(self.clock()):
            self._on_ejected("lost")
            _log.warning("worker_ejected", address=address)
        self._on_lost(address)
