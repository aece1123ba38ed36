"""The worker's compiler: TensorRT-RTX's real builder in a real child process, its limits, and nothing left behind."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.compiling import builders
from penstock.errors import Internal, InvalidManifest, PenstockError, ResourceExhausted, Unsupported
from services.worker.engines.trt.matching import Target
from services.worker.plans import compiler as compiling
from services.worker.plans.compiler import Compiler
from services.worker.plans.wanted import Wanted, wanted
from tests.harness import models
from tests.harness.compile_hook import compiles
from tests.harness.engine_host import nothing_left_behind
from tests.harness.engines import manifest_of

__all__ = ["nothing_left_behind"]

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = subprocess.run(["unshare", "-Urnpmf", "true"], capture_output=True, check=False).returncode == 0
RTX = "tensorrt_rtx_bindings"
pytestmark = pytest.mark.skipif(
    compiling.missing() != "" or builders.builder()[0] != RTX,
    reason="TensorRT-RTX's builder is not installed (penstock[compile])",
)


def target(architecture: str = "sm89") -> Target:
    return Target("tensorrt-rtx", importlib.metadata.version("tensorrt-rtx-cu13-bindings"), architecture)


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return made(tmp_path)


def made(folder: Path, seconds: float = 60.0, memory_bytes: int = 4 << 30) -> Compiler:
    (folder / "data").mkdir(exist_ok=True)
    return Compiler(folder / "data", seconds=seconds, memory_bytes=memory_bytes, threads=1, names={})


def hooked(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder of the process is replaced by these lines."""
    monkeypatch.setenv("PYTHONPATH", str(compiles(folder / "hook", body)))


async def compiled(compiler: Compiler, folder: Path, need: Wanted | None = None, to: Target | None = None) -> bytes:
    """The plan of add_one."""
    manifest, files = manifest_of(models.add_one(folder / "model"))
    need = need or wanted(manifest, "sha256:" + "ab" * 32)
    async with compiler.compiled(files["model"], need, to or target(), [], folder / "none") as found:
        with found.plan() as (file, size):
            plan = file.read()
        assert len(plan) == size
        assert found.precision == "fp32"
        assert found.profiles == ({"x": ((1, 16), (32, 16), (32, 16))},)
    return plan


def left(folder: Path) -> list[str]:
    """Scratch folders of the compiler, and its processes."""
    found = [path.name for path in (folder / "data").glob("compiling/*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"services.worker.plans.child" in command and os.fsencode(folder / "data") in command and state != "Z":
                found.append(entry.name)
    return found


async def begun(folder: Path) -> None:
    """Waits until the builder has begun: it says so by a file, since it has no other way to say something."""
    async with asyncio.timeout(30):
        while not list((folder / "data").glob("compiling/*/begun")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def gone(folder: Path) -> None:
    """Waits until nothing is left: the kernel ends a namespace's processes in its own time."""
    async with asyncio.timeout(30):
        while left(folder):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_real_plan_comes_out_and_nothing_else_stays(compiler: Compiler, tmp_path: Path) -> None:
    plan = await compiled(compiler, tmp_path)
    assert len(plan) > 1000
    other = await compiled(compiler, tmp_path, to=target("sm120"))
    assert other != plan, "the architecture makes no difference"
    await gone(tmp_path)


async def test_a_target_that_only_its_device_can_compile_for_says_what_is_missing(
    compiler: Compiler, tmp_path: Path
) -> None:
    if builders_see_a_device():
        pytest.skip("this machine has a driver")
    with pytest.raises(InvalidManifest, match="the builder cannot compile it") as caught:
        await compiled(compiler, tmp_path, to=target("sm90"))
    assert str(tmp_path) not in caught.value.message


def builders_see_a_device() -> bool:
    from services.worker.engines.trt import driver

    return driver.missing() is None


async def test_another_version_of_the_builder_is_told_and_not_signed(compiler: Compiler, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=f"this worker's builder is tensorrt-rtx {target().version}"):
        await compiled(compiler, tmp_path, to=Target("tensorrt-rtx", "1.0", "sm89"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x08\x0a", "it has no graph"),
        (b"\x08\x0a\x3a\x00", "this is not a valid ONNX model"),
        (b"vtrt" + bytes(100), "not|ONNX"),
    ],
)
async def test_a_file_that_is_no_model_says_so(compiler: Compiler, data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(PenstockError, match=says):
        async with compiler.compiled(path, Wanted("sha256:" + "ab" * 32), target(), [], tmp_path / "none"):
            raise AssertionError("it was compiled")
    await gone(tmp_path)


async def test_a_dimension_without_sizes_says_where_they_are_said(compiler: Compiler, tmp_path: Path) -> None:
    manifest, files = manifest_of(models.any_size(tmp_path / "any"))
    need = wanted(manifest, "sha256:" + "ab" * 32)
    with pytest.raises(PenstockError, match=r"the dimension 'n', which needs its smallest, best and largest size"):
        async with compiler.compiled(files["model"], need, target(), [], tmp_path / "none"):
            raise AssertionError("it was compiled")
    manifest.build.steps.add(step="compile", parameters='{"sizes": {"n": [1, 8, 64]}}')
    need = wanted(manifest, need.source)
    async with compiler.compiled(files["model"], need, target(), [], tmp_path / "none") as found:
        assert found.profiles == ({"x": ((1,), (8,), (64,))},)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.kill(os.getpid(), 11)", "was ended by signal 11; most likely it needed more memory"),
        ("os._exit(7)", r"ended without an answer \(exit status 7\)"),
        ("bytearray(2 << 30)", "needs more memory than compile_memory_bytes allows"),
        ("raise RuntimeError('/secret/path')", r"failed inside \(RuntimeError\); the worker's log says where"),
        ("return {'error': 'the operator Foo cannot be compiled'}", "files.model: the operator Foo cannot be compiled"),
        ("return {'version': 5}", "this worker's builder is tensorrt-rtx 5"),
        ("return {'version': sys.version, 'x': 'y' * (2 << 20)}", "answer cannot be read"),
        (f"return {{'version': {target().version!r}, 'seconds': 'x'}}", "answer cannot be read"),
        (
            f"os.symlink('/etc/hostname', order['plan']); return {{'version': {target().version!r}, 'seconds': 0}}",
            "did not leave what it should",
        ),
        (
            f"os.mkfifo(order['plan']); return {{'version': {target().version!r}, 'seconds': 0}}",
            "did not leave what it should",
        ),
    ],
)
async def test_whatever_becomes_of_it_the_reason_is_told_and_nothing_stays(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(tmp_path, body, monkeypatch)
    with pytest.raises(PenstockError, match=says) as caught:
        await compiled(made(tmp_path, memory_bytes=1 << 30), tmp_path)
    assert "/" not in caught.value.message
    await gone(tmp_path)


async def test_one_that_is_killed_or_too_late_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked(tmp_path, "time.sleep(1000)", monkeypatch)
    with pytest.raises(ResourceExhausted, match="took longer than the 2 s of compile_seconds; raise that, or have"):
        await compiled(made(tmp_path, seconds=2.0), tmp_path)
    await gone(tmp_path)
    task = asyncio.ensure_future(compiled(made(tmp_path), tmp_path))
    await begun(tmp_path)
    for process in left(tmp_path):
        if process.isdigit():
            with suppress(ProcessLookupError):  # it has ended with another of them
                os.kill(int(process), signal.SIGKILL)
    with pytest.raises(ResourceExhausted, match="signal 9; most likely it needed more memory than compile_memory_byt"):
        await task
    await gone(tmp_path)


async def test_a_replica_that_leaves_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked(tmp_path, "time.sleep(1000)", monkeypatch)
    task = asyncio.ensure_future(compiled(made(tmp_path), tmp_path))
    await begun(tmp_path)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await gone(tmp_path)


async def test_it_dies_with_its_worker_and_the_next_start_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(tmp_path, "time.sleep(1000)", monkeypatch)
    script = f"""
import asyncio, pathlib
from tests.integration.test_worker_compile import compiled, made
folder = pathlib.Path({str(tmp_path)!r})
asyncio.run(compiled(made(folder), folder))
"""
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=ROOT)
    await begun(tmp_path)
    worker.kill()
    await worker.wait()
    async with asyncio.timeout(30):
        while [each for each in left(tmp_path) if each.isdigit()]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert left(tmp_path)
    made(tmp_path).open()
    assert not left(tmp_path)


@pytest.mark.skipif(not NAMESPACES, reason="this machine gives no namespaces")
async def test_it_sees_neither_the_workers_files_nor_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = """
import socket
seen = sorted(os.listdir(Path.cwd().parents[1]))
names = [name for _, name in socket.if_nameindex()]
return {"error": " ".join(["sees", *seen, *names, *sorted(os.listdir(Path.cwd().parent))[1:]])}
"""
    hooked(tmp_path, look, monkeypatch)
    compiler = made(tmp_path)
    (tmp_path / "data" / "keys").mkdir()
    (tmp_path / "data" / "keys" / "plan_key").write_bytes(b"secret")
    with pytest.raises(InvalidManifest, match=r"^files\.model: sees compiling lo$"):
        await compiled(compiler, tmp_path)


def test_why_it_ended_is_told_by_its_status() -> None:
    for status in (-int(signal.SIGXCPU), 128 + int(signal.SIGXCPU)):
        assert "more processor time than compile_seconds" in compiling.ended(status).message
    assert isinstance(compiling.ended(3), Internal)
