"""Where a missing plan comes from: cache, registry, compiler, in this order, and by one effort for all who need it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penstock import plans
from penstock.errors import InvalidManifest, PenstockError, Unavailable
from penstock.plans import PlanHeader
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2
from services.worker.artifacts import Artifacts
from services.worker.engines import signed
from services.worker.engines.trt.matching import PlanMissing, Target, choose
from services.worker.plans import child
from services.worker.plans.cache import PlanCache
from services.worker.plans.compiler import Compiled, Compiler
from services.worker.plans.plans import Plans
from services.worker.plans.starting import Load, Starter
from services.worker.plans.wanted import Wanted
from tests.harness.waiting import Changed
from tests.unit.worker.doubles import EchoEngine
from tests.unit.worker.test_artifacts import Shelf, digest_of

OWN = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BUILDER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = tuple(key.public_key().public_bytes_raw() for key in (BUILDER, OWN))
TARGET = Target("tensorrt-rtx", "1.7.1.116", "sm89")
ONNX = b"\x08\x0a the ONNX model"
SOURCE = digest_of(ONNX)
MANIFEST = manifest_pb2.Manifest(
    name="m", format="tensorrt", batching=manifest_pb2.Batching(max_batch_size=32),
    inputs=[manifest_pb2.TensorSpec(name="x", datatype="FP32", shape=[4])],
)  # fmt: skip


def header(most: int = 32, source: str = SOURCE, target: Target = TARGET) -> PlanHeader:
    profiles = ({"x": ((1, 4), (most, 4), (most, 4))},)
    made = (target.builder, target.version, target.architecture)
    return PlanHeader(source, *made, "fp32", "2026-11-25T00:00:00Z", profiles)


class Builder:
    """Stands for Compiler. problems: what the next compiles raise; gate: one permit for each that may end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turn = asyncio.Lock()
        self.begun: list[Wanted] = []
        self.timings: list[bytes] = []
        self.problems: list[PenstockError] = []
        self.gate: asyncio.Semaphore | None = None
        self.started = asyncio.Semaphore(0)

    @property
    def busy(self) -> bool:
        return self.turn.locked()

    @asynccontextmanager
    async def compiled(
        self, model: Path, wanted: Wanted, target: Target, devices: Sequence[int], timing: Path
    ) -> AsyncIterator[Compiled]:
        assert await asyncio.to_thread(model.read_bytes) == ONNX
        assert self.turn.locked()
        self.begun.append(wanted)
        self.timings.append(await asyncio.to_thread(lambda: timing.read_bytes() if timing.is_file() else b""))
        self.started.release()
        if self.gate is not None:
            await self.gate.acquire()
        if self.problems:
            raise self.problems.pop(0)
        (self.folder / child.PLAN).write_bytes(b"code")
        (self.folder / child.TIMING).write_bytes(b"measured")
        yield Compiled(self.folder, "fp32", header(wanted.largest).profiles, 0.1)


class Stage:
    """A worker's plans, and engines that load a plan as tensorrt.load does up to the runtime."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf()
        self.asked: list[pb.FindEngineRequest] = []
        self.engine: pb.Engine | None = None
        self.problem: PenstockError | None = None
        (folder / "scratch").mkdir()
        self.builder = Builder(folder / "scratch")
        self.model = folder / "model.onnx"
        self.model.write_bytes(ONNX)
        self.artifacts = Artifacts(str(folder), self.shelf, capacity_bytes=1 << 20)
        self.artifacts.open()
        self.cache = PlanCache(folder / "plans", capacity_bytes=1 << 20, trusted_keys=TRUSTED)
        self.cache.open()
        self.said: list[str] = []
        self.changed = Changed()
        self.loaded: list[PlanHeader] = []
        self.target = TARGET
        self.starter = self.made()

    def made(self, compiles: bool = True) -> Starter:
        """Of a worker that was just started."""
        compiler = cast(Compiler, self.builder) if compiles else None
        key = OWN if compiles else None
        return Starter(
            self.start,
            Plans(
                self.cache, self.artifacts, self.find, compiler=compiler, key=key, no_compiler="compile_plans is off"
            ),
        )

    def registry_has(self, most: int = 32, key: Ed25519PrivateKey = BUILDER, **more: Any) -> None:
        data = plans.wrap(header(most, **more), b"code", key)
        self.shelf.contents[digest_of(data)] = data
        self.engine = pb.Engine(artifact=models_pb2.Artifact(digest=digest_of(data), size_bytes=len(data)))

    async def find(self, wanted: pb.FindEngineRequest) -> pb.Engine | None:
        self.asked.append(wanted)
        if self.problem is not None:
            raise self.problem
        return self.engine

    async def start(
        self, manifest: manifest_pb2.Manifest, files: Mapping[str, Path], devices: Sequence[int]
    ) -> EchoEngine:
        found = signed.plans(files, TRUSTED)
        self.loaded.append(found[choose([each for each, _ in found], self.target)][0])
        return EchoEngine()

    async def say(self, reason: str) -> None:
        self.said.append(reason)
        self.changed()

    async def load(self, starter: Starter | None = None, files: Mapping[str, Path] | None = None) -> PlanHeader:
        """The plan with which a replica was loaded. files: of the version, besides the model."""
        load = Load(MANIFEST, {"model": self.model, **(files or {})}, SOURCE, [], self.say)
        await (starter or self.starter).start(load)
        return self.loaded[-1]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.artifacts.close()


async def test_a_version_that_brings_its_plan_asks_nobody(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "plan-sm89"
    path.write_bytes(plans.wrap(header(7), b"code", BUILDER))
    assert await stage.load(files={"plan-sm89": path}) == header(7)
    assert not stage.asked and not stage.builder.begun and not stage.said


async def test_what_the_registry_has_is_fetched_once(stage: Stage) -> None:
    stage.registry_has()
    assert (await stage.load()) == header()
    wanted = pb.FindEngineRequest(
        source_digest=SOURCE, builder="tensorrt-rtx", builder_version="1.7.1.116", architecture="sm89"
    )
    assert stage.asked == [wanted]
    stage.problem = Unavailable("no registry is there to pull from")
    assert (await stage.load(stage.made())) == header()
    assert len(stage.asked) == 1 and not stage.builder.begun


async def test_what_nobody_has_is_compiled_once_signed_and_found_again(stage: Stage, tmp_path: Path) -> None:
    made = await stage.load()
    assert (made.source, made.builder, made.version, made.architecture) == (SOURCE, "tensorrt-rtx", "1.7.1.116", "sm89")
    assert stage.said == ["a plan for tensorrt-rtx 1.7.1.116 on sm89 is being compiled on this worker", ""]
    (path,) = (tmp_path / "plans").rglob("*.plan")
    assert plans.unwrap(path.read_bytes(), TRUSTED[1:])[0] == made
    assert await stage.load() == made
    assert await stage.load(stage.made()) == made
    assert len(stage.builder.begun) == 1 and len(stage.asked) == 1


@pytest.mark.parametrize("problem", ["away", "stranger", "source", "target", "short", "gone"])
async def test_a_registry_that_does_not_help_is_passed_over(stage: Stage, problem: str) -> None:
    if problem == "away":
        stage.problem = Unavailable("no registry is there to pull from")
    elif problem == "short":
        stage.registry_has(most=8)
    else:
        key = Ed25519PrivateKey.generate() if problem == "stranger" else BUILDER
        source = digest_of(b"other") if problem == "source" else SOURCE
        target = dataclasses.replace(TARGET, architecture="sm86") if problem == "target" else TARGET
        stage.registry_has(key=key, source=source, target=target)
    if problem == "gone":
        stage.shelf.contents.clear()
    assert (await stage.load()).profiles == header().profiles
    assert len(stage.builder.begun) == 1


async def test_a_worker_that_does_not_compile_takes_a_plan_for_smaller_batches(stage: Stage) -> None:
    stage.registry_has(most=8)
    assert await stage.load(stage.made(compiles=False)) == header(8)


@pytest.mark.parametrize(
    ("away", "why"),
    [
        (False, "the registry has no such plan"),
        (True, r"the registry does not give one now \(no registry is there to pull from\)"),
    ],
)
async def test_where_there_is_no_road_left_the_reason_says_all(stage: Stage, away: bool, why: str) -> None:
    stage.problem = Unavailable("no registry is there to pull from") if away else None
    words = (
        r"^plan cache miss: this worker needs a plan for tensorrt-rtx 1\.7\.1\.116 on sm89, and the version has "
        rf"no plan at all; {why}, and this worker compiles none: compile_plans is off; have a build compile it$"
    )
    with pytest.raises(PlanMissing, match=words):
        await stage.load(stage.made(compiles=False))


async def test_a_version_without_its_source_cannot_be_compiled(stage: Stage) -> None:
    stage.model.write_bytes(plans.wrap(header(target=dataclasses.replace(TARGET, version="1")), b"code", BUILDER))
    with pytest.raises(PlanMissing, match="on sm89; it has no ONNX file to compile one from"):
        await stage.load()
    assert not stage.builder.begun


async def test_a_wrong_signature_in_the_cache_is_refused_and_compiled_anew(stage: Stage, tmp_path: Path) -> None:
    await stage.load()
    (path,) = (tmp_path / "plans").rglob("*.plan")
    path.write_bytes(plans.wrap(header(), b"evil", Ed25519PrivateKey.generate()))
    await stage.load()
    assert len(stage.builder.begun) == 2
    assert bytes(plans.unwrap(path.read_bytes(), TRUSTED)[1]) == b"code"


async def test_another_builder_on_the_worker_is_a_miss_and_a_rebuild(stage: Stage) -> None:
    await stage.load()
    stage.target = dataclasses.replace(TARGET, version="1.7.2.1")
    assert (await stage.load()).version == "1.7.2.1"
    assert len(stage.builder.begun) == 2


async def test_the_timing_cache_is_handed_on(stage: Stage, tmp_path: Path) -> None:
    await stage.load()
    for path in (tmp_path / "plans").rglob("*.plan"):
        path.unlink()
    await stage.load()
    assert stage.builder.timings == [b"", b"measured"]


async def test_several_that_need_one_plan_compile_once(stage: Stage) -> None:
    stage.builder.gate = asyncio.Semaphore(0)
    loads = [asyncio.ensure_future(stage.load()) for _ in range(4)]
    await stage.builder.started.acquire()
    await stage.changed.until(lambda: len(stage.said) == 4)
    stage.builder.gate.release()
    made = await asyncio.gather(*loads)
    assert len(stage.builder.begun) == 1
    assert all(each == made[0] for each in made)
    assert stage.said.count("waits for another replica's plan for tensorrt-rtx 1.7.1.116 on sm89") == 3


async def test_who_waits_for_a_compile_that_fails_fails_with_it_and_the_next_tries_anew(stage: Stage) -> None:
    stage.builder.gate = asyncio.Semaphore(0)
    stage.builder.problems = [InvalidManifest("files.model: the operator Foo cannot be compiled", field="files.model")]
    loads = [asyncio.ensure_future(stage.load()) for _ in range(3)]
    await stage.builder.started.acquire()
    await stage.changed.until(lambda: len(stage.said) == 3)
    stage.builder.gate.release()
    for each in await asyncio.gather(*loads, return_exceptions=True):
        assert isinstance(each, InvalidManifest)
        assert each.message == (
            "no plan for tensorrt-rtx 1.7.1.116 on sm89 was there and compiling one failed: "
            "files.model: the operator Foo cannot be compiled"
        )
    assert len(stage.builder.begun) == 1
    stage.builder.gate.release()
    await stage.load()
    assert len(stage.builder.begun) == 2


async def test_when_the_one_that_compiles_leaves_another_goes_on(stage: Stage) -> None:
    stage.builder.gate = asyncio.Semaphore(0)
    first, second = (asyncio.ensure_future(stage.load()) for _ in range(2))
    await stage.builder.started.acquire()
    first.cancel()
    await stage.builder.started.acquire()
    stage.builder.gate.release()
    await second
    assert first.cancelled() and len(stage.builder.begun) == 2


async def test_one_compiles_at_a_time(stage: Stage) -> None:
    stage.builder.gate = asyncio.Semaphore(0)
    other = Load(
        manifest_pb2.Manifest(format="tensorrt", batching=manifest_pb2.Batching(max_batch_size=8)),
        {"model": stage.model}, SOURCE, [], stage.say,
    )  # fmt: skip
    loads = [asyncio.ensure_future(stage.load()), asyncio.ensure_future(stage.starter.start(other))]
    await stage.builder.started.acquire()
    await stage.changed.until(lambda: len(stage.said) == 2)
    assert stage.said[1] == "waits for its turn to compile a plan for tensorrt-rtx 1.7.1.116 on sm89"
    assert len(stage.builder.begun) == 1
    for _ in loads:
        stage.builder.gate.release()
    await asyncio.gather(*loads)
    assert len(stage.builder.begun) == 2
