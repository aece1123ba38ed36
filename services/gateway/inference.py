"""A request's life at the gateway: read where it wants to go, pick a replica, pass the bytes on, once more if need be.

Knows no transport, no etcd, no registry: calls come in as `Call`, replicas are reached through `Upstreams`, and the
routing table is a value in memory. The answer's bytes are the worker's, untouched.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Container, Mapping
from functools import lru_cache, partial

from penstock import __version__, signals
from penstock.errors import (
    NotFound,
    PenstockError,
    ResourceExhausted,
    TooLarge,
    Unavailable,
)
from penstock.kit import telemetry
from penstock.kit.spans import Span
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import REGIONS, REQUEST_ID, TRACEPARENT, VERSION, Answer, Call, Done, Handler, Pending
from penstock.wire.client import ConnectionLost, Field, write_timeout

from . import balance, header, shared_memory
from .access import AccessLog
from .demand import Served
from .flight import Flight
from .header import RoutingHeader
from .metrics import RequestMetrics
from .repository import Repository
from .room import Room
from .route_table import Replica, Route
from .routes import RoutingTable
from .shared_memory import Shared, SharedMemory
from .statistics import Statistics
from .upstream import Upstreams

EXTENSIONS = (
    "binary_tensor_data",
    "parameters",
    "statistics",
    "model_configuration",
    "model_repository",
    "schedule_policy",
)
"""What ServerMetadata advertises to everybody; clients branch on it, so it names what works and nothing else."""

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
    ) -> None:
        """access: None for no access log; shared_memory: None for none; retries: attempts at other replicas after the
        first one failed; not_ready: the reason, None when ready; room: where requests wait for versions that are loaded
        on demand."""
        self._routes = routes
        self._upstreams = upstreams
        self._repository = repository
        self._shared_memory = shared_memory or SharedMemory()
        self._room = room if room is not None else Room(routes, upstreams.demand)
        self._statistics = Statistics(routes, upstreams)
        self._max_body_bytes = max_body_bytes
        self._attempts = 1 + retries
        self._not_ready = not_ready or routes.ready
        self._randrange = randrange
        self._metrics = metrics or RequestMetrics()
        self._access = access
        self._clock = asyncio.get_running_loop().time

    def handlers(self) -> Mapping[str, Handler]:
        """A handler per bare method name, for gRPC and the REST bridge alike."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
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
        for shared memory, or whatever the worker says of the request itself.
        """
        loop = asyncio.get_running_loop()
        started, model, named, code = loop.time(), "", "", "OK"
        try:
            if len(call.payload) > self._max_body_bytes:
                raise TooLarge(f"the request is larger than {self._max_body_bytes} bytes")
            target = header.of_infer(call.payload)
            named = target.model
            model = named if named in self._routes.table.models else ""
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
        left = call.deadline - started
        if left <= 0 or len(payload) > self._max_body_bytes:
            return None
        try:
            target = header.of_infer(payload)
            route = self._routes.resolve(target.model, target.version)
            shared = self._shared_memory.resolve(call) if shared_memory.named(payload) else None
        except PenstockError:
            return None
        replicas, load = shared_memory.reaching(shared, route.replicas), self._upstreams.load
        if not replicas:
            return None
        served = route.model, route.version
        replica = balance.choose(replicas, lambda replica: load(replica.address, served, started), self._randrange)
        free = self._upstreams.free(replica.address, served, started)
        if free is None:
            return None
        place, connection = free
        span = telemetry.begin(signals.GATEWAY_INFER_SPAN, call.headers, model=route.model) if call.sampled else None
        parent = span.traceparent if span is not None else call.headers.get(TRACEPARENT, "")
        go_on = partial(self._go_on, call, target, shared, parent)
        flight = Flight(place, done, go_on, partial(self._count, call, route.model, started, span))
        varying = [("grpc-timeout", write_timeout(left)), (REQUEST_ID, call.request_id)]
        if parent:
            varying.append((TRACEPARENT, parent))
        if shared is not None:
            varying.append((REGIONS, shared.header))
        under_way = connection.begin(
            call.method, payload, constant=_constant(route.version), varying=varying, done=flight.landed
        )
        if under_way is None:
            # `infer` begins anew, with a span of its own.
            place.left()
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
        address: str,
        failure: PenstockError,
    ) -> Answer:
        """As `forward`, after the replica at that address has failed."""
        left = isinstance(failure, Unavailable)
        if isinstance(failure, ConnectionLost):
            left, failure = False, _stopped(target.model, failure)
            if shared is not None and shared.writes:
                raise failure
        return await self._attempt(call, target, _onward(call, parent, shared), {address: left}, failure, shared)

    def _count(
        self, call: Call, model: str, started: float, span: Span | None, code: str, problem: BaseException | None
    ) -> None:
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
    ) -> Answer:
        """tried: addresses that have failed, and whether they said themselves that they cannot serve; failure: how the
        last one did; shared: what the request refers to."""
        waited: Served | None = None
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

    async def server_live(self, call: Call) -> Answer:
        """The process answers."""
        return _answer(oip.ServerLiveResponse(live=True))

    async def server_ready(self, call: Call) -> Answer:
        """The routing table has been read and the process is not leaving."""
        return _answer(oip.ServerReadyResponse(ready=self._not_ready() is None))

    async def server_metadata(self, call: Call) -> Answer:
        """Name, version, implemented extensions; shared memory only to callers who may use it."""
        extensions = (*EXTENSIONS, shared_memory.EXTENSION) if self._shared_memory.offered(call) else EXTENSIONS
        return _answer(oip.ServerMetadataResponse(name="penstock", version=__version__, extensions=extensions))

    async def model_ready(self, call: Call) -> Answer:
        """True when a request for that model and version would be passed on, now or once it is loaded on demand; an
        unknown model is not ready. Asking loads nothing, so a client that asks first is not kept away for ever."""
        asked = header.of_model_request(call.payload)
        try:
            self._routes.resolve(asked.model, asked.version)
        except NotFound:
            return _answer(oip.ModelReadyResponse(ready=False))
        except Unavailable:
            return _answer(oip.ModelReadyResponse(ready=self._room.expected(asked)))
        return _answer(oip.ModelReadyResponse(ready=True))

    async def model_metadata(self, call: Call) -> Answer:
        """A worker's description; `versions` lists what is READY anywhere, since a worker knows only its own."""
        asked = header.of_model_request(call.payload)
        answer = await self.forward(call, asked)
        if asked.version:
            return answer
        view = self._routes.table.models.get(asked.model)
        if view is None:
            return answer
        response = oip.ModelMetadataResponse.FromString(answer.payload)
        response.versions[:] = [str(number) for number in sorted(view.versions) if view.versions[number].replicas]
        return Answer(response.SerializeToString(), answer.trailers)

    async def model_config(self, call: Call) -> Answer:
        """A worker's configuration of the model."""
        return await self.forward(call, header.of_model_request(call.payload))

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


def _stopped(model: str, lost: ConnectionLost) -> Unavailable:
    """A lost connection in words for the caller."""
    return Unavailable(
        f"the replica of model '{model}' that had the request stopped answering",
        detail=lost.detail,
        retry_after=RETRY_SECONDS,
    )


def _answer(
    message: oip.ServerLiveResponse | oip.ServerReadyResponse | oip.ServerMetadataResponse | oip.ModelReadyResponse,
) -> Answer:
    return Answer(message.SerializeToString())
