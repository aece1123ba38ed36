"""Models that cannot be served and children that lie: why is said, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from penstock.errors import DeadlineExceeded, Internal, InvalidManifest, PenstockError, Unavailable, Unsupported
from penstock.internal.v1 import engine_pb2
from penstock.v1 import manifest_pb2 as pb
from services.worker.host import frames, host
from services.worker.host.host import EngineHost
from services.worker.host.process import Process
from tests.harness import models
from tests.harness.engine_host import (
    floats,
    nothing_left_behind,
    staged,
)
from tests.harness.engines import manifest_of

__all__ = ["nothing_left_behind"]


def unfit(folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    manifest, files = manifest_of(models.add_one(folder))
    manifest.outputs[0].shape[0] = 17
    return manifest, files


def leaking(folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    manifest, files = manifest_of(models.add_one(folder))
    import onnx

    model = onnx.load(files["model"])
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../canary")
    files["model"].write_bytes(model.SerializeToString())
    return manifest, files


def other_format(folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    manifest, files = manifest_of(models.add_one(folder))
    manifest.format = "tensorrt"
    return manifest, files


def needy(folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    manifest, files = manifest_of(models.add_one(folder))
    manifest.dependencies.append("onnxruntime>=999")
    return manifest, files


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda folder: manifest_of(models.unloadable(folder)), InvalidManifest, "NoSuchOperator"),
        (unfit, InvalidManifest, r"'y' is 17 in dimension 1 by the manifest; the model gives y FP32 \[-1, 16\]"),
        (leaking, InvalidManifest, "keeps tensors in other files"),
        (other_format, Unsupported, "TensorRT"),
        (needy, Unsupported, r"this worker has onnxruntime .*; the model needs onnxruntime>=999"),
    ],
)
async def test_a_model_that_cannot_be_served_says_why(
    make: Callable[[Path], tuple[pb.Manifest, dict[str, Path]]], kind: type[PenstockError], says: str, tmp_path: Path
) -> None:
    manifest, files = make(tmp_path)
    with pytest.raises(kind, match=says) as caught:
        await EngineHost.start(manifest, files, threads=1, load_timeout=60)
    assert str(tmp_path) not in caught.value.message


async def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    with pytest.raises(DeadlineExceeded, match=r"did not load within 0\.01 s"):
        await EngineHost.start(manifest, files, threads=1, load_timeout=0.01)


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    for steps in (0, 1, 2, 3, 5, 8, 13, 50, 200):
        start = asyncio.create_task(EngineHost.start(manifest, files, threads=1, load_timeout=60))
        for _ in range(steps):
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start


Liar = Callable[[engine_pb2.HostRequest], bytes]


def response(request: engine_pb2.HostRequest, **result: Any) -> bytes:
    return frames.pack(engine_pb2.HostResponse(id=request.id, **result))


def run_result(**fields: Any) -> engine_pb2.RunResult:
    honest = {"name": "y", "datatype": "FP32", "shape": [1, 16], "offset": 0, "size_bytes": 64}
    return engine_pb2.RunResult(outputs=[engine_pb2.TensorRef(**{**honest, **fields})])


LIES: dict[str, Liar] = {
    "past the arena": lambda request: response(request, run=run_result(offset=1 << 40)),
    "another request": lambda request: frames.pack(engine_pb2.HostResponse(id=999, run=run_result())),
    "an endless frame": lambda request: b"\xff\xff\xff\xff",
    "no message": lambda request: frames.HEADER.pack(3) + b"\xff\xff\xff",
    "nothing": lambda request: response(request),
    "two answers": lambda request: response(request, run=run_result()) * 2,
    "no outputs": lambda request: response(request, run=engine_pb2.RunResult()),
    "another kind": lambda request: response(request, load=engine_pb2.LoadResult()),
    "an arena of exabytes": lambda request: response(request, need_bytes=1 << 60),
    "an arena that it has": lambda request: response(request, need_bytes=1),
}


def played(monkeypatch: Any) -> list[socket.socket]:
    """The child's end of the link, once there is one: the test plays it, and a harmless process stands in for the
    child."""
    ends: list[socket.socket] = []

    def spawn(threads: int, devices: Sequence[int | str], processors: frozenset[int]) -> tuple[Process, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ends.append(theirs)
        return Process(subprocess.Popen(["sleep", "1000"], start_new_session=True)), ours

    monkeypatch.setattr(host, "spawn", spawn)
    return ends


@pytest.mark.parametrize("lie", LIES)
async def test_a_child_that_lies_is_killed(lie: str, tmp_path: Path, monkeypatch: Any) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    ends = played(monkeypatch)
    start = asyncio.create_task(EngineHost.start(manifest, files, threads=1, load_timeout=60))
    request = await asked(ends)
    await asyncio.get_running_loop().sock_sendall(ends[0], response(request, load=engine_pb2.LoadResult()))
    made = await start
    try:
        run = asyncio.create_task(made.run(1, staged(made, [floats(np.zeros((1, 16)))])))
        await asyncio.get_running_loop().sock_sendall(ends[0], LIES[lie](await asked(ends)))
        with pytest.raises(Unavailable, match="the engine stopped"):
            await run
        await asyncio.wait_for(made.died(), 30)
    finally:
        ends[0].close()
        await made.close()


@pytest.mark.parametrize(("costs", "sound"), [({4: 0.2, 1: 0.1}, True), ({0: 0.1}, False), ({1: -1.0}, False)])
async def test_what_a_child_says_of_its_sizes_is_looked_at(
    costs: dict[int, float], sound: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    ends = played(monkeypatch)
    start = asyncio.create_task(EngineHost.start(manifest, files, threads=1, load_timeout=60))
    answer = response(await asked(ends), load=engine_pb2.LoadResult(costs=costs))
    await asyncio.get_running_loop().sock_sendall(ends[0], answer)
    try:
        if sound:
            made = await start
            assert made.costs == costs
            await made.close(0)
        else:
            with pytest.raises(Internal, match="failed while it loaded"):
                await start
    finally:
        ends[0].close()


async def asked(ends: list[socket.socket]) -> engine_pb2.HostRequest:
    """The next request that is not about an arena; descriptors that come along are dropped by the kernel."""
    async with asyncio.timeout(30):
        while not ends:  # noqa: ASYNC110 (it is the code under test that makes it)
            await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    while True:
        (size,) = frames.HEADER.unpack(await loop.sock_recv(ends[0], frames.HEADER.size))
        request = engine_pb2.HostRequest.FromString(await loop.sock_recv(ends[0], size))
        if request.WhichOneof("call") != "arena":
            return request


async def test_a_child_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="the engine stopped while it loaded the model"):
        await EngineHost.start(manifest, files, threads=1, load_timeout=60)
