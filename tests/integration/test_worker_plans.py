"""A version that brings no plan, on a real worker: compiled there, found again, or fetched from a real registry.

The worker sees a device that is none (tests/harness/compile_hook.py); TensorRT-RTX's builder is the real one.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock import plans
from penstock.channel import raising
from penstock.cluster.etcd import Etcd
from penstock.compiling import builders
from penstock.internal.v1.records_pb2 import AssignedReplica
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2
from services.registry.build.sandbox import STEPS
from services.worker.artifacts import Artifacts
from services.worker.engines.trt.matching import PlanMissing, Target
from services.worker.plans import compiler as compiling
from services.worker.plans.cache import PlanCache
from services.worker.plans.own_key import own_key
from services.worker.plans.plans import Plans
from services.worker.plans.wanted import wanted
from services.worker.registry import Registries
from tests.harness import models
from tests.harness.build_service import Registry, running
from tests.harness.compile_hook import device
from tests.harness.engines import manifest_of
from tests.integration.worker_harness import FAILED, READY, Bench, bench

pytestmark = pytest.mark.skipif(
    compiling.missing() != "" or builders.builder()[0] != "tensorrt_rtx_bindings",
    reason="TensorRT-RTX's builder is not installed (penstock[compile])",
)
VERSION = importlib.metadata.version("tensorrt-rtx-cu13-bindings") if not pytestmark.args[0] else ""
ROW = [float(number) for number in range(16)]


def for_tensorrt(folder: Path, **more: Any) -> Path:
    """add_one as a version of format tensorrt that has its ONNX file alone."""
    models.add_one(folder)
    document = yaml.safe_load((folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump({**document, "format": "tensorrt", **more}))
    return folder


async def ready(worker: Bench, replica: AssignedReplica) -> None:
    await worker.assign(replica)
    await worker.reaches("add1", READY)
    assert (await worker.add_one(ROW))[0] == [number + 1 for number in ROW]


async def test_a_worker_compiles_what_is_missing_and_finds_it_when_it_starts_again(
    store: Etcd, clean_etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(device(tmp_path / "hook")))
    folder = for_tensorrt(tmp_path / "m")
    async with bench(store, clean_etcd, tmp_path) as worker:
        await ready(worker, worker.publish(folder))
        told = await worker.process.event("plan_compiled")
        assert told["target"] == f"tensorrt-rtx {VERSION} on sm89"
        await worker.assign()
        await worker.gone("add1")
    (path,) = (tmp_path / "cache" / "plans").rglob("*.plan")
    public = own_key(tmp_path / "cache" / "keys").public_key().public_bytes_raw()
    header, _ = plans.unwrap(path.read_bytes(), [public])
    assert header.source == f"sha256:{hashlib.sha256((folder / 'model.onnx').read_bytes()).hexdigest()}"
    assert (header.builder, header.version, header.architecture) == ("tensorrt-rtx", VERSION, "sm89")
    assert (header.precision, header.profiles) == ("fp32", ({"x": ((1, 16), (32, 16), (32, 16))},))
    async with bench(store, clean_etcd, tmp_path) as worker:
        await ready(worker, worker.publish(folder))
        assert "plan_compiling" not in worker.process.events()
    assert not list((tmp_path / "cache" / "compiling").glob("*"))


async def test_a_worker_that_may_not_compile_says_what_it_needs(
    store: Etcd, clean_etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(device(tmp_path / "hook")))
    plans.new_key(tmp_path / "builder.key")
    flags = ("--compile-plans=false", f"--plan-keys={tmp_path / 'builder.key.pub'}")
    async with bench(store, clean_etcd, tmp_path, *flags) as worker:
        await worker.assign(worker.publish(for_tensorrt(tmp_path / "m")))
        failed = await worker.reaches("add1", FAILED)
        assert failed.reason.startswith(f"plan cache miss: this worker needs a plan for tensorrt-rtx {VERSION} on sm89")
        assert failed.reason.endswith("this worker compiles none: compile_plans is off; have a build compile it")
        assert failed.retry_seconds > 0


async def built(registry: Registry, folder: Path, architecture: str = "") -> pb.Engine:
    """Publishes the version and has a plan of it built for that."""
    data = (folder / "model.onnx").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    header = models_pb2.UploadHeader(digest=digest, size_bytes=len(data))
    parts = [models_pb2.UploadArtifactRequest(header=header), models_pb2.UploadArtifactRequest(data=data)]
    with raising():
        await registry.artifacts.UploadArtifact(iter(parts))
        text = (folder / "model.yaml").read_text()
        await registry.models.PublishVersion(models_pb2.PublishVersionRequest(manifest=text, digests={"model": digest}))
        spec = manifest_pb2.BuildSpec()
        spec.steps.add(step="compile", parameters=f'{{"architecture": "{architecture}", "level": 1}}')
        asked = await registry.builds.CreateBuild(pb.CreateBuildRequest(name="add1", version="1", spec=spec))
    build, said = await registry.ended(asked.build.id)
    assert build.state == pb.BUILD_STATE_SUCCEEDED, said
    return build.engines[0]


async def test_a_plan_that_a_real_registry_has_built_is_found_fetched_and_verified(tmp_path: Path) -> None:
    """Over real gRPC; for sm89, which is one of those that the builder compiles for by itself."""
    folder = for_tensorrt(tmp_path / "m")
    manifest, files = manifest_of(folder)
    (tmp_path / "registry").mkdir()
    async with running(tmp_path / "registry", steps=STEPS) as registry:
        engine = await built(registry, folder)
        assert "sm89" in engine.architecture.split(",")

        async def known() -> None:
            """The address is known from the start."""

        async def say(reason: str) -> None:
            raise AssertionError(reason)

        registries = Registries(known, lambda: [registry.address])
        (key,) = plans.public_keys(tmp_path / "registry" / "builds" / "keys" / "signing_key.pub")
        need = wanted(manifest, engine.source_digest)
        artifacts = Artifacts(str(tmp_path / "cache"), registries, capacity_bytes=1 << 30)
        artifacts.open()
        try:
            for architecture, trusted, finds in (("sm86", key, True), ("sm90", key, False), ("sm89", bytes(32), False)):
                cache = PlanCache(tmp_path / "plans", capacity_bytes=1 << 30, trusted_keys=(trusted,))
                await asyncio.to_thread(cache.open)
                mine = Plans(cache, artifacts, registries.find_engine, compiler=None, key=None, no_compiler="off")
                target = Target("tensorrt-rtx", VERSION, architecture)
                missing = PlanMissing("plan cache miss", target)
                with mine.held(need.source):
                    if finds:
                        path = await mine.get(files["model"], need, missing, [], lambda reason: asyncio.sleep(0))
                        header, _ = plans.unwrap(await asyncio.to_thread(path.read_bytes), [key])
                        assert header.source == need.source and header.runs_on(architecture)
                    else:
                        words = "no such plan" if trusted == key else "cannot be used .*which is not trusted here"
                        with pytest.raises(PlanMissing, match=words):
                            await mine.get(files["model"], need, missing, [], say)
        finally:
            artifacts.close()
            await registries.close()
