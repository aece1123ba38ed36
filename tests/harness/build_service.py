"""A registry with its build service in this process, on a real port, whose builds run the steps of build_steps.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.channel import dial, raising
from penstock.kit.confinement import Limits
from penstock.kit.identity import Authenticator
from penstock.kit.server import build_server
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import builds_pb2_grpc, manifest_pb2, models_pb2, models_pb2_grpc, storage_pb2_grpc
from services.registry import rpc as service
from services.registry.blobs import LocalBlobStore
from services.registry.build import rpc as build_service
from services.registry.build.builds import Builds
from services.registry.build.job import Bench
from services.registry.build.journal import Journal
from services.registry.build.metrics import BuildMetrics
from services.registry.build.runner import Bell, Runner
from services.registry.build.sandbox import Builder
from services.registry.build.store import BuildStore
from services.registry.catalog import Catalog
from services.registry.collector import rpc as storage_service
from services.registry.collector.references import References
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.store import Store
from services.registry.threads import Threads
from tests.harness import models
from tests.harness.registry import rounds

NAMESPACES = subprocess.run(["unshare", "-Urnpmf", "true"], capture_output=True, check=False).returncode == 0


@dataclass
class Registry:
    """Stubs of a running registry."""

    folder: Path
    address: str
    models: models_pb2_grpc.ModelServiceAsyncStub
    artifacts: models_pb2_grpc.ArtifactServiceAsyncStub
    deployments: models_pb2_grpc.DeploymentServiceAsyncStub
    builds: builds_pb2_grpc.BuildServiceAsyncStub
    storage: storage_pb2_grpc.StorageServiceAsyncStub

    async def publish(self, more: str = "") -> models_pb2.PublishVersionResponse:
        """Publishes a small model whose manifest says `more`."""
        model = models.add_one(self.folder / "model")
        data = (model / "model.onnx").read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = models_pb2.UploadHeader(digest=digest, size_bytes=len(data))
        parts = [models_pb2.UploadArtifactRequest(header=header), models_pb2.UploadArtifactRequest(data=data)]
        text = (model / "model.yaml").read_text() + more
        with raising():
            await self.artifacts.UploadArtifact(iter(parts))
            request = models_pb2.PublishVersionRequest(manifest=text, digests={"model": digest})
            return await self.models.PublishVersion(request)

    async def build(self, *steps: str, request_key: str = "", **parameters: object) -> pb.Build:
        """Asks for these steps, the parameters going to the first."""
        spec = manifest_pb2.BuildSpec()
        for index, step in enumerate(steps):
            spec.steps.add(step=step, parameters=json.dumps(parameters) if index == 0 else "")
        with raising():
            request = pb.CreateBuildRequest(name="add1", version="1", spec=spec, request_key=request_key)
            return (await self.builds.CreateBuild(request)).build

    async def ended(self, build_id: str) -> tuple[pb.Build, list[str]]:
        """The job when it has ended, and all that was said."""
        last, lines = pb.Build(), []
        with raising():
            async with asyncio.timeout(60):
                async for answer in self.builds.WatchBuild(pb.WatchBuildRequest(id=build_id)):
                    lines += [line.text for line in answer.lines]
                    if answer.HasField("build"):
                        last = answer.build
        return last, lines

    async def version(self, number: int) -> models_pb2.ModelVersion:
        with raising():
            request = models_pb2.GetVersionRequest(name="add1", version=str(number))
            return (await self.models.GetVersion(request)).version


@asynccontextmanager
async def running(
    folder: Path, *, waiting: int = 100, at_once: int = 1, url: str = "", steps: str = "tests.harness.build_steps"
) -> AsyncIterator[Registry]:
    """One in that folder. url: of its database; empty for SQLite in the folder."""
    threads = Threads("test", 8)
    database = Database(url or f"sqlite:///{folder}/registry.db")
    await threads.run(database.migrate)
    blobs = LocalBlobStore(folder, threads)
    catalog = Catalog(Store(database), DeploymentStore(database), blobs, threads)
    builder = Builder(
        scratch=folder / "builds" / "scratch",
        hidden=folder,
        limits=Limits(memory_bytes=2 << 30, wall_seconds=60.0),
        confined=NAMESPACES,
        steps=steps,
    )
    bell, store = Bell(), BuildStore(database, most_waiting=waiting)
    journal = Journal(folder / "builds" / "logs")
    secrets = folder / "builds" / "keys"
    bench = Bench(store, journal, catalog, blobs, threads, builder, secrets, bell.ring, BuildMetrics())
    cached = References(database).cache_bytes
    runner = Runner(bench, at_once=at_once, lock=folder / "builds" / "lock", cached=cached, interval=0.2)
    builds = Builds(store, journal, catalog, blobs, database, threads, builder, runner, bell, interval=0.2)
    server, _ = build_server(Authenticator(""))
    service.register(server, catalog, blobs, upload_idle=30.0, published=builds.of_published)
    build_service.register(server, builds)
    collecting = rounds(database, blobs, folder)
    storage_service.register(server, collecting)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    task = asyncio.create_task(runner.run())
    async with dial(f"127.0.0.1:{port}") as channel:
        yield Registry(
            folder,
            f"127.0.0.1:{port}",
            models_pb2_grpc.ModelServiceStub(channel),
            models_pb2_grpc.ArtifactServiceStub(channel),
            models_pb2_grpc.DeploymentServiceStub(channel),
            builds_pb2_grpc.BuildServiceStub(channel),
            storage_pb2_grpc.StorageServiceStub(channel),
        )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop(5)
    await collecting.close()
    await threads.run(database.close)
    threads.close()
