"""A gateway in this process between real gRPC servers: workers that echo, a registry and a scheduler that answer what
the test says, records written by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import grpc

from penstock.cluster import Etcd, Mirror, keys, records
from penstock.cluster.reports import Reports
from penstock.internal.v1.records_pb2 import (
    DeploymentRecord,
    ReplicaRecord,
    ServiceRecord,
    TenantRecord,
    WantedVersion,
)
from penstock.kit.front import Front
from penstock.kit.identity import Authenticator
from penstock.kit.ports import bound
from penstock.kit.runtime import RuntimeFolder
from penstock.kit.server import build_server
from penstock.kit.service import Chassis
from penstock.kit.tls import Certificates, Files
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as pb
from penstock.wire.call import VERSION, WORKER, Answer, Call
from penstock.wire.client import Peer
from services.gateway import rpc
from services.gateway.admission import Admission, Terms
from services.gateway.app import follow_routes
from services.gateway.backend import Backend
from services.gateway.control import Control
from services.gateway.inference import Inference
from services.gateway.probe import probe_held
from services.gateway.reporting import report
from services.gateway.repository import Repository
from services.gateway.rest import serve_rest
from services.gateway.room import Room
from services.gateway.routes import Mirrored, RoutingTable
from services.gateway.tenants import Tenants
from services.gateway.upstream import Upstreams
from tests.harness.etcd import free_port
from tests.harness.grpcio_service import service_handler

Behaviour = Callable[[Call], Awaitable[Answer]]


class EchoWorker:
    """A server of the inference protocol that answers with its inputs; `before` may hang, fail, or note."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.before: Callable[[Call], Awaitable[None]] | None = None
        self.reached = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.address = ""
        self._server = grpc.aio.server()

    async def start(self, port: int = 0) -> None:
        handlers = {"ModelInfer": self._infer, "ModelMetadata": self._metadata, "ServerLive": self._live}
        self._server.add_generic_rpc_handlers((service_handler(handlers, default_timeout=30),))
        # One that no connection is given: another may start there when this one is gone.
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port or free_port()}')}"
        await self._server.start()

    async def kill(self) -> None:
        """Every connection breaks at once; nothing is answered."""
        await self._server.stop(None)

    async def _infer(self, call: Call) -> Answer:
        self.calls.append(call)
        self.reached.set()
        try:
            if self.before is not None:
                await self.before(call)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        request = oip.ModelInferRequest.FromString(call.payload)
        response = oip.ModelInferResponse(
            model_name=request.model_name, model_version=call.headers[VERSION], id=request.id
        )
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(raw)
        return Answer(response.SerializeToString(), {WORKER: self.name})

    async def _metadata(self, call: Call) -> Answer:
        request = oip.ModelMetadataRequest.FromString(call.payload)
        return Answer(oip.ModelMetadataResponse(name=request.name, platform="echo").SerializeToString())

    async def _live(self, call: Call) -> Answer:
        return Answer(oip.ServerLiveResponse(live=True).SerializeToString())

    def replica(self, version: int = 1, state: pb.ReplicaState.ValueType = pb.REPLICA_STATE_READY) -> ReplicaRecord:
        return ReplicaRecord(worker=self.name, name="digits", version=version, state=state, address=self.address)


class Telling(Tenants):
    """What callers may do; tells a test when that was taken anew."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission)
        self.admission = admission
        self.heard = asyncio.Event()

    def take(self, tenants: Mirrored[TenantRecord], gateways: Mirrored[ServiceRecord]) -> None:
        super().take(tenants, gateways)
        self.heard.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for that to hold."""
        async with asyncio.timeout(10):
            while not condition():
                self.heard.clear()
                await self.heard.wait()

    def terms(self, name: str) -> Terms | None:
        """What is said of one."""
        return self.admission._terms.get(name)

    @property
    def under_way(self) -> int:
        """Requests that were let in and are not over, of all callers."""
        return sum(account.under_way for account in self.admission._accounts.values())


async def hang(call: Call) -> None:
    """Never answers."""
    await asyncio.Event().wait()


@dataclass
class Running:
    """A gateway that serves, and what the test needs to drive it."""

    address: str
    channel: grpc.aio.Channel
    routes: RoutingTable
    upstreams: Upstreams
    store: Etcd
    control: Control
    services: dict[str, Mirror[ServiceRecord]]
    told: asyncio.Event
    """Set after every change of `services`."""
    room: Room
    inference: Inference
    tenants: Telling
    peer: Peer = field(init=False)

    def __post_init__(self) -> None:
        self.peer = Peer(self.address)

    async def put_deployment(
        self, *versions: int, default: int, on_demand: Collection[int] = (), **aliases: int
    ) -> None:
        """on_demand: the versions that have no replica while nobody calls."""
        wanted = [WantedVersion(version=version, replicas=1) for version in versions]
        for each in wanted:
            if each.version in on_demand:
                each.scaling.max_replicas = 2
        record = DeploymentRecord(name="digits", versions=wanted, default_version=default, aliases=aliases)
        await self.store.put(keys.deployment("digits"), records.to_json(record))

    async def put_tenant(self, record: TenantRecord) -> None:
        """Says what a tenant may do, and waits until the gateway knows."""
        await self.store.put(keys.tenant(record.name), records.to_json(record))
        await self.tenants.until(
            lambda: (terms := self.tenants.terms(record.name)) is not None and terms.record == record
        )

    async def put_replica(self, record: ReplicaRecord) -> None:
        await self.store.put(keys.replica(record.worker, record.name, record.version), records.to_json(record))

    async def put_scheduler(self, record: ServiceRecord) -> None:
        """Announces it, and waits until the gateway knows."""
        await self.store.put(keys.service("scheduler", record.id), records.to_json(record))
        async with asyncio.timeout(30):
            while not self.services["scheduler"].records:
                self.told.clear()
                await self.told.wait()

    @asynccontextmanager
    async def rest(self, caller: str = "tester") -> AsyncIterator[str]:
        """Serves REST over the same objects, to everybody under that name; its URL."""
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(
            serve_rest(
                sock=bound("127.0.0.1", 0),
                inference=self.inference,
                control=self.control,
                ready=lambda: None,
                max_body_bytes=1 << 20,
                default_timeout=30.0,
                authenticate=lambda headers: caller,
                drain_seconds=5.0,
                listening=port.set_result,
            )
        )
        yield f"http://127.0.0.1:{await port}"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for the routes to be so."""
        async with asyncio.timeout(30):
            while True:
                news = self.routes.news
                if condition():
                    return
                await news.wait()

    async def routed(self, version: str = "", replicas: int = 1) -> None:
        """Waits until that version has so many replicas."""

        def there() -> bool:
            view = self.routes.table.models.get("digits")
            route = view.routes.get(version) if view is not None else None
            return route is not None and len(route.replicas) == replicas

        await self.until(there)

    async def infer(self, version: str = "", timeout: float = 30.0) -> tuple[oip.ModelInferResponse, str]:
        """(response, worker that answered)."""
        request = oip.ModelInferRequest(model_name="digits", model_version=version, id="7")
        request.inputs.add(name="x", datatype="UINT8", shape=[4])
        request.raw_input_contents.append(b"abcd")
        deadline = asyncio.get_running_loop().time() + timeout
        answer = await self.peer.unary("ModelInfer", request.SerializeToString(), deadline=deadline, headers={})
        return oip.ModelInferResponse.FromString(answer.payload), answer.trailers[WORKER]


@asynccontextmanager
async def gateway(endpoint: str, *, waiting: int = 100) -> AsyncIterator[Running]:
    """The gateway's objects as app.py wires them, on a server of the kit, without membership.

    waiting: requests that may wait for a version."""
    async with AsyncExitStack() as stack:
        store = Etcd([endpoint])
        stack.push_async_callback(store.close)
        routes = RoutingTable()
        deployments = Mirror(store, keys.DEPLOYMENTS, DeploymentRecord, routes.note_change)
        replicas = Mirror(store, keys.REPLICAS, ReplicaRecord, routes.note_change)
        told = asyncio.Event()
        services = {
            name: Mirror(store, keys.services_of(name), ServiceRecord, told.set) for name in ("registry", "scheduler")
        }
        upstreams = Upstreams(Peer, on_lost=routes.disprove)
        stack.push_async_callback(upstreams.close)
        backends = {name: Backend(name, mirror) for name, mirror in services.items()}
        for backend in backends.values():
            stack.push_async_callback(backend.close)
        control = Control(backends["registry"], backends["scheduler"], token="of-the-gateway")
        reports = Reports(
            "gateway-1", services["scheduler"], partial(report, routes, upstreams), heard=lambda told: room.told(told)
        )
        stack.push_async_callback(reports.close)
        room = Room(routes, upstreams.demand, most_each=waiting, wish=reports.soon)
        admission = Admission(read=False)
        followed = Telling(admission)
        tenants = Mirror(store, keys.TENANTS, TenantRecord, followed.note_change)
        gateways = Mirror(store, keys.services_of("gateway"), ServiceRecord, followed.note_change)
        repository = Repository(routes, control, admission)
        inference = Inference(routes, upstreams, repository, max_body_bytes=1 << 20, room=room, admission=admission)
        served = Served()
        rpc.register(cast(Chassis, served), inference, control, default_timeout=30)
        port = served.front.port
        group = await stack.enter_async_context(asyncio.TaskGroup())
        runs = [deployments.run(), replicas.run(), tenants.run(), gateways.run()]
        runs += [mirror.run() for mirror in services.values()]
        tasks = [group.create_task(run) for run in runs]
        for mirror in services.values():
            await mirror.synced()
        news = routes.news
        tasks.append(group.create_task(routes.run(deployments, replicas)))
        for run in (
            followed.run(tenants, gateways),
            reports.run(),
            upstreams.run(),
            follow_routes(routes, upstreams),
            probe_held(routes, upstreams, interval=0.05),
        ):
            tasks.append(group.create_task(run))
        stack.callback(lambda: [task.cancel() for task in tasks])
        await replicas.synced()
        await deployments.synced()
        if deployments.records:
            await news.wait()
        await followed.until(lambda: admission.ready() is None)
        stack.callback(served.folder.close)
        await served.server.start()
        stack.push_async_callback(served.server.stop, None)
        await served.front.start()
        stack.push_async_callback(served.front.close)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        stack.push_async_callback(channel.close)
        running = Running(
            f"127.0.0.1:{port}",
            channel,
            routes,
            upstreams,
            store,
            control,
            services,
            told,
            room,
            inference,
            followed,
        )
        stack.push_async_callback(running.peer.close)
        yield running


class Served:
    """The part of a chassis that the gateway's face needs, without a process around it."""

    def __init__(self) -> None:
        everybody = Authenticator("")
        self.server, _ = build_server(everybody)
        self.folder = RuntimeFolder.make()
        inner, plain = self.folder.path / "control.sock", Certificates(Files())
        self.front = Front(bound("127.0.0.1", 0), inner, everybody, rpc.LIMITS, plain)
        self.server.add_insecure_port(self.front.inner)
        self.serve_inference = self.front.add

    def reflect(self, services: Sequence[str]) -> None:
        """Not asked for here."""


@asynccontextmanager
async def workers(count: int) -> AsyncIterator[list[EchoWorker]]:
    """So many echo workers, started."""
    made = [EchoWorker(f"w{number}") for number in range(1, count + 1)]
    for worker in made:
        await worker.start()
    try:
        yield made
    finally:
        for worker in made:
            await worker.kill()
