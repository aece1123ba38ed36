"""A real worker process with a real etcd, and in place of registry and scheduler the test itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import (
    AssignedReplica,
    AssignmentRecord,
    PublishedFile,
    PublishedVersion,
    ReplicaRecord,
    ServiceRecord,
    WorkerRecord,
)
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from penstock.wire.call import Answer
from penstock.wire.client import Peer
from tests.harness.engines import manifest_of
from tests.harness.processes import Service, children_of, started
from tests.harness.waiting import Changed

READY = cluster_pb2.REPLICA_STATE_READY
FAILED = cluster_pb2.REPLICA_STATE_FAILED
WORKER = "worker-1"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class ArtifactShelf(rpc.ArtifactServiceServicer):
    """ArtifactService over what a test has put there. downloads: digest and offset of every stream that was opened."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.downloads: list[tuple[str, int]] = []

    def put(self, content: bytes) -> str:
        self.contents[digest_of(content)] = content
        return digest_of(content)

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> pb.GetArtifactResponse:
        """A worker has no business here."""
        raise NotImplementedError

    async def UploadArtifact(self, request_iterator: Any, context: Any) -> pb.UploadArtifactResponse:
        """A worker has no business here."""
        raise NotImplementedError

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        self.downloads.append((request.digest, request.offset))
        content = self.contents.get(request.digest)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact")
            return
        for start in range(request.offset, len(content), 1 << 16):
            yield pb.DownloadArtifactResponse(data=content[start : start + (1 << 16)])


class Bench:
    """One worker and what it sees of the world."""

    def __init__(
        self, store: Etcd, process: Service, address: str, shelf: ArtifactShelf, registry: grpc.aio.Server
    ) -> None:
        self.store = store
        self.process = process
        self.pid = process._process.pid
        self.peer = Peer(address)
        self.shelf = shelf
        self.changed = Changed()
        self.replicas = Mirror(store, keys.REPLICAS, ReplicaRecord, self.changed)
        self.workers = Mirror(store, keys.WORKERS, WorkerRecord, self.changed)
        self.registry: grpc.aio.Server | None = registry

    def publish(self, folder: Path, version: int = 1) -> AssignedReplica:
        """Puts a model's files and description on the shelf; answers how a scheduler would assign it."""
        manifest, files = manifest_of(folder)
        published = PublishedVersion(name=manifest.name, version=version, manifest=manifest.SerializeToString())
        for role, path in files.items():
            content = path.read_bytes()
            published.files[role].CopyFrom(PublishedFile(digest=self.shelf.put(content), size_bytes=len(content)))
        return AssignedReplica(
            name=manifest.name,
            version=version,
            manifest_digest=self.shelf.put(published.SerializeToString(deterministic=True)),
            memory_bytes=manifest.resources.memory_bytes,
            engine="onnx",
        )

    async def assign(self, *replicas: AssignedReplica, term: int = 10) -> None:
        record = AssignmentRecord(worker=WORKER, term=term, replicas=replicas)
        await self.store.put(keys.assignment(WORKER), records.to_json(record))

    def record(self, name: str, version: int = 1) -> ReplicaRecord | None:
        return self.replicas.records.get(keys.replica(WORKER, name, version))

    async def reaches(self, name: str, state: int, version: int = 1, within: float = 60.0) -> ReplicaRecord:
        """Waits until the replica's record shows that state."""

        def there() -> bool:
            found = self.record(name, version)
            return found is not None and found.state == state

        try:
            await self.changed.until(there, within)
        except TimeoutError:
            raise AssertionError(await self._story(name, version)) from None
        found = self.record(name, version)
        assert found is not None
        return found

    async def fails(self, name: str) -> str:
        """Waits until the worker logs that the replica has failed, and answers why. Its record shows that while it
        rests alone: half a second after a first failure, which a busy store may pass over."""
        failed = await self.process.event("replica_failed", model=name)
        return str(failed["problem"])

    async def comes_back(self, name: str) -> None:
        """Waits until the worker logs that it serves again, after `fails`: the record may still show that it did."""
        await self.process.event("replica_state", model=name, state="ready")

    async def _story(self, name: str, version: int) -> str:
        """What the worker has logged, for a test that failed; ends the worker."""
        self.process.send(signal.SIGABRT)
        await self.process.ended()
        return "\n".join([f"the record is {self.record(name, version)}", *self.process.lines])

    async def gone(self, name: str, version: int = 1, within: float = 60.0) -> None:
        await self.changed.until(lambda: self.record(name, version) is None, within)

    async def add_one(
        self, values: Sequence[float], *, name: str = "add1", version: str = "", traceparent: str = ""
    ) -> tuple[list[float], Answer]:
        """Sends one row of 16 numbers to an `add_one` model."""
        tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 16])
        request = oip.ModelInferRequest(model_name=name, inputs=[tensor])
        request.raw_input_contents.append(struct.pack("<16f", *values))
        answer = await self.call("ModelInfer", request, version=version, traceparent=traceparent)
        response = oip.ModelInferResponse.FromString(answer.payload)
        return list(struct.unpack("<16f", response.raw_output_contents[0])), answer

    async def call(self, method: str, message: Any, *, version: str = "", traceparent: str = "") -> Answer:
        deadline = asyncio.get_running_loop().time() + 60
        named = {"penstock-version": version, "traceparent": traceparent}
        headers = {name: value for name, value in named.items() if value}
        return await self.peer.unary(method, message.SerializeToString(), deadline=deadline, headers=headers)

    async def inferences(self, name: str) -> int:
        """Answered items of a replica since it was assigned, by its own count."""
        answer = await self.call("ModelStatistics", oip.ModelStatisticsRequest(name=name))
        (statistics,) = oip.ModelStatisticsResponse.FromString(answer.payload).model_stats
        return statistics.inference_count

    async def open_registry(self) -> None:
        """A registry is there again, elsewhere."""
        self.registry = await open_registry(self.store, self.shelf)

    async def close_registry(self) -> None:
        """The registry's process is gone; its record may outlive it."""
        if self.registry is not None:
            await self.registry.stop(None)
            self.registry = None


async def open_registry(store: Etcd, shelf: ArtifactShelf) -> grpc.aio.Server:
    """A registry of artifacts alone, announced."""
    server = grpc.aio.server()
    rpc.add_ArtifactServiceServicer_to_server(shelf, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    record = ServiceRecord(service="registry", id="registry-1", address=f"127.0.0.1:{port}")
    await store.put(keys.service("registry", "registry-1"), records.to_json(record))
    return server


def engine_processes(process_id: int) -> list[int]:
    """Ids of the engines' processes of a worker."""
    return children_of(process_id)


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


@asynccontextmanager
async def bench(store: Etcd, endpoint: str, folder: Path, *flags: str) -> AsyncIterator[Bench]:
    """A worker that is started and has registered, and a registry."""
    standard = (
        f"--id={WORKER}",
        f"--etcd={endpoint}",
        "--port=0",
        "--admin-port=0",
        f"--cache-dir={folder / 'cache'}",
        "--memory-bytes=1000000000",
        "--drain-seconds=20",
        "--lease-seconds=2",
    )
    shelf = ArtifactShelf()
    registry = await open_registry(store, shelf)
    try:
        async with started("services.worker", *standard, *flags) as process:
            address = (await process.event("started", within=60))["address"]
            made = Bench(store, process, address, shelf, registry)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(made.replicas.run()), group.create_task(made.workers.run())]
                await made.changed.until(lambda: keys.worker(WORKER) in made.workers.records)
                try:
                    yield made
                finally:
                    for task in tasks:
                        task.cancel()
                    await made.peer.close()
                    await made.close_registry()
    finally:
        await registry.stop(None)
