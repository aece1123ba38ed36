"""A replica's life with an engine of this process: its states, its failures, and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.errors import InvalidManifest, Unavailable
from penstock.internal.v1.records_pb2 import AssignedDevice, AssignedReplica, PublishedFile, PublishedVersion
from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb
from services.worker.artifacts import Artifacts
from services.worker.engines.engine import DeviceLost
from services.worker.memory import Ledger
from services.worker.plans.starting import Load
from services.worker.replica import Replica, Surroundings
from services.worker.serving import Serving, Standing
from tests.harness.waiting import Changed
from tests.unit.worker.doubles import EchoEngine, request
from tests.unit.worker.test_artifacts import Shelf, digest_of

MANIFEST = pb.Manifest(
    name="m",
    format="onnx",
    inputs=[pb.TensorSpec(name="x", datatype="UINT8", shape=[-1])],
    outputs=[pb.TensorSpec(name="y", datatype="UINT8", shape=[-1])],
    batching=pb.Batching(max_batch_size=4),
)
MODEL = b"weights" * 10


def published(version: int = 1, instances: int = 0) -> bytes:
    file = PublishedFile(digest=digest_of(MODEL), size_bytes=len(MODEL))
    manifest = pb.Manifest(instances=instances)
    manifest.MergeFrom(MANIFEST)
    message = PublishedVersion(name="m", version=version, manifest=manifest.SerializeToString(), files={"model": file})
    return message.SerializeToString(deterministic=True)


class Stage:
    """Everything around a replica. problems: what the next starts raise, in turn."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(MODEL, published(), published(instances=3))
        self.instances = 0
        self.lost: list[list[int]] = []
        self.artifacts = Artifacts(str(folder), self.shelf, capacity_bytes=1 << 20)
        self.ledger = Ledger(100)
        self.engines: list[EchoEngine] = []
        self.engine_bytes = 12
        self.devices: list[int] = []
        self.gate: asyncio.Semaphore | None = None
        self.loading: asyncio.Event | None = None
        self.waits = ""
        self.problems: list[Exception] = []
        self.states: list[str] = []
        self.told: list[tuple[Standing, float]] = []
        self.changed = Changed()

    async def start(self, load: Load) -> EchoEngine:
        assert (load.manifest.name, load.manifest.instances) == ("m", self.instances)
        assert await asyncio.to_thread(load.files["model"].read_bytes) == MODEL
        assert load.source == digest_of(MODEL)
        if self.waits:
            await load.say(self.waits)
            await load.say(self.waits)
        if self.loading is not None:
            await self.loading.wait()
        if self.waits:
            await load.say("")
        if self.problems:
            raise self.problems.pop(0)
        self.devices = list(load.devices)
        self.engines.append(EchoEngine(self.gate))
        self.changed()
        self.engines[-1].memory_bytes = self.engine_bytes
        return self.engines[-1]

    async def announce(self, standing: Standing, retry_seconds: float) -> None:
        self.told.append((standing, retry_seconds))
        self.states.append(cluster_pb2.ReplicaState.Name(standing.state).removeprefix("REPLICA_STATE_"))
        self.changed()

    async def note_lost(self, devices: Sequence[int]) -> None:
        self.lost.append(list(devices))

    async def heard(self) -> None:
        return None

    def replica(
        self,
        memory_bytes: int = 60,
        version: int = 1,
        *,
        devices: Mapping[int, int] | None = None,
        on_devices: int = 0,
        pause: float = 0.0,
    ) -> Replica:
        around = Surroundings(
            artifacts=self.artifacts,
            ledger=self.ledger,
            start=self.start,
            announce=self.announce,
            told=self.heard,
            run_timeout=30.0,
            grace_seconds=0.0,
            drain_seconds=30.0,
            first_pause=0.001,
            device_bytes=lambda pid: on_devices,
            lost=self.note_lost,
        )
        assigned = AssignedReplica(
            name="m",
            version=version,
            manifest_digest=digest_of(published(instances=self.instances)),
            memory_bytes=memory_bytes,
            devices=[AssignedDevice(index=index, memory_bytes=size) for index, size in (devices or {}).items()],
        )
        return Replica(assigned, around, pause)

    def count(self, state: str) -> Callable[[], int]:
        return lambda: self.states.count(state)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    made.artifacts.open()
    yield made
    made.artifacts.close()


def serving(replica: Replica) -> Serving:
    found = replica.standing.serving
    assert found is not None
    return found


def later() -> float:
    return asyncio.get_running_loop().time() + 30


async def cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_from_assignment_to_ready_to_retired(stage: Stage) -> None:
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    assert stage.ledger.reserved_bytes == 60
    result = await serving(replica).batcher.submit(request(b"ab"), later())
    assert bytes(result.outputs[0].data) == b"ab"
    replica.retire()
    await task
    assert stage.states == ["PULLING", "LOADING", "READY", "DRAINING"]
    assert stage.engines[0].closed
    assert stage.ledger.reserved_bytes == 0


async def test_who_has_to_ask_the_registry_may_have_to_wait_for_his_time(stage: Stage) -> None:
    replica = stage.replica(pause=3600.0)
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("PULLING"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert stage.shelf.opened == []
    replica.retire()
    await task
    assert stage.states == ["PULLING"]


async def test_what_is_on_the_disk_is_loaded_at_once(stage: Stage) -> None:
    for pause in (0.0, 3600.0):
        replica = stage.replica(pause=pause)
        task = asyncio.ensure_future(replica.run())
        await stage.changed.until(lambda replica=replica: replica.standing.serving is not None)  # type: ignore[misc]
        replica.retire()
        await task
    assert len(stage.shelf.opened) == 2, "manifest and model, once"


async def test_after_its_pause_it_pulls_and_tries_again_without_another(stage: Stage) -> None:
    stage.shelf.away = True
    replica = stage.replica(pause=0.001)
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(lambda: stage.states.count("FAILED") >= 2)
    stage.shelf.away = False
    await stage.changed.until(stage.count("READY"))
    replica.retire()
    await task


async def test_how_long_it_took_to_load_is_told_once_it_is_ready(stage: Stage) -> None:
    stage.loading = asyncio.Event()
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("LOADING"))
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(0.02)
    stage.loading.set()
    await stage.changed.until(stage.count("READY"))
    took = [standing.load_seconds for standing, _ in stage.told]
    assert took[:2] == [0.0, 0.0]
    assert 0.02 <= took[2] <= asyncio.get_running_loop().time() - began + 5
    replica.retire()
    await task


async def test_what_a_load_waits_for_is_the_reason_until_it_is_there_and_never_of_a_replica_that_serves(
    stage: Stage,
) -> None:
    stage.waits, stage.instances = "a plan is being compiled", 3
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    reasons = [standing.reason for standing, _ in stage.told if standing.state == cluster_pb2.REPLICA_STATE_LOADING]
    assert "a plan is being compiled" in reasons and reasons[-1] == ""
    told = len(stage.told)
    stage.engines[0].gone.set()
    await stage.changed.until(lambda: len(stage.engines) == 4)
    assert serving(replica) and len(stage.told) == told
    await cancelled(task)


async def test_draining_finishes_what_runs_and_waits_and_takes_stragglers(stage: Stage) -> None:
    stage.gate = asyncio.Semaphore(0)
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    batcher = serving(replica).batcher
    runs, waits = (asyncio.ensure_future(batcher.submit(request(data), later())) for data in (b"a", b"b"))
    await stage.engines[0].started.acquire()
    replica.retire()
    await stage.changed.until(stage.count("DRAINING"))
    straggler = asyncio.ensure_future(serving(replica).batcher.submit(request(b"c"), later()))
    await asyncio.sleep(0)
    assert not task.done()
    for _ in range(3):
        stage.gate.release()
    assert [bytes((await each).outputs[0].data) for each in (runs, waits, straggler)] == [b"a", b"b", b"c"]
    await task
    assert replica.standing.serving is None
    assert stage.engines[0].closed


async def test_a_failed_load_is_told_with_its_reason_and_tried_again(stage: Stage) -> None:
    stage.problems = [InvalidManifest("the model takes no 'x'"), RuntimeError("secret")]
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    assert stage.states == [
        "PULLING",
        "LOADING",
        "FAILED",
        "PULLING",
        "LOADING",
        "FAILED",
        "PULLING",
        "LOADING",
        "READY",
    ]
    reasons = [(standing.reason, retry > 0) for standing, retry in stage.told if standing.reason]
    assert reasons == [
        ("the model takes no 'x'", True),
        ("the replica failed unexpectedly; the worker's log says why", True),
    ]
    assert stage.ledger.reserved_bytes == 60
    await cancelled(task)
    assert stage.ledger.reserved_bytes == 0


async def test_pauses_grow(stage: Stage) -> None:
    stage.problems = [Unavailable("no")] * 6
    task = asyncio.ensure_future(stage.replica().run())
    await stage.changed.until(stage.count("READY"))
    pauses = [retry for standing, retry in stage.told if standing.state == cluster_pb2.REPLICA_STATE_FAILED]
    assert all(0.0005 * 2**tries <= pause <= 0.001 * 2**tries for tries, pause in enumerate(pauses))
    assert len(pauses) == 6
    await cancelled(task)


async def test_a_lost_engine_ends_its_requests_at_once_and_is_started_again(stage: Stage) -> None:
    stage.gate = asyncio.Semaphore(0)
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    batcher = serving(replica).batcher
    requests = [asyncio.ensure_future(batcher.submit(request(data), later())) for data in (b"a", b"b")]
    await stage.engines[0].started.acquire()
    stage.engines[0].gone.set()
    for each in requests:
        with pytest.raises(Unavailable):
            await each
    await stage.changed.until(lambda: stage.states.count("READY") == 2)
    assert stage.states[3] == "FAILED"
    assert stage.told[3][0].reason == "the model's engine ended unexpectedly; it is being restarted"
    assert stage.engines[0].closed
    stage.gate.release()
    result = await serving(replica).batcher.submit(request(b"c"), later())
    assert bytes(result.outputs[0].data) == b"c"
    await cancelled(task)


async def test_retiring_breaks_off_a_load(stage: Stage) -> None:
    stage.loading = asyncio.Event()
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("LOADING"))
    replica.retire()
    await task
    assert stage.engines == []
    assert stage.ledger.reserved_bytes == 0


async def test_retiring_breaks_off_a_pull(stage: Stage) -> None:
    stage.shelf.gate = asyncio.Event()
    replica = stage.replica()
    task = asyncio.ensure_future(replica.run())
    await stage.shelf.started.wait()
    replica.retire()
    await task
    assert stage.states == ["PULLING"]


async def test_a_load_waits_for_memory_that_is_given_back_and_says_so(stage: Stage) -> None:
    async with stage.ledger.reserved(50):
        task = asyncio.ensure_future(stage.replica().run())
        await stage.changed.until(stage.count("LOADING"))
        assert stage.told[-1][0].reason == "waits until 60 bytes of memory are given back"
    await stage.changed.until(stage.count("READY"))
    await cancelled(task)


async def test_what_never_fits_fails_with_both_numbers(stage: Stage) -> None:
    task = asyncio.ensure_future(stage.replica(memory_bytes=101).run())
    await stage.changed.until(stage.count("FAILED"))
    assert stage.told[-1][0].reason == "needs 101 bytes of memory, the worker offers 100"
    await cancelled(task)


async def test_a_manifest_of_another_version_is_not_loaded(stage: Stage) -> None:
    task = asyncio.ensure_future(stage.replica(version=2).run())
    await stage.changed.until(stage.count("FAILED"))
    assert stage.told[-1][0].reason == "the version's manifest describes another version"
    await cancelled(task)


async def test_a_file_with_another_hash_is_not_loaded(stage: Stage) -> None:
    stage.shelf.contents[digest_of(MODEL)] = MODEL[:-1] + b"!"
    task = asyncio.ensure_future(stage.replica().run())
    await stage.changed.until(stage.count("FAILED"))
    assert stage.told[-1][0].reason == "the content of an artifact did not match its digest; it was discarded"
    assert stage.engines == []
    await cancelled(task)


CYCLES = 1000


async def test_a_thousand_loads_with_failures_among_them_end_where_they_began(stage: Stage) -> None:
    """Every third load fails, every fifth is broken off, every seventh engine dies while it serves."""
    stage.ledger = Ledger(100, {0: 50})
    before = (stage.ledger.reserved_bytes, stage.ledger.device_reserved, stage.artifacts.in_use)
    before = (before[0], dict(before[1]), before[2])
    for number in range(CYCLES):
        stage.states.clear()
        replica = stage.replica(devices={0: 30})
        stage.problems = [Unavailable("this load fails")] if number % 3 == 0 else []
        stage.loading = asyncio.Event() if number % 5 == 0 else None
        task = asyncio.ensure_future(replica.run())
        if stage.loading is not None:
            await stage.changed.until(stage.count("LOADING"))
            assert stage.ledger.device_reserved == {0: 30}
        else:
            await stage.changed.until(stage.count("READY"))
            assert stage.ledger.reserved_bytes == 60
            if number % 7 == 0:
                stage.engines[-1].gone.set()
                await stage.changed.until(stage.count("FAILED"))
        if number % 2:
            replica.retire()
            await task
        else:
            await cancelled(task)
        assert (stage.ledger.reserved_bytes, stage.ledger.device_reserved, stage.artifacts.in_use) == before
    assert all(engine.closed for engine in stage.engines)


async def test_what_the_engine_takes_is_booked_and_told(stage: Stage) -> None:
    stage.ledger = Ledger(100, {0: 50, 1: 50})
    stage.engine_bytes = 77
    replica = stage.replica(devices={0: 30, 1: 30}, on_devices=80)
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    assert (stage.ledger.reserved_bytes, stage.ledger.device_reserved) == (77, {0: 40, 1: 40})
    assert (replica.standing.measured_bytes, replica.standing.measured_device_bytes) == (77, 40)
    assert stage.devices == [0, 1]
    replica.retire()
    await task
    assert (stage.ledger.reserved_bytes, stage.ledger.device_reserved) == (0, {0: 0, 1: 0})


async def test_a_replica_of_several_engines_stays_ready_while_one_is_replaced(stage: Stage) -> None:
    stage.instances = 3
    stage.ledger = Ledger(100, {0: 50})
    stage.engine_bytes = 30
    replica = stage.replica(devices={0: 20}, on_devices=10)
    task = asyncio.ensure_future(replica.run())
    await stage.changed.until(stage.count("READY"))
    assert len(stage.engines) == 3
    assert (stage.ledger.reserved_bytes, stage.ledger.device_reserved) == (90, {0: 30})
    assert (replica.standing.measured_bytes, replica.standing.measured_device_bytes) == (90, 30)
    stage.problems = [DeviceLost("the device is lost")]
    stage.engines[0].gone.set()
    while len(stage.engines) < 4:
        result = await serving(replica).batcher.submit(request(b"a"), later())
        assert bytes(result.outputs[0].data) == b"a"
    assert [engine.closed for engine in stage.engines] == [True, False, False, False]
    assert stage.lost == [[0]]
    assert stage.states == ["PULLING", "LOADING", "READY"]
    replica.retire()
    await task
    assert all(engine.closed for engine in stage.engines)
    assert (stage.ledger.reserved_bytes, stage.ledger.device_reserved) == (0, {0: 0})


async def test_a_replica_of_several_engines_fails_once_none_is_left(stage: Stage) -> None:
    stage.instances = 3
    task = asyncio.ensure_future(stage.replica().run())
    await stage.changed.until(stage.count("READY"))
    stage.loading = asyncio.Event()
    for engine in stage.engines:
        engine.gone.set()
    await stage.changed.until(stage.count("FAILED"))
    assert stage.told[-1][0].reason == "the model's engine ended unexpectedly; it is being restarted"
    stage.loading.set()
    await stage.changed.until(lambda: stage.states.count("READY") == 2)
    assert [engine.closed for engine in stage.engines] == [True] * 3 + [False] * 3
    await cancelled(task)
    assert all(engine.closed for engine in stage.engines)
