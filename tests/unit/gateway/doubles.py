"""Stand-ins for what the gateway's logic is given: mirrors that are dicts, workers that are functions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Answer, Call, Done, Pending
from penstock.wire.client import Field
from penstock.wire.http2.messages import read_timeout
from services.gateway.access import AccessLog
from services.gateway.admission import Admission
from services.gateway.inference import Inference
from services.gateway.repository import Registry, Repository
from services.gateway.routes import RoutingTable
from services.gateway.shared_memory import SharedMemory
from services.gateway.upstream import Upstreams
from tests.unit.gateway.records import keyed

M = TypeVar("M")


@dataclass
class FakeMirror(Generic[M]):
    """What RoutingTable reads of a Mirror."""

    records: dict[str, M] = field(default_factory=dict)
    rewinds: int = 0
    revision: int = 0

    async def synced(self) -> None:
        return


@dataclass
class Sent:
    """One call that reached a worker."""

    address: str
    method: str
    payload: bytes
    deadline: float
    headers: dict[str, str]


Behaviour = Callable[[Sent], Awaitable[Answer]]


class FakeWorkers:
    """Connections to workers whose behaviour is a function per address; keeps what was sent and what was closed.

    absent: how many calls more find that a connection must be opened first.
    """

    def __init__(self) -> None:
        self.absent = 0
        self.behaviours: dict[str, Behaviour] = {}
        self.sent: list[Sent] = []
        self.closed: list[str] = []
        self.opened: list[str] = []
        self.one_closed = asyncio.Event()

    def connect(self, address: str) -> FakeConnection:
        self.opened.append(address)
        return FakeConnection(self, address)

    @property
    def addresses(self) -> list[str]:
        return [each.address for each in self.sent]


class FakeConnection:
    def __init__(self, workers: FakeWorkers, address: str) -> None:
        self._workers = workers
        self._address = address

    async def unary(self, method: str, payload: bytes, *, deadline: float, headers: Mapping[str, str]) -> Answer:
        sent = Sent(self._address, method, payload, deadline, dict(headers))
        self._workers.sent.append(sent)
        return await self._workers.behaviours[self._address](sent)

    def begin(
        self, method: str, payload: bytes, *, constant: tuple[Field, ...], varying: list[Field], done: Done
    ) -> Pending | None:
        """As a connection does that is there: the answer comes in its own time, and not at all after a cancel."""
        if self._workers.absent:
            self._workers.absent -= 1
            return None
        headers = dict([*constant, *varying])
        timeout = read_timeout(headers.pop("grpc-timeout"))

        async def answer() -> None:
            deadline = asyncio.get_running_loop().time() + timeout
            try:
                came: Answer = await self.unary(method, payload, deadline=deadline, headers=headers)
            except Exception as problem:
                done(None, problem)
            else:
                done(came, None)

        return asyncio.get_running_loop().create_task(answer())

    async def close(self) -> None:
        self._workers.closed.append(self._address)
        self._workers.one_closed.set()


async def echo(sent: Sent) -> Answer:
    """Answers with the request's bytes."""
    return Answer(sent.payload, {"penstock-worker": sent.address})


def failing(error: Exception) -> Behaviour:
    async def fail(sent: Sent) -> Answer:
        raise error

    return fail


class Gateway:
    """The inference logic over doubles, with time that stands still unless the test moves it.

    straight: `infer` takes the road without a task where it can.
    """

    straight = False

    def __init__(
        self,
        deployments: list[DeploymentRecord],
        replicas: list[ReplicaRecord],
        registry: Registry | None = None,
        *,
        shared_memory: SharedMemory | None = None,
        max_body_bytes: int = 1 << 20,
        access: AccessLog | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.now = 1000.0
        self.deployments = FakeMirror({record.name: record for record in deployments})
        self.replicas = FakeMirror(keyed(*replicas))
        self.routes = RoutingTable(clock=lambda: self.now)
        self.workers = FakeWorkers()
        self.upstreams = Upstreams(self.workers.connect, clock=lambda: self.now, on_lost=self.routes.disprove)
        self.inference = Inference(
            self.routes,
            self.upstreams,
            Repository(self.routes, registry or NoRegistry(), admission),
            max_body_bytes=max_body_bytes,
            shared_memory=shared_memory,
            randrange=lambda count: 0,
            access=access,
            admission=admission,
        )
        self.rebuild()

    async def infer(self, call: Call) -> Answer:
        """A call as the transport makes it."""
        if self.straight:
            end: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

            def done(answer: Answer | None, problem: BaseException | None) -> None:
                if end.cancelled():
                    return  # the caller has left, and `cancel` comes with the next turn
                assert not end.done(), "a call ends once"
                if answer is not None:
                    end.set_result(answer)
                else:
                    assert problem is not None
                    end.set_exception(problem)

            if (pending := self.inference.direct(call, done)) is not None:
                try:
                    return await end
                except asyncio.CancelledError:
                    pending.cancel()
                    raise
        return await self.inference.infer(call)

    def rebuild(self) -> None:
        self.routes.rebuild(self.deployments, self.replicas)
        self.routes.synced = True


class NoRegistry:
    async def call(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("the registry is not on the path of this call")


def request(model: str = "digits", version: str = "", caller: str = "", **headers: str) -> Call:
    payload = oip.ModelInferRequest(model_name=model, model_version=version, id="7", raw_input_contents=[b"1234"])
    return call("ModelInfer", payload.SerializeToString(), headers=headers, caller=caller)


def call(
    method: str, payload: bytes, timeout: float = 30.0, headers: Mapping[str, str] | None = None, caller: str = ""
) -> Call:
    headers = headers or {}
    deadline = asyncio.get_running_loop().time() + timeout
    return Call(method, payload, deadline, headers, caller, headers.get("x-request-id", ""))
