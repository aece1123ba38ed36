"""`python -m services.registry` as a process: starts from nothing, keeps what it has, ends cleanly, survives a kill."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.channel import dial, raising
from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.watch import Mirror
from penstock.errors import PenstockError
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from tests.harness import models
from tests.harness.etcd import free_port
from tests.harness.waiting import Changed

ROOT = Path(__file__).resolve().parents[2]
DATA = os.urandom(3 << 20)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Process:
    """A registry on ports of its own."""

    def __init__(self, folder: Path, etcd: str, root: Path = ROOT) -> None:
        self.address, self.admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self._command = [sys.executable, "-m", "services.registry", f"--data-dir={folder}", f"--etcd={etcd}"]
        self._command += [f"--port={self.address.split(':')[1]}", f"--admin-port={self.admin.split(':')[1]}"]
        self._command += ["--project-seconds=0.2", "--drain-seconds=5"]
        self._root = root
        self.log = folder.with_suffix(".log")

    async def start(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, cwd=self._root, env=environ, stdout=log, stderr=log
            )
        async with asyncio.timeout(30):
            while not await asyncio.to_thread(self._ready):
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            return await self.process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=20) as answer:
            return str(answer.read().decode())


async def upload(process: Process, data: bytes, offset: int = 0) -> None:
    async with dial(process.address) as channel:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = pb.UploadHeader(digest=digest, size_bytes=len(data), offset=offset)
        parts = [pb.UploadArtifactRequest(header=header)]
        parts += [pb.UploadArtifactRequest(data=data[at : at + (1 << 20)]) for at in range(offset, len(data), 1 << 20)]
        with raising():
            await rpc.ArtifactServiceStub(channel).UploadArtifact(iter(parts))


async def test_start_publish_restart_stop(tmp_path: Path, clean_etcd: str) -> None:
    process = Process(tmp_path / "data", clean_etcd)
    await process.start()
    folder = models.add_one(tmp_path / "model")
    data = (folder / "model.onnx").read_bytes()
    await upload(process, data)
    etcd, changed = Etcd([clean_etcd]), Changed()
    mirror = Mirror(etcd, keys.SERVICES, ServiceRecord, changed)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await changed.until(lambda: [one.address for one in mirror.records.values()] == [process.address])
        async with dial(process.address) as channel:
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            request = pb.PublishVersionRequest(manifest=(folder / "model.yaml").read_text(), digests={"model": digest})
            await rpc.ModelServiceStub(channel).PublishVersion(request)
            await rpc.DeploymentServiceStub(channel).Deploy(pb.DeployRequest(name="add1"))
        text = await asyncio.to_thread(process.metrics)
        assert 'penstock_registry_uploads_total{outcome="stored"} 1.0' in text
        assert f"penstock_registry_uploaded_bytes_total {float(len(data))}" in text
        assert "penstock_registry_projection_age_seconds" in text and "penstock_registry_free_bytes" in text
        assert await process.end() == 0
        # It left before it ended, without waiting for its lease to end.
        assert not (await etcd.range(keys.SERVICES)).items
        task.cancel()
    await process.start()
    async with dial(process.address) as channel:
        answer = await rpc.ModelServiceStub(channel).GetVersion(pb.GetVersionRequest(name="add1", version="1"))
        assert answer.version.deployed
    assert await process.end() == 0
    assert (await etcd.get(keys.deployment("add1"))) is not None
    await etcd.close()


async def test_killed_in_the_middle_of_an_upload(tmp_path: Path, clean_etcd: str) -> None:
    process = Process(tmp_path / "data", clean_etcd)
    await process.start()

    async def half() -> AsyncIterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=DIGEST, size_bytes=len(DATA)))
        yield pb.UploadArtifactRequest(data=DATA[: 1 << 20])
        await asyncio.Event().wait()

    async with dial(process.address) as channel:
        stub = rpc.ArtifactServiceStub(channel)
        call = stub.UploadArtifact(half())
        async with asyncio.timeout(30):
            while (await stub.GetArtifact(pb.GetArtifactRequest(digest=DIGEST))).received_bytes < 1 << 20:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await process.end(signal.SIGKILL)
        with pytest.raises(PenstockError), raising():
            await call
    await process.start()
    async with dial(process.address) as channel:
        stat = await rpc.ArtifactServiceStub(channel).GetArtifact(pb.GetArtifactRequest(digest=DIGEST))
        assert (stat.complete, stat.received_bytes) == (False, 1 << 20)
    await upload(process, DATA, offset=1 << 20)
    assert await process.end() == 0


async def test_it_starts_and_works_without_etcd_and_from_a_copied_tree(tmp_path: Path) -> None:
    """As in an image: the sources copied elsewhere, migrations included, nothing else of the repository."""
    copied = tmp_path / "copied"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "services" / "registry", copied / "services" / "registry", ignore=ignore)
    shutil.copy(ROOT / "services" / "__init__.py", copied / "services" / "__init__.py")
    shutil.copytree(ROOT / "penstock", copied / "penstock", ignore=ignore)
    process = Process(tmp_path / "data", f"127.0.0.1:{free_port()}", copied)
    await process.start()
    await upload(process, DATA)
    assert await process.end() == 0


@pytest.mark.parametrize("flag", ["--database-url=mysql://x/y", "--data-dir=/proc/none", "--spare-bytes=many"])
def test_a_start_that_cannot_work_ends_with_an_error(flag: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.registry", f"--data-dir={tmp_path}", flag, "--port=0", "--admin-port=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode in (1, 2), done
