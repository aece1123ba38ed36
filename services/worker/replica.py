"""One replica's life: PULLING → LOADING → READY → DRAINING, or FAILED and again after a growing pause.

Each replica has its engines in child processes of their own, so what breaks one leaves the others alone. What it holds
(files in the cache, memory in the ledger, the child) is given back on every way out, the failed and the cancelled ones
included. Its state is told to the cluster at every step, before it is acted on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from penstock.errors import Internal, PenstockError
from penstock.internal.v1 import records_pb2
from penstock.kit.backoff import EQUAL, Backoff
from penstock.kit.log import get_logger
from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb

from .artifacts import Artifacts
from .batcher import Batcher
from .batching import BatchPolicy
from .codec import Schema
from .engines.engine import DeviceLost
from .instance import EngineRunner
from .instances import LONGEST_PAUSE, STABLE_SECONDS, Host, Instances
from .lifecycle import Identity
from .memory import Ledger, Reservation
from .metrics import ReplicaMetrics
from .plans.starting import Load
from .serving import Serving, Standing, word_of
from .statistics import Statistics
from .tasks import first

MANIFEST_LIMIT: Final = 4 << 20
"""Largest manifest artifact in bytes; a model.yaml may have 1 MiB."""
FIRST_PAUSE: Final = 1.0
"""Seconds before the first try of what broke."""
SETTLE_SECONDS: Final = 2.0
"""How long at most a draining replica waits for etcd to hold the news."""

State: TypeAlias = cluster_pb2.ReplicaState.ValueType
ASSIGNED: Final = cluster_pb2.REPLICA_STATE_ASSIGNED
PULLING: Final = cluster_pb2.REPLICA_STATE_PULLING
LOADING: Final = cluster_pb2.REPLICA_STATE_LOADING
READY: Final = cluster_pb2.REPLICA_STATE_READY
DRAINING: Final = cluster_pb2.REPLICA_STATE_DRAINING
FAILED: Final = cluster_pb2.REPLICA_STATE_FAILED

log = get_logger()


async def _nobody(devices: Sequence[int]) -> None:
    """Is told and does nothing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What replicas share.

    start: a loaded and warm engine, or a PenstockError with a public reason; device_bytes: process → bytes on its
    devices, asked in a thread;
    announce: tells the cluster a standing and the seconds until the next try; told: waits until the cluster has heard;
    grace_seconds: how long a draining replica takes the requests of gateways that have not heard yet;
    drain_seconds: how long at most it finishes what it has; first_pause: seconds before the second try;
    lost: told of the devices of an engine that has lost one.
    """

    artifacts: Artifacts
    ledger: Ledger
    start: Callable[[Load], Awaitable[Host]]
    announce: Callable[[Standing, float], Awaitable[None]]
    told: Callable[[], Awaitable[None]]
    run_timeout: float
    grace_seconds: float
    drain_seconds: float
    first_pause: float = FIRST_PAUSE
    device_bytes: Callable[[int], int] = lambda pid: 0
    lost: Callable[[Sequence[int]], Awaitable[None]] = _nobody


class Replica:
    """One version on this worker, from its assignment until it is retired.

    pause: seconds before the registry is asked for the first time, if it has to be.
    """

    def __init__(self, assigned: records_pb2.AssignedReplica, surroundings: Surroundings, pause: float = 0.0) -> None:
        self.assigned = assigned
        self.identity: Identity = (assigned.name, assigned.version)
        self._around = surroundings
        self._pause = pause
        self._metrics = ReplicaMetrics(assigned.name, assigned.version)
        self._statistics = Statistics()
        self._retired = asyncio.Event()
        self._ready_at: float | None = None
        self._measured = self._measured_device = 0
        self._load_seconds = 0.0
        self.standing = Standing(assigned.name, assigned.version, ASSIGNED, "", None)

    @property
    def retiring(self) -> bool:
        """Whether it has been told to go."""
        return self._retired.is_set()

    def retire(self) -> None:
        """Tells it to go: a pull or load is broken off, a READY replica drains first."""
        self._retired.set()

    async def run(self) -> None:
        """Lives until retired or cancelled. Failures end in FAILED and another try, never in an exception."""
        pauses = Backoff(self._around.first_pause, LONGEST_PAUSE)
        while not self._retired.is_set():
            self._ready_at = None
            self._measured = self._measured_device = 0
            self._load_seconds = 0.0
            try:
                await first(self._live(), self._unwanted())
                continue
            except PenstockError as error:
                problem = error
            except Exception as error:
                log.exception("replica_crashed", model=self.identity[0], version=self.identity[1])
                problem = Internal("the replica failed unexpectedly; the worker's log says why", detail=repr(error))
            if isinstance(problem, DeviceLost):
                await self._around.lost([device.index for device in self.assigned.devices])
            if self._ready_at is not None and asyncio.get_running_loop().time() - self._ready_at > STABLE_SECONDS:
                pauses.reset()
            # Of a registry that was gone, all workers may have heard at the same time.
            await self._rest(problem, pauses.next(0.0 if self.standing.state == PULLING else EQUAL))

    async def _live(self) -> None:
        """Once through the states; returns when it has drained, raises PenstockError when something fails."""
        around, began = self._around, asyncio.get_running_loop().time()
        async with AsyncExitStack() as held:
            await self._enter(PULLING)
            await self._let_others_ask()
            published = await self._published(held)
            manifest = _manifest(published)
            files = {
                role: await held.enter_async_context(around.artifacts.held(file.digest, size=file.size_bytes))
                for role, file in sorted(published.files.items())
            }
            reservation = await self._reserved(held)
            source = published.files["model"].digest if "model" in published.files else ""
            load = Load(manifest, files, source, list(reservation.devices), self._waits)
            instances = Instances(lambda: around.start(load), self._instance_failed, around.first_pause)
            held.push_async_callback(instances.close)
            # Manifests from before there were instances say 0.
            await instances.start(max(1, manifest.instances))
            await self._measure(instances, reservation)
            await self._serve(instances, manifest, began)

    async def _reserved(self, held: AsyncExitStack) -> Reservation:
        """Its bytes in the ledger, once they are free."""
        ledger, size = self._around.ledger, self.assigned.memory_bytes
        devices = {device.index: device.memory_bytes for device in self.assigned.devices}
        fits = ledger.fits(
            size, {index: wanted for index, wanted in devices.items() if index in ledger.device_capacity}
        )
        waits = "" if fits else f"waits until {size} bytes of memory are given back"
        await self._enter(LOADING, waits)
        reservation = await held.enter_async_context(ledger.reserved(size, devices))
        if waits:
            await self._enter(LOADING)
        return reservation

    async def _waits(self, reason: str) -> None:
        """Says what an engine waits for while it loads; one that is started anew while others serve says nothing."""
        if self.standing.state == LOADING and self.standing.reason != reason:
            await self._enter(LOADING, reason)

    async def _measure(self, instances: Instances, reservation: Reservation) -> None:
        """Corrects the ledger by what the warm engines take together, which is also told to the cluster."""
        self._measured = instances.memory_bytes
        on_devices = 0
        if reservation.devices:
            for host in instances.hosts:
                on_devices += await asyncio.to_thread(self._around.device_bytes, host.pid)
            self._measured_device = -(-on_devices // len(reservation.devices))
        reservation.correct(self._measured, on_devices)

    async def _serve(self, instances: Instances, manifest: pb.Manifest, began: float) -> None:
        """READY until retired and drained; raises Unavailable when no engine is left, DeviceLost when a device was
        lost. began: when loading did."""
        name, version = self.identity

        async def renew(lost: EngineRunner, problem: PenstockError) -> Host:
            host = await instances.renew(lost, problem)
            log.info("instance_ready", model=name, version=version)
            return host

        batcher = Batcher(
            instances.hosts,
            BatchPolicy.from_manifest(manifest.batching),
            statistics=self._statistics,
            metrics=self._metrics,
            run_timeout=self._around.run_timeout,
            renew=renew,
        )
        schema = Schema(name, version, manifest)
        serving = Serving(
            name, version, manifest, schema, batcher, self._statistics, self._metrics, lambda: instances.memory_bytes
        )
        self._ready_at = asyncio.get_running_loop().time()
        self._load_seconds = self._ready_at - began
        try:
            await self._enter(READY, serving=serving)
            await first(batcher.run(), batcher.watch(), self._drain(batcher, serving))
        except PenstockError as error:
            # At once, though closing what is left of the engine may take seconds: no more requests should come.
            await self._enter(FAILED, error.message)
            raise
        finally:
            # Before the host is closed: nobody may find a batcher without an engine.
            self.standing = Standing(name, version, self.standing.state, "", None)

    async def _instance_failed(self, problem: PenstockError, seconds: float) -> None:
        """One of several engines is lost, or not there again yet; the others serve."""
        name, version = self.identity
        self._metrics.engine_failures.inc()
        log.warning(
            "instance_failed",
            model=name,
            version=version,
            problem=problem.message,
            detail=problem.detail,
            retry_seconds=round(seconds, 1),
        )
        if isinstance(problem, DeviceLost):
            await self._around.lost([device.index for device in self.assigned.devices])

    async def _drain(self, batcher: Batcher, serving: Serving) -> None:
        """Waits to be retired, then until everybody has heard of it and what came before is answered."""
        await self._retired.wait()
        await self._enter(DRAINING, serving=serving)
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._around.told()
        await asyncio.sleep(self._around.grace_seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._around.drain_seconds):
                await batcher.drained()

    async def _unwanted(self) -> None:
        """Ends when the replica is retired before it serves; one that serves ends by draining."""
        await self._retired.wait()
        if self.standing.serving is not None:
            await asyncio.get_running_loop().create_future()

    async def _rest(self, problem: PenstockError, seconds: float) -> None:
        """FAILED, until the next try or until retired."""
        name, version = self.identity
        self._metrics.engine_failures.inc()
        log.warning(
            "replica_failed",
            model=name,
            version=version,
            problem=problem.message,
            detail=problem.detail,
            retry_seconds=round(seconds, 1),
        )
        await self._enter(FAILED, problem.message, retry_seconds=seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._retired.wait()

    async def _enter(
        self, state: State, reason: str = "", *, serving: Serving | None = None, retry_seconds: float = 0.0
    ) -> None:
        name, version = self.identity
        self.standing = Standing(
            name, version, state, reason, serving, self._measured, self._measured_device, self._load_seconds
        )
        log.info("replica_state", model=name, version=version, state=word_of(state))
        await self._around.announce(self.standing, retry_seconds)

    async def _let_others_ask(self) -> None:
        """Waits for its time, unless what it needs is here."""
        pause, self._pause = self._pause, 0.0
        if pause and not await self._around.artifacts.has(self.assigned.manifest_digest):
            await asyncio.sleep(pause)

    async def _published(self, held: AsyncExitStack) -> records_pb2.PublishedVersion:
        """The version's description, pulled by its digest."""
        digest = self.assigned.manifest_digest
        path = await held.enter_async_context(self._around.artifacts.held(digest, limit=MANIFEST_LIMIT))
        try:
            published = records_pb2.PublishedVersion.FromString(await asyncio.to_thread(path.read_bytes))
        except DecodeError as problem:
            raise Internal("the version's manifest cannot be read", detail=repr(problem)) from None
        if (published.name, published.version) != self.identity:
            raise Internal(
                "the version's manifest describes another version",
                detail=f"{published.name}@{published.version} under {digest}",
            )
        return published


def _manifest(published: records_pb2.PublishedVersion) -> pb.Manifest:
    try:
        return pb.Manifest.FromString(published.manifest)
    except DecodeError as problem:
        raise Internal("the version's manifest cannot be read", detail=repr(problem)) from None
