"""A registry's records and files without its port: publishes, builds by hand, ages files, collects."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2
from penstock.v1.storage_pb2 import Collection
from services.registry.blobs import LocalBlobStore
from services.registry.build.store import BuildStore, NewBuild
from services.registry.catalog import Catalog
from services.registry.collector.cache import Limits
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.store import Store
from services.registry.threads import Threads
from tests.harness.registry import EVERYTHING, collector

_LONG_AGO = 1_000_000_000
MANIFEST = """\
schema: penstock/v1
name: digits
format: python
files: {{model: model.py, {role}: more.bin}}
inputs: [{{name: x, datatype: FP32, shape: [1]}}]
outputs: [{{name: y, datatype: FP32, shape: [1]}}]
{more}
"""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def source(text: str) -> bytes:
    """A file that passes for a model."""
    return f"# {text}\n".encode()


@dataclass
class Shelf:
    """The parts. close() it."""

    database: Database
    folder: Path
    blobs: LocalBlobStore = field(init=False)

    def __post_init__(self) -> None:
        self.threads = Threads("test", 2)
        self.blobs = LocalBlobStore(self.folder, self.threads)
        self.store = Store(self.database)
        self.builds = BuildStore(self.database)
        self._catalog = Catalog(self.store, DeploymentStore(self.database), self.blobs, self.threads)
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.close()
        self.threads.close()

    # --- what callers do ----------------------------------------------------------------------------------------------

    def upload(self, data: bytes) -> str:
        async def sent() -> None:
            if not (await self.blobs.stat(digest_of(data))).complete:
                async with self.blobs.writer(digest_of(data), len(data), 0) as writer:
                    await writer.write(data)
                    await writer.commit()

        self._runner.run(sent())
        return digest_of(data)

    def publish(self, model: bytes, more: bytes = b"more", *, manifest: str = "") -> models_pb2.ModelVersion:
        """Publishes what was uploaded; raises NotFound for what is not there."""
        text = MANIFEST.format(role="more", more=manifest)
        request = models_pb2.PublishVersionRequest(
            manifest=text, digests={"model": digest_of(model), "more": digest_of(more)}
        )
        return self._runner.run(self._catalog.publish(request, "tester"))

    def published(self, model: bytes, more: bytes = b"more", *, manifest: str = "") -> models_pb2.ModelVersion:
        """Uploads and publishes."""
        for data in (model, more):
            self.upload(data)
        return self.publish(model, more, manifest=manifest)

    def build(self, number: int, *, steps: int = 1, **files: str) -> str:
        """Asks for a build of a version that reads these artifacts besides; its id."""
        spec = manifest_pb2.BuildSpec(files=files)
        for step in range(steps):
            spec.steps.add(id=f"s{step}", step="tiny")
        for digest in files.values():
            self.blobs.claim(digest)
        return self.builds.create(NewBuild("digits", number, spec, "tester")).id

    def step(self, build_id: str, key: str, *outputs: bytes, position: int = 0) -> None:
        """A step of a build has been done and has made these; its result is kept under the key."""
        status = pb.StepStatus(id=f"s{position}", step="tiny", state=pb.BUILD_STATE_SUCCEEDED, key=key)
        for number, data in enumerate(outputs):
            status.outputs[f"out-{number}"].CopyFrom(
                models_pb2.Artifact(digest=self.blobs.keep(data), size_bytes=len(data))
            )
        self.builds.save_step(build_id, position, status, keep=True)

    def end(self, build_id: str) -> None:
        self.builds.end(build_id, pb.BUILD_STATE_SUCCEEDED)

    def plan(self, build_id: str, profile: str, data: bytes) -> pb.FindEngineRequest:
        """A plan is kept; what finds it."""
        wanted = pb.FindEngineRequest(source_digest=digest_of(b"onnx"), builder="b", profile=profile)
        engine = pb.Engine(source_digest=wanted.source_digest, builder="b", profile=profile, build_id=build_id)
        engine.artifact.CopyFrom(models_pb2.Artifact(digest=self.blobs.keep(data), size_bytes=len(data)))
        self.builds.keep_engine(engine)
        return wanted

    # --- time and collections -----------------------------------------------------------------------------------------

    def age(self) -> None:
        """Nobody has claimed anything for years."""
        for path in (self.folder / "blobs").rglob("*"):
            if path.is_file():
                os.utime(path, (_LONG_AGO, _LONG_AGO))

    def collect(self, *, dry_run: bool = False, limits: Limits = EVERYTHING, grace: float = 3600.0) -> Collection:
        made = collector(self.database, self.blobs, self.folder, grace=grace, limits=limits)
        return made.collect("tester", dry_run=dry_run)

    def here(self) -> set[str]:
        """Digests of what is there."""
        return {blob.digest for shard in self.blobs.shards() for blob in shard}
