"""A request's life at the gateway: read where it wants to go, pick a replica, pass the bytes on, once more if need be.

Knows no transport, no etcd, no registry: calls come in as `Call`, replicas are reached through `Upstreams`, and the
routing table is a value in memory. The answer's bytes are the worker's, untouched.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Container, Mapping
from functools import lru_cache, partial

from penstock import signals
from penstock.errors import (
    PenstockError,
    ResourceExhausted,
    TooLarge,
    Unavailable,
)
from penstock.kit import telemetry
from penstock.kit.spans import Span
from penstock.wire.call import REGIONS, REQUEST_ID, TRACEPARENT, VERSION, Answer, Call, Done, Handler, Pending
from penstock.wire.client import ConnectionLost, Field, write_timeout

from . import balance, header, shared_memory
from .about import About
from .access import AccessLog
from .admission import Account, Admission
from .flight import Ended, Flight
from .header import RoutingHeader
from .held import Held
from .metrics import RequestMetrics
from .repository import Repository
from .room import Place, Room
from .route_table import Replica, Route
from .routes import RoutingTable
from .shared_memory import Shared, SharedMemory
from .statistics import Statistics
from .upstream import Upstreams

RETRY_SECONDS = 1.0


class Inference:
    """Answers every unary method of the inference protocol."""

    def __init__(
        self,
        routes: RoutingTable,
        upstreams: Upstreams,
        repository: Repository,
        *,
        max_body_bytes: int,
        shared_memory: SharedMemory | None = None,
        retries: int = 1,
        not_ready: Callable[[], str | None] | None = None,
        randrange: Callable[[int], int] = random.randrange,
        metrics: RequestMetrics | None = None,
        room: Room | None = None,
        access: AccessLog | None = None,
        admission: Admission | None = None,
    ) -> None:
        """access: None for no access log; admission: None to let everybody in; shared_memory: None for none; retries:
        attempts at other replicas after the first one failed; not_ready: the reason, None when ready; room: where
        requests wait for versions that are loaded on demand."""
        self._routes = routes
        self._upstreams = upstreams
        self._repository = repository
        self._shared_memory = shared_memory or SharedMemory()
        self._room = room if room is not None else Room(routes, upstreams.demand)
        self._admission = admission if admission is not None else Admission()
        self._about = About(
            routes, self.forward, not_ready or routes.ready, self._room, self._shared_memory, self._admission
        )
        self._statistics = Statistics(routes, upstreams, self._admission)
        self._max_body_bytes = max_body_bytes
        self._attempts = 1 + retries
        self._randrange = randrange
        self._metrics = metrics or RequestMetrics()
        self._access = access
        self._clock = asyncio.get_running_loop().time

    def handlers(self) -> Mapping[str, Handler]:
        """A handler per bare method name, for gRPC and the REST bridge alike."""
        return {
            **self._about.handlers(),
            "ModelInfer": self.infer,
            "ModelStatistics": self._statistics.answer,
            "RepositoryIndex": self._repository.index,
            "RepositoryModelLoad": self._repository.load,
            "RepositoryModelUnload": self._repository.unload,
            **self._shared_memory.handlers(),
        }

    async def infer(self, call: Call) -> Answer:
        """ModelInfer; also each message of ModelStreamInfer.

        Raises InvalidArgument, TooLarge, NotFound, Unavailable, ResourceExhausted, DeadlineExceeded, PermissionDenied
        for the model or shared memory, or whatever the worker says of the request itself.
        """
        loop = asyncio.get_running_loop()
        started, model, named, code = loop.time(), "", "", "OK"
        account: Account | None = None
        try:
            if len(call.payload) > self._max_body_bytes:
                raise TooLarge(f"the request is larger than {self._max_body_bytes} bytes")
            target = header.of_infer(call.payload)
            named = target.model
            model = named if named in self._routes.table.models else ""
            if self._admission.guarded:
                account = self._admission.admit(call.caller, named, started)
            shared = self._shared_memory.resolve(call) if shared_memory.named(call.payload) else None
            if telemetry.sampled(call.headers) if call.sampled is None else call.sampled:
                with telemetry.span(signals.GATEWAY_INFER_SPAN, call.headers, model=model) as span:
                    return await self.forward(call, target, span.traceparent, shared)
            return await self.forward(call, target, shared=shared)
        except PenstockError as error:
            code = error.code.name
            raise
        except BaseException as error:
            code = "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"
            raise
        finally:
            if account is not None:
                account.left()
            seconds = loop.time() - started
            self._metrics.ended(model, code, seconds)
            if self._access is not None:
                self._access.ended(call, named, code, seconds)

    def direct(self, call: Call, done: Done) -> Pending | None:
        """ModelInfer without a task: to a replica against which nothing speaks and whose connection is there.
        Everything else is for `infer`, which also says what is wrong with a request."""
        if call.sampled is None:
            call.sampled = telemetry.sampled(call.headers)
        payload, started = call.payload, self._clock()
        if call.deadline <= started or len(payload) > self._max_body_bytes:
            return None
        try:
            target = header.of_infer(payload)
            shared = self._shared_memory.resolve(call) if shared_memory.named(payload) else None
        except PenstockError:
            return None
        try:
            route = self._routes.resolve(target.model, target.version)
        except Unavailable as refusal:
            return self._hold(call, target, refusal, shared, started, done)
        except PenstockError:
            return None
        account = self._let_in(call, route.model, started) if self._admission.guarded else None
        flight = self._fly(call, target, route, shared, started, started, account, None, done)
        if flight is None:
            # `infer` begins anew, with a span of its own.
            _anew(account)
        return flight

    def _hold(
        self,
        call: Call,
        target: RoutingHeader,
        refusal: Unavailable,
        shared: Shared | None,
        started: float,
        done: Done,
    ) -> Held | None:
        """A call for a version that is loaded on demand; None where `infer` has to see to it: waiting does not help, or
        the call is traced, or refers to shared memory."""
        if shared is not None or call.sampled or not self._room.open_to(target):
            return None
        account = self._let_in(call, target.model, started) if self._admission.guarded else None
        count = partial(self._count, call, target.model, started, None, account)
        fly = partial(self._fly_held, call, target, started, count, done)
        # Kept for as long as the call waits: not with the frames that it came through.
        return Held(self._room, call, target, refusal.with_traceback(None), fly=fly, count=count, done=done)

    def _fly_held(
        self, call: Call, target: RoutingHeader, started: float, count: Ended, done: Done, held: Held
    ) -> Pending:
        """Its turn has come. Raises Unavailable, NotFound, DeadlineExceeded."""
        call.remaining()
        route = self._routes.resolve(target.model, target.version)
        flight = self._fly(call, target, route, None, started, self._clock(), None, held, done)
        if flight is None:
            flight = Flight(None, done, None, held.over)
            flight.detour(partial(self._attempt, call, target, _onward(call, "", None), {}, None, None, held.place))
        return flight

    def _fly(
        self,
        call: Call,
        target: RoutingHeader,
        route: Route,
        shared: Shared | None,
        started: float,
        now: float,
        account: Account | None,
        held: Held | None,
        done: Done,
    ) -> Flight | None:
        """Sends a call to the best replica; None where it takes a task. started: when the call came; held: its wait,
        if any."""
        replicas, load = shared_memory.reaching(shared, route.replicas), self._upstreams.load
        if not replicas:
            return None
        served = route.model, route.version
        replica = balance.choose(replicas, lambda replica: load(replica.address, served, now), self._randrange)
        free = self._upstreams.free(replica.address, served, now)
        if free is None:
            return None
        place, connection = free
        span = telemetry.begin(signals.GATEWAY_INFER_SPAN, call.headers, model=route.model) if call.sampled else None
        parent = span.traceparent if span is not None else call.headers.get(TRACEPARENT, "")
        waited: Place | None = None
        ended: Ended = partial(self._count, call, route.model, started, span, account)
        if held is not None:
            waited, ended = held.place, held.over
        go_on = partial(self._go_on, call, target, shared, parent, waited)
        flight = Flight(place, done, go_on, ended)
        varying = [("grpc-timeout", write_timeout(call.deadline - now)), (REQUEST_ID, call.request_id)]
        if parent:
            varying.append((TRACEPARENT, parent))
        if shared is not None:
            varying.append((REGIONS, shared.header))
        under_way = connection.begin(
            call.method, call.payload, constant=_constant(route.version), varying=varying, done=flight.landed
        )
        if under_way is None:
            place.left()
            self._upstreams.demand.flow(served).repeated()
            return None
        flight.took_off(under_way)
        return flight

    async def forward(
        self, call: Call, target: RoutingHeader, traceparent: str = "", shared: Shared | None = None
    ) -> Answer:
        """Passes the call's bytes to one replica, and to another one if the first cannot answer.

        A version that is loaded on demand is waited for (room.py). Retried: a lost connection, UNAVAILABLE,
        RESOURCE_EXHAUSTED. Inference has no effects, so a request whose connection broke may run twice, unless its
        outputs go to shared memory, where the first run might write late. Not retried: what is wrong with the request,
        and a deadline that passed.
        """
        return await self._attempt(call, target, _onward(call, traceparent, shared), {}, None, shared)

    async def _go_on(
        self,
        call: Call,
        target: RoutingHeader,
        shared: Shared | None,
        parent: str,
        waited: Place | None,
        address: str,
        failure: PenstockError,
    ) -> Answer:
        """As `forward`, after the replica at that address has failed. waited: its place, if it was held."""
        if waited is not None:
            # It may have to wait again, and those in front of it must not wait for it.
            self._room.ended(waited)
        left = isinstance(failure, Unavailable)
        if isinstance(failure, ConnectionLost):
            left, failure = False, _stopped(target.model, failure)
            if shared is not None and shared.writes:
                raise failure
        return await self._attempt(call, target, _onward(call, parent, shared), {address: left}, failure, shared)

    def _let_in(self, call: Call, model: str, started: float) -> Account | None:
        """As Admission.admit; a refusal is counted."""
        try:
            return self._admission.admit(call.caller, model, started)
        except PenstockError as refusal:
            self._count(call, model, started, None, None, refusal.code.name, refusal)
            raise

    def _count(
        self,
        call: Call,
        model: str,
        started: float,
        span: Span | None,
        account: Account | None,
        code: str,
        problem: BaseException | None,
    ) -> None:
        if account is not None:
            account.left()
        seconds = self._clock() - started
        self._metrics.ended(model, code, seconds)
        if self._access is not None:
            self._access.ended(call, model, code, seconds)
        if span is not None:
            span.end(problem)

    async def _attempt(
        self,
        call: Call,
        target: RoutingHeader,
        headers: dict[str, str],
        tried: dict[str, bool],
        failure: PenstockError | None,
        shared: Shared | None,
        waited: Place | None = None,
    ) -> Answer:
        """tried: addresses that have failed, and whether they said themselves that they cannot serve; failure: how the
        last one did; shared: what the request refers to; waited: its place in the room, once its turn has come."""
        attempts = self._attempts - len(tried)
        try:
            while attempts > 0:
                try:
                    route = self._routes.resolve(target.model, target.version)
                except Unavailable as refusal:
                    if waited is not None:
                        self._room.ended(waited)
                        waited = None
                    route, waited = await self._room.route(call, target, refusal)
                replica = self._pick(route, tried, shared)
                if replica is None:
                    if tried and all(tried.values()) and await self._room.moved(call, route):
                        tried.clear()
                        continue
                    break
                call.remaining()
                if failure is not None:
                    self._metrics.retried(failure.code.name)
                    self._upstreams.demand.flow((route.model, route.version)).repeated()
                attempts -= 1
                tried[replica.address] = False
                try:
                    return await self._send(call, route, replica, headers)
                except ConnectionLost as lost:
                    failure = _stopped(route.model, lost)
                    if shared is not None and shared.writes:
                        break
                except (Unavailable, ResourceExhausted) as refusal:
                    failure = refusal
                    tried[replica.address] = isinstance(refusal, Unavailable)
        finally:
            if waited is not None:
                self._room.ended(waited)
        words = "no replica can take the request" if shared is None else shared_memory.NO_NEAR_REPLICA
        raise failure or Unavailable(words, retry_after=RETRY_SECONDS)

    async def _send(self, call: Call, route: Route, replica: Replica, headers: dict[str, str]) -> Answer:
        return await self._upstreams.call(
            replica.address,
            (route.model, route.version),
            call.method,
            call.payload,
            deadline=call.deadline,
            headers={VERSION: str(route.version), **headers},
        )

    def _pick(self, route: Route, tried: Container[str], shared: Shared | None) -> Replica | None:
        upstreams, served = self._upstreams, (route.model, route.version)
        candidates = balance.usable(
            shared_memory.reaching(shared, route.replicas),
            lambda replica: replica.address in tried,
            lambda replica: upstreams.ejected(replica.address, served),
        )
        if not candidates:
            return None
        now = self._clock()
        return balance.choose(candidates, lambda replica: upstreams.load(replica.address, served, now), self._randrange)


def _onward(call: Call, traceparent: str, shared: Shared | None) -> dict[str, str]:
    """Headers for the next hop: nothing of the caller's but its request id and trace. Without a trace the next hop
    begins none: the version tells it that the decision was made here."""
    parent = traceparent or call.headers.get(TRACEPARENT, "")
    headers = {TRACEPARENT: parent} if parent else {}
    if call.request_id:
        headers[REQUEST_ID] = call.request_id
    if shared is not None:
        headers[REGIONS] = shared.header
    return headers


@lru_cache(maxsize=1024)
def _constant(version: int) -> tuple[Field, ...]:
    """The header that is the same for all requests to a version."""
    return ((VERSION, str(version)),)


def _anew(account: Account | None) -> None:
    """`infer` begins anew, and lets the request in anew."""
    if account is not None:
        account.undo()


def _stopped(model: str, lost: ConnectionLost) -> Unavailable:
    """A lost connection in words for the caller."""
    return Unavailable(
        f"the replica of model '{model}' that had the request stopped answering",
        detail=lost.detail,
        retry_after=RETRY_SECONDS,
    )
