"""The registry's three services over real gRPC, on real files and a real database."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration

from penstock import errors
from penstock.channel import dial, raising
from penstock.internal.v1.records_pb2 import PublishedVersion
from penstock.kit.identity import Authenticator
from penstock.kit.server import build_server
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from services.registry import rpc as service
from services.registry.blobs import LocalBlobStore
from services.registry.catalog import Catalog
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.store import Store
from services.registry.threads import Threads
from tests.harness import models


@dataclass
class Registry:
    """Stubs of a running registry, its folder, and how often it told of a change."""

    folder: Path
    models: rpc.ModelServiceAsyncStub
    artifacts: rpc.ArtifactServiceAsyncStub
    deployments: rpc.DeploymentServiceAsyncStub
    changes: list[None]

    def files(self, kind: str) -> list[str]:
        return sorted(path.name for path in (self.folder / kind).rglob("*") if path.is_file())


@asynccontextmanager
async def running(folder: Path, idle: float = 30.0) -> AsyncIterator[Registry]:
    threads = Threads("test", 8)
    database = Database(f"sqlite:///{folder}/registry.db")
    await threads.run(database.migrate)
    blobs = LocalBlobStore(folder, threads)
    changes: list[None] = []
    catalog = Catalog(Store(database), DeploymentStore(database), blobs, threads, lambda: changes.append(None))
    server, _ = build_server(Authenticator(""))
    service.register(server, catalog, blobs, upload_idle=idle)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        stubs = rpc.ModelServiceStub(channel), rpc.ArtifactServiceStub(channel), rpc.DeploymentServiceStub(channel)
        yield Registry(folder, *stubs, changes)
    await server.stop(5)
    await threads.run(database.close)
    threads.close()


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path) as made:
        yield made


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def messages(
    data: bytes, *, digest: str = "", size: int | None = None, offset: int = 0
) -> Iterator[pb.UploadArtifactRequest]:
    header = pb.UploadHeader(
        digest=digest or digest_of(data), size_bytes=len(data) if size is None else size, offset=offset
    )
    yield pb.UploadArtifactRequest(header=header)
    for at in range(offset, len(data), 1 << 20):
        yield pb.UploadArtifactRequest(data=data[at : at + (1 << 20)])


async def upload(registry: Registry, data: bytes, **how: object) -> pb.UploadArtifactResponse:
    with raising():
        return await registry.artifacts.UploadArtifact(messages(data, **how))  # type: ignore[arg-type]


async def download(registry: Registry, digest: str, offset: int = 0) -> bytes:
    with raising():
        call = registry.artifacts.DownloadArtifact(pb.DownloadArtifactRequest(digest=digest, offset=offset))
        return b"".join([message.data async for message in call])


async def received(registry: Registry, digest: str) -> tuple[bool, int]:
    answer = await registry.artifacts.GetArtifact(pb.GetArtifactRequest(digest=digest))
    return answer.complete, answer.received_bytes


async def until(registry: Registry, count: int) -> None:
    """Asks again and again until so many bytes of DATA have arrived; nothing tells a caller of it."""
    async with asyncio.timeout(30):
        while (await received(registry, DIGEST))[1] < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def publish(registry: Registry, folder: Path, **more: object) -> pb.ModelVersion:
    """Uploads and publishes a folder with model.yaml."""
    text = (folder / "model.yaml").read_text()
    digests = {}
    for role, path in yaml.safe_load(text)["files"].items():
        answer = await upload(registry, (folder / path).read_bytes())
        digests[role] = answer.artifact.digest
    request = pb.PublishVersionRequest(manifest=text, digests=digests, **more)  # type: ignore[arg-type]
    with raising():
        return (await registry.models.PublishVersion(request)).version


DATA = os.urandom((3 << 20) + 17)
DIGEST = digest_of(DATA)


# --- artifacts --------------------------------------------------------------------------------------------------------


async def test_up_and_down(registry: Registry) -> None:
    answer = await upload(registry, DATA)
    assert (answer.artifact.digest, answer.artifact.size_bytes, answer.existed) == (DIGEST, len(DATA), False)
    assert await received(registry, DIGEST) == (True, len(DATA))
    assert (await upload(registry, DATA)).existed
    assert await download(registry, DIGEST) == DATA
    assert await download(registry, DIGEST, 1 << 20) == DATA[1 << 20 :]
    assert registry.files("partial") == []


async def test_a_broken_upload_leaves_nothing_visible_and_is_resumed(registry: Registry) -> None:
    sent = asyncio.Event()

    async def half() -> AsyncIterator[pb.UploadArtifactRequest]:
        for number, message in enumerate(messages(DATA)):
            if number == 3:
                sent.set()
                await asyncio.Event().wait()
            yield message

    call = registry.artifacts.UploadArtifact(half())
    await sent.wait()
    await until(registry, 2 << 20)
    # Somebody else in the meantime is told to come back.
    with pytest.raises(errors.Unavailable):
        await upload(registry, DATA, offset=2 << 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await received(registry, DIGEST) == (False, 2 << 20)
    with pytest.raises(errors.NotFound):
        await download(registry, DIGEST)
    assert registry.files("blobs") == []
    async with asyncio.timeout(30):
        while True:
            try:
                await upload(registry, DATA, offset=2 << 20)
                break
            except errors.Unavailable:
                await asyncio.sleep(0)
    assert await download(registry, DIGEST) == DATA


async def test_an_upload_goes_on_after_the_registry_was_restarted(tmp_path: Path) -> None:
    async with running(tmp_path) as registry:
        with pytest.raises(errors.TooLarge), raising():
            parts = [*messages(DATA)][:3]
            await registry.artifacts.UploadArtifact(iter([*parts, pb.UploadArtifactRequest(data=bytes((2 << 20) + 1))]))
    async with running(tmp_path) as registry:
        assert await received(registry, DIGEST) == (False, 2 << 20)
        await upload(registry, DATA, offset=2 << 20)
        assert await download(registry, DIGEST) == DATA


async def test_a_silent_uploader_loses_its_turn(tmp_path: Path) -> None:
    async def silent() -> AsyncIterator[pb.UploadArtifactRequest]:
        for message in [*messages(DATA)][:2]:
            yield message
        await asyncio.Event().wait()

    async with running(tmp_path, idle=0.2) as registry:
        with pytest.raises(errors.DeadlineExceeded, match="paused"), raising():
            await registry.artifacts.UploadArtifact(silent())
        await upload(registry, DATA, offset=1 << 20)


async def test_wrong_uploads(registry: Registry) -> None:
    with pytest.raises(errors.InvalidArgument, match="does not have this digest"):
        await upload(registry, DATA, digest=digest_of(b"other"))
    with pytest.raises(errors.InvalidArgument, match="were announced"):
        await upload(registry, b"abc", size=4)
    assert await received(registry, digest_of(b"abc")) == (False, 3)
    await upload(registry, b"abc", offset=3)
    with pytest.raises(errors.InvalidArgument, match="more than the announced"):
        await upload(registry, DATA, size=len(DATA) - 1)
    with pytest.raises(errors.Conflict, match="0 bytes were received"):
        await upload(registry, DATA, offset=5)
    with pytest.raises(errors.InvalidArgument, match="is not a digest"):
        await upload(registry, DATA, digest="sha256:../../../etc/passwd")
    header = pb.UploadArtifactRequest(header=pb.UploadHeader(digest=DIGEST, size_bytes=3))
    data = pb.UploadArtifactRequest(data=b"abc")
    negative = pb.UploadArtifactRequest(header=pb.UploadHeader(digest=DIGEST, size_bytes=-3))
    huge = pb.UploadArtifactRequest(header=pb.UploadHeader(digest=DIGEST, size_bytes=1 << 62))
    wrongs: list[list[pb.UploadArtifactRequest]] = [[], [data], [header, header], [negative]]
    for wrong in wrongs:
        with pytest.raises(errors.InvalidArgument), raising():
            await registry.artifacts.UploadArtifact(iter(wrong))
    with pytest.raises(errors.TooLarge), raising():
        await registry.artifacts.UploadArtifact(iter([huge]))
    assert await received(registry, DIGEST) == (False, 0)
    assert registry.files("partial") == []
    assert len(registry.files("blobs")) == 1


async def test_wrong_downloads(registry: Registry) -> None:
    with pytest.raises(errors.NotFound):
        await download(registry, DIGEST)
    await upload(registry, b"abc")
    for offset in (-1, 4):
        with pytest.raises(errors.InvalidArgument):
            await download(registry, digest_of(b"abc"), offset)


# --- models -----------------------------------------------------------------------------------------------------------


async def test_publish_and_read_it_all_back_by_digest(registry: Registry, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    version = await publish(registry, folder)
    assert (version.name, version.version, version.publisher, version.memory_bytes) == ("add1", 1, "local", 64 << 20)
    # All that a worker needs comes from ArtifactService alone.
    published = PublishedVersion.FromString(await download(registry, version.manifest_digest))
    assert (published.name, published.version) == ("add1", 1)
    manifest = manifest_pb2.Manifest.FromString(published.manifest)
    assert manifest == version.manifest and manifest.batching.max_queue_size == 1024
    file = published.files["model"]
    data = await download(registry, file.digest)
    assert data == (folder / "model.onnx").read_bytes() and len(data) == file.size_bytes


async def test_memory_is_estimated_when_the_manifest_does_not_say(registry: Registry, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    text = (folder / "model.yaml").read_text().replace("memory_bytes: 67108864", "threads: 1")
    (folder / "model.yaml").write_text(text)
    size = (folder / "model.onnx").stat().st_size
    version = await publish(registry, folder)
    assert version.memory_bytes == version.manifest.resources.memory_bytes == 2 * size + (64 << 20)


async def test_one_model_with_its_aliases(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound), raising():
        await registry.models.GetModel(pb.GetModelRequest(name="add1"))
    await publish(registry, models.add_one(tmp_path / "m"))
    await registry.models.SetAlias(pb.SetAliasRequest(name="add1", alias="prod", version=1))
    model = (await registry.models.GetModel(pb.GetModelRequest(name="add1"))).model
    assert (model.name, model.latest_version, dict(model.aliases)) == ("add1", 1, {"prod": 1})


async def test_equal_publishes_seal_equal_bytes_but_for_the_number(registry: Registry, tmp_path: Path) -> None:
    folder = models.identity(tmp_path / "m")
    first, second = await publish(registry, folder), await publish(registry, folder)
    a, b = [PublishedVersion.FromString(await download(registry, v.manifest_digest)) for v in (first, second)]
    assert (a.version, b.version) == (1, 2)
    b.version = 1
    assert digest_of(b.SerializeToString(deterministic=True)) == first.manifest_digest


async def test_wrong_publishes(registry: Registry, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    text, data = (folder / "model.yaml").read_text(), (folder / "model.onnx").read_bytes()
    digest = digest_of(data)

    async def refused(error: type[errors.PenstockError], field: str, **how: object) -> str:
        request = {"manifest": text, "digests": {"model": digest}} | how
        with pytest.raises(error) as raised, raising():
            await registry.models.PublishVersion(pb.PublishVersionRequest(**request))  # type: ignore[arg-type]
        assert type(raised.value) is error and raised.value.field == field, raised.value.message
        return raised.value.message

    assert "upload it first" in await refused(errors.NotFound, "digests.model")
    await upload(registry, data)
    await refused(errors.InvalidManifest, "inputs[0].datatype", manifest=text.replace("FP32", "FLOAT", 1))
    await refused(errors.InvalidManifest, "name", manifest=text.replace("name: add1", "name: ../etc", 1))
    await refused(errors.InvalidManifest, "name", name="another")
    await refused(errors.InvalidManifest, "", manifest="x" * (2 << 20))
    await refused(errors.InvalidArgument, "digests.model", digests={})
    await refused(errors.InvalidArgument, "digests.model", digests={"model": "sha256:no"})
    await refused(errors.InvalidArgument, "digests", digests={"model": digest, "labels": digest})
    await refused(errors.InvalidArgument, "version", version=-1)
    await refused(errors.InvalidArgument, "request_key", request_key="a\nb")
    evil = {"\u202e" * 200 + str(number): "\x1b" for number in range(100)}
    assert (await refused(errors.InvalidManifest, "schema", manifest=yaml.safe_dump(evil))).endswith(" more")
    await upload(registry, b"\x80\x04]\x94.")
    message = await refused(errors.InvalidArgument, "files.model", digests={"model": digest_of(b"\x80\x04]\x94.")})
    assert "pickle" in message
    assert not (await registry.models.ListModels(pb.ListModelsRequest())).models
    await publish(registry, folder, version=3)
    await refused(errors.AlreadyExists, "version", version=3)


async def test_a_retried_publish_gives_the_first_answer(registry: Registry, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    first = await publish(registry, folder, request_key="once")
    assert await publish(registry, folder, request_key="once") == first
    (folder / "model.yaml").write_text(
        (folder / "model.yaml").read_text() + "author: somebody\n".replace("author", "x")
    )
    with pytest.raises(errors.InvalidManifest):
        await publish(registry, folder, request_key="once")


async def test_parallel_publishes(registry: Registry, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path / "m")
    await publish(registry, folder)
    versions = await asyncio.gather(*(publish(registry, folder) for _ in range(20)))
    assert sorted(version.version for version in versions) == list(range(2, 22))
    assert len({version.manifest_digest for version in versions}) == 20


async def test_names_are_checked_everywhere(registry: Registry) -> None:
    calls: list[Callable[[str], Awaitable[object]]] = [
        lambda name: registry.models.GetVersion(pb.GetVersionRequest(name=name)),
        lambda name: registry.models.ListVersions(pb.ListVersionsRequest(name=name)),
        lambda name: registry.models.DeleteVersion(pb.DeleteVersionRequest(name=name, version=1)),
        lambda name: registry.models.SetAlias(pb.SetAliasRequest(name=name, alias="a", version=1)),
        lambda name: registry.models.DeleteAlias(pb.DeleteAliasRequest(name=name, alias="a")),
        lambda name: registry.deployments.Deploy(pb.DeployRequest(name=name)),
        lambda name: registry.deployments.Undeploy(pb.UndeployRequest(name=name)),
    ]
    hostile = ["", "..", "a/b", "a..b", "%2e%2e", "A", "x" * 65, "a\x00b", "a\n", "-a", "../../etc/passwd", "\u202e"]
    for call in calls:
        for evil in hostile:
            with pytest.raises(errors.InvalidArgument) as raised, raising():
                await call(evil)
            assert raised.value.field == "name"
        with pytest.raises(errors.NotFound), raising():
            await call("unknown")


async def test_bad_fields(registry: Registry, tmp_path: Path) -> None:
    await publish(registry, models.add_one(tmp_path / "m"))
    calls: dict[str, list[Awaitable[object]]] = {
        "version": [
            registry.models.GetVersion(pb.GetVersionRequest(name="add1", version="1.5")),
            registry.models.GetVersion(pb.GetVersionRequest(name="add1", version="0")),
            registry.models.GetVersion(pb.GetVersionRequest(name="add1", version="-1")),
            registry.models.DeleteVersion(pb.DeleteVersionRequest(name="add1")),
            registry.models.SetAlias(pb.SetAliasRequest(name="add1", alias="prod")),
            registry.deployments.Deploy(pb.DeployRequest(name="add1", version="a/b")),
            registry.deployments.Undeploy(pb.UndeployRequest(name="add1", version=-1)),
        ],
        "alias": [registry.models.SetAlias(pb.SetAliasRequest(name="add1", alias="1st", version=1))],
        "expected_version": [
            registry.models.SetAlias(pb.SetAliasRequest(name="add1", alias="a", version=1, expected_version=-1))
        ],
        "replicas": [
            registry.deployments.Deploy(pb.DeployRequest(name="add1", replicas=-1)),
            registry.deployments.Deploy(pb.DeployRequest(name="add1", replicas=1001)),
        ],
        "query": [registry.models.ListModels(pb.ListModelsRequest(query="a\x00"))],
        "tags": [registry.models.ListModels(pb.ListModelsRequest(tags={"a": "\x00"}))],
        "page_size": [registry.models.ListModels(pb.ListModelsRequest(page_size=-1))],
        "page_token": [registry.models.ListModels(pb.ListModelsRequest(page_token="zzz"))],
    }
    for field, tries in calls.items():
        for call in tries:
            with pytest.raises(errors.InvalidArgument) as raised, raising():
                await call
            assert raised.value.field == field, raised.value.message


async def test_a_version_is_deployed_with_options_and_deployed_otherwise(registry: Registry, tmp_path: Path) -> None:
    await publish(registry, models.add_one(tmp_path / "m"))
    scaling = pb.Scaling(max_replicas=4, outstanding=2.0, idle_time=Duration(seconds=60))
    placement = manifest_pb2.Placement(selector={"zone": "a"}, spread="required")
    request = pb.DeployRequest(name="add1", scaling=scaling, placement=placement, tenant="acme")
    shown = (await registry.deployments.Deploy(request)).deployment
    (version,) = shown.versions
    assert (version.replicas, version.scaling, version.placement, version.tenant) == (0, scaling, placement, "acme")
    kept = pb.DeployRequest(name="add1", keep_options=True)
    assert (await registry.deployments.Deploy(kept)).deployment == shown
    plain = (await registry.deployments.Deploy(pb.DeployRequest(name="add1", replicas=2))).deployment
    assert list(plain.versions) == [pb.DeployedVersion(version=1, replicas=2)]
    request.scaling.min_replicas = 5
    with pytest.raises(errors.InvalidArgument, match="more than max_replicas, 4") as raised, raising():
        await registry.deployments.Deploy(request)
    assert raised.value.field == "scaling.min_replicas"
    (after,) = (await registry.deployments.ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert after == plain


async def test_the_life_of_a_model(registry: Registry, tmp_path: Path) -> None:
    for add in (1.0, 2.0, 3.0):
        await publish(registry, models.add_one(tmp_path / f"m{add}", add=add))
    assert (await registry.models.GetVersion(pb.GetVersionRequest(name="add1"))).version.version == 3
    before = len(registry.changes)
    await registry.models.SetAlias(pb.SetAliasRequest(name="add1", alias="prod", version=1, expected_version=0))
    deployed = (await registry.deployments.Deploy(pb.DeployRequest(name="add1", version="prod"))).deployment
    assert (deployed.default_version, dict(deployed.aliases), deployed.versions[0].replicas) == (1, {"prod": 1}, 1)
    moved = pb.SetAliasRequest(name="add1", alias="prod", version=2, expected_version=1)
    assert (await registry.models.SetAlias(moved)).previous_version == 1
    with pytest.raises(errors.Conflict), raising():
        await registry.models.SetAlias(moved)
    await registry.deployments.Deploy(pb.DeployRequest(name="add1", version="prod", replicas=2))
    (shown,) = (await registry.deployments.ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert [(v.version, v.replicas, v.retiring) for v in shown.versions] == [(1, 1, True), (2, 2, False)]
    assert len(registry.changes) - before == 5
    for number, words in ((1, "deployed"), (2, "deployed")):
        with pytest.raises(errors.InUse, match=words), raising():
            await registry.models.DeleteVersion(pb.DeleteVersionRequest(name="add1", version=number))
    await registry.deployments.Undeploy(pb.UndeployRequest(name="add1"))
    await registry.deployments.Undeploy(pb.UndeployRequest(name="add1"))
    with pytest.raises(errors.InUse, match="'prod'"), raising():
        await registry.models.DeleteVersion(pb.DeleteVersionRequest(name="add1", version=2))
    await registry.models.DeleteAlias(pb.DeleteAliasRequest(name="add1", alias="prod", expected_version=2))
    await registry.models.DeleteVersion(pb.DeleteVersionRequest(name="add1", version=2))
    with pytest.raises(errors.NotFound), raising():
        await registry.models.DeleteVersion(pb.DeleteVersionRequest(name="add1", version=2))
    page = await registry.models.ListVersions(pb.ListVersionsRequest(name="add1", page_size=1))
    rest = await registry.models.ListVersions(pb.ListVersionsRequest(name="add1", page_token=page.next_page_token))
    assert [v.version for v in (*page.versions, *rest.versions)] == [3, 1]
    (model,) = (await registry.models.ListModels(pb.ListModelsRequest(query="ADD1", tags={"purpose": "test"}))).models
    assert (model.latest_version, model.version_count) == (3, 2)


async def test_answers_never_show_paths(registry: Registry, tmp_path: Path) -> None:
    """Even when the disk does what nobody expected."""
    await upload(registry, b"abc")
    (registry.folder / "partial" / digest_of(b"x").removeprefix("sha256:")).mkdir()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await registry.artifacts.UploadArtifact(messages(b"x"))
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert str(tmp_path) not in str(raised.value) and "partial" not in (raised.value.details() or "")
