"""Both hops of a request in one process, without sockets: what tests/bench/in_process.py measures.

The gateway's and the worker's own objects, from the bytes of a request to those of its answer; an engine that answers
at once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from penstock.internal.v1 import engine_pb2
from penstock.internal.v1.records_pb2 import TenantRecord
from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb
from penstock.wire.client import SERVICE, Peer
from penstock.wire.http2 import Limits, Method
from penstock.wire.http2 import frames as f
from penstock.wire.http2.answering import Common
from penstock.wire.http2.client_side import ClientConnection
from penstock.wire.http2.deadlines import deadlines_of
from penstock.wire.http2.hpack import Encoder, Field
from penstock.wire.http2.peer_link import PeerLink
from penstock.wire.http2.server_side import ServerConnection
from penstock.wire.http2.service import inference_methods
from services.gateway.admission import Admission
from services.gateway.tally import Tally
from services.worker.batcher import Batcher
from services.worker.batching import BatchPolicy
from services.worker.codec import Schema
from services.worker.costs import UNKNOWN, Costs
from services.worker.inference import Inference
from services.worker.metrics import ReplicaMetrics
from services.worker.serving import Serving, Standing
from services.worker.statistics import Statistics
from tests.bench import exchange
from tests.harness.http2 import message
from tests.unit.gateway.doubles import Gateway
from tests.unit.gateway.records import deployment, replica
from tests.unit.worker.doubles import EchoOutcome, EchoOutput

AT_ONCE: Final = 64
"""Requests that arrive together: 8 connections with 8 each, as far as Python is concerned."""
MANIFEST: Final = pb.Manifest(
    name="add1",
    format="onnx",
    inputs=[pb.TensorSpec(name="x", datatype="FP32", shape=[16])],
    outputs=[pb.TensorSpec(name="y", datatype="FP32", shape=[16])],
    batching=pb.Batching(max_batch_size=AT_ONCE),
)
HEAD: Final[tuple[Field, ...]] = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"/{SERVICE}/ModelInfer"),
    (":authority", "gateway"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("grpc-timeout", "30S"),
)
STAGES: Final = ("gateway, request", "worker, request", "worker, batch and answers", "gateway, answer")


class _Engine:
    """Gives its inputs back."""

    def __init__(self) -> None:
        self.alive = True
        self.costs: Costs = UNKNOWN
        self._arenas = (bytearray(1 << 20), bytearray(1 << 20))
        self._outcome = EchoOutcome([])

    def staging(self, size: int, side: int) -> memoryview:
        return memoryview(self._arenas[side])

    async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int) -> None:
        x, arena = inputs[0], self._arenas[side]
        self._outcome = EchoOutcome([EchoOutput("y", "FP32", tuple(x.shape), memoryview(arena)[: x.size_bytes])])

    async def finish(self) -> EchoOutcome:
        return self._outcome

    async def check(self) -> None:
        return

    async def died(self) -> None:
        await asyncio.get_running_loop().create_future()


class _Shelf:
    """One replica."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def find(self, name: str, version: int) -> Standing | None:
        return self._standing if (name, version) == ("add1", 1) else None

    def versions(self, name: str) -> Sequence[Standing]:
        return [self._standing]

    def everything(self) -> Sequence[Standing]:
        return [self._standing]


class Chain:
    """Both hops. Made inside a running loop; `run` serves the batcher.

    admission: what the gateway lets in; None for everything."""

    def __init__(self, admission: Admission | None = None) -> None:
        loop = asyncio.get_running_loop()
        statistics, metrics = Statistics(), ReplicaMetrics("add1", 1)
        policy = BatchPolicy(max_batch_size=AT_ONCE, max_queue_size=4 * AT_ONCE)
        self._batcher = Batcher([_Engine()], policy, statistics=statistics, metrics=metrics, run_timeout=30.0)
        schema = Schema("add1", 1, MANIFEST)
        serving = Serving("add1", 1, MANIFEST, schema, self._batcher, statistics, metrics, lambda: 1)
        standing = Standing("add1", 1, cluster_pb2.REPLICA_STATE_READY, "", serving)
        worker = Inference("worker", _Shelf(standing), lambda: None)
        self.worker = _served(
            loop, inference_methods(worker.handlers, direct={"ModelInfer": worker.direct}, default_timeout=60.0)
        )
        self.hop = ClientConnection(loop, Limits(), deadlines_of(loop), _nothing, _nothing)
        self.hop.begin()
        peer: Any = Peer("127.0.0.1:1")
        link = PeerLink(loop, peer)
        link.connection = self.hop
        peer._link = link
        gateway = Gateway([deployment("add1", 1)], [replica("w", name="add1")], admission=admission)
        gateway.upstreams._connect = lambda address: peer
        methods = {"ModelInfer": gateway.inference.direct}
        self.gateway = _served(
            loop, inference_methods(gateway.inference.handlers(), direct=methods, default_timeout=60.0)
        )
        self.gateway.receive(f.PREFACE + f.settings({}))
        for _ in range(2):
            self.worker.arrived(_said(self.hop))
            self.hop.receive(_said(self.worker))
        _said(self.gateway)

    async def run(self) -> None:
        """Until cancelled."""
        await self._batcher.run()

    async def round(self, requests: bytes, count: int) -> list[float]:
        """CPU seconds of each stage, for so many requests together."""
        for connection in (self.hop, self.worker, self.gateway):
            # Nobody sends WINDOW_UPDATE here.
            connection.window = connection.credit = 1 << 26
        clock = time.process_time
        times = [clock()]
        _arrived(self.gateway, requests)
        onward = _said(self.hop)
        times.append(clock())
        _arrived(self.worker, onward)
        times.append(clock())
        while self.worker.streams:  # noqa: ASYNC110 (one turn of the loop at a time: the batcher's turns are measured)
            await asyncio.sleep(0)
        back = _said(self.worker)
        times.append(clock())
        self.hop.receive(back)
        answers = _said(self.gateway)
        times.append(clock())
        assert not self.gateway.streams and len(answers) > count * 64
        return [after - before for before, after in itertools.pairwise(times)]


def _served(loop: asyncio.AbstractEventLoop, methods: dict[str, Method]) -> ServerConnection:
    made = ServerConnection(Common(loop, 1 << 30), methods, lambda headers: "local", Limits(max_streams=8192), _nothing)
    made.begin()
    return made


def _arrived(connection: ServerConnection, data: bytes) -> None:
    """All of it, without the turns of others between its portions."""
    connection.arrived(data)
    while connection.backlog is not None:
        connection.go_on()


def _said(connection: ServerConnection | ClientConnection) -> bytes:
    return b"".join(connection.taken())


def _nothing() -> None:
    return


def admitting(folder: Path, processes: int) -> Admission:
    """Lets everybody in, and counts all that can be counted, as one of so many processes of a gateway.

    folder: what they would share."""
    tally = Tally(folder, processes) if processes > 1 else None
    made = Admission() if tally is None else Admission(others=tally.of)
    everybody = TenantRecord(name="default", models=["add*"], rate=1e6, burst=1_000_000, concurrent=1_000_000)
    made.say([everybody], 1, 0.0)
    return made


async def measure(rounds: int, at_once: int, admission: Admission | None = None) -> list[float]:
    """CPU-µs per request by stage, so many requests at once: the lower decile over rounds, since what disturbs adds."""
    chain = Chain(admission)
    serving = asyncio.ensure_future(chain.run())
    encoder, body, number = Encoder(), message(exchange.add1().message()), 1
    found: list[list[float]] = []
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    for _ in range(rounds):
        out = []
        for _ in range(at_once):
            out.append(f.frame(f.HEADERS, f.END_HEADERS, number, encoder.block(HEAD, [])))
            out.append(f.frame(f.DATA, f.END_STREAM, number, body))
            number += 2
        found.append(await chain.round(b"".join(out), at_once))
    serving.cancel()
    return [sorted(stage)[rounds // 10] / at_once * 1e6 for stage in zip(*found, strict=True)]
