"""Steps in their own processes: what they may not do ends them with public words, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import errors
from penstock.kit.confinement import Limits
from services.registry.build.sandbox import Builder, Listener, opened

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = subprocess.run(["unshare", "-Urnpmf", "true"], capture_output=True, check=False).returncode == 0
confined = pytest.mark.skipif(not NAMESPACES, reason="this machine gives no namespaces")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    (tmp_path / "blobs").mkdir()
    return Builder(
        scratch=tmp_path / "builds",
        hidden=tmp_path,
        limits=Limits(
            memory_bytes=512 << 20, cpu_seconds=60, wall_seconds=60.0, file_bytes=8 << 20, folder_bytes=32 << 20
        ),
        confined=NAMESPACES,
        steps="tests.harness.build_steps",
    )


async def work(builder: Builder, step: str, said: list[str] | None = None, **parameters: object) -> dict[str, bytes]:
    """Runs one step over a model of five bytes; its files by role."""
    listener = Listener(say=(said if said is not None else []).append)
    async with opened(builder, listener) as sandbox:
        await sandbox.describe([(step, parameters)])
        model = sandbox.folder / "in" / "model"
        model.write_bytes(b"model")
        done = await sandbox.run(step, parameters, {"model": model}, {})
        return {role: (sandbox.work / name).read_bytes() for role, name in done.files.items()}


def left(builder: Builder) -> list[str]:
    """Scratch folders, and processes of steps, that are still there."""
    found = [path.name for path in builder.scratch.iterdir()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"services.registry.build.child" in command and os.fsencode(builder.hidden) in command and state != "Z":
                found.append(entry.name)
    return found


async def gone(builder: Builder) -> None:
    """Waits until nothing is left: the kernel ends a namespace's processes in its own time."""
    async with asyncio.timeout(30):
        while left(builder):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_step_works(builder: Builder) -> None:
    said: list[str] = []
    assert await work(builder, "append", said, text="!!") == {"model": b"model\x32\x02!!"}
    assert "appending 2 bytes" in said
    await gone(builder)


async def test_a_step_describes_itself(builder: Builder) -> None:
    async with opened(builder, Listener()) as sandbox:
        first, second = await sandbox.describe([("append", {}), ("gate", {"passed": False})])
    assert (first.name, first.version, first.canonical, first.tools) == ("append", 1, '{"text":"+"}', {"tool": "1"})
    assert [role.name for role in second.inputs] == ["model", "source"] and second.outputs == ()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("eat-memory", "more memory than a build may use"),
        ("write-large", "a file larger than a build may"),
        ("write-many", "wrote more than a build may"),
        ("print-garbage", "did not keep to its protocol"),
        ("crash", "crashed with signal 6"),
        ("fork", "left processes running"),
        ("refuse", "operator Foo cannot be converted"),
        ("raise", r"failed inside \(KeyError\)"),
    ],
)
async def test_misbehaviour_ends_with_public_words(builder: Builder, step: str, words: str) -> None:
    said: list[str] = []
    with pytest.raises(errors.PenstockError, match=words) as caught:
        await work(builder, step, said)
    for text in (caught.value.message, *said):
        assert "Traceback" not in text and str(builder.scratch) not in text and "\x1b" not in text
    await gone(builder)


@confined
async def test_there_is_no_network(builder: Builder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(errors.ResourceExhausted, match="the network, which a build has not"):
            await work(builder, "socket", ignored=str(server.getsockname()[1]))
        with pytest.raises(BlockingIOError):
            server.accept()
    await gone(builder)


@confined
async def test_a_step_sees_nothing_of_the_registry(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOKEN", "secret")
    (builder.hidden / "registry.db").write_text("rows")
    said: list[str] = []
    await work(builder, "look", said, ignored=str(builder.hidden))
    assert said == ['sees ["builds"] processes 2 secrets []']


@confined
async def test_a_step_does_not_run_where_the_registry_cannot_be_hidden(builder: Builder, tmp_path: Path) -> None:
    elsewhere = replace(builder, hidden=tmp_path / "missing")
    with pytest.raises(errors.Unsupported, match=r"the registry's folder is open to it .* `build_unconfined`"):
        await work(elsewhere, "look")
    said: list[str] = []
    await work(replace(elsewhere, confined=False), "look", said, ignored=str(tmp_path))
    assert said[0].startswith("not confined: the registry's folder is open to this step")
    await gone(elsewhere)


async def test_a_step_that_hangs_is_ended(builder: Builder) -> None:
    short = replace(builder, limits=replace(builder.limits, wall_seconds=3.0))
    with pytest.raises(errors.ResourceExhausted, match="took longer than the 3 s"):
        await work(short, "hang")
    await gone(builder)


async def test_a_step_that_spins_is_ended(builder: Builder) -> None:
    short = replace(builder, limits=replace(builder.limits, cpu_seconds=1))
    with pytest.raises(errors.ResourceExhausted, match="processor time"):
        await work(short, "spin")
    await gone(builder)


async def test_cancelling_ends_it(builder: Builder) -> None:
    hanging = asyncio.Event()

    def heard(text: str) -> None:
        hanging.set()

    async def hang() -> None:
        async with opened(builder, Listener(say=heard)) as sandbox:
            await sandbox.describe([("hang", {})])
            (sandbox.folder / "in" / "model").write_bytes(b"")
            await sandbox.run("hang", {}, {"model": sandbox.folder / "in" / "model"}, {})

    task = asyncio.create_task(hang())
    async with asyncio.timeout(30):
        await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(builder)


async def test_it_dies_with_the_registry(builder: Builder) -> None:
    script = f"""
import asyncio, pathlib
from penstock.kit.confinement import Limits
from services.registry.build.sandbox import Builder, Listener, opened
async def main():
    folder = pathlib.Path({str(builder.hidden)!r})
    steps = "tests.harness.build_steps"
    builder = Builder(scratch=folder / "builds", hidden=folder, confined={NAMESPACES}, steps=steps)
    async with opened(builder, Listener(say=lambda text: print(text, flush=True))) as sandbox:
        await sandbox.describe([("hang", {{}})])
        (sandbox.folder / "in" / "model").write_bytes(b"")
        await sandbox.run("hang", {{}}, {{"model": sandbox.folder / "in" / "model"}}, {{}})
asyncio.run(main())
"""
    registry = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert registry.stdout is not None
    async with asyncio.timeout(30):
        assert b"hanging" in await registry.stdout.readline()
    registry.send_signal(signal.SIGKILL)
    await registry.wait()
    for folder in builder.scratch.iterdir():  # of a registry that was killed; the next one removes it
        assert folder.is_dir()
    async with asyncio.timeout(30):
        while [name for name in left(builder) if name.isdigit()]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_without_namespaces_it_says_so(builder: Builder) -> None:
    said: list[str] = []
    open_builder = replace(builder, confined=False)
    assert await work(open_builder, "append", said)
    assert bool([text for text in said if "the network is open" in text]) is not NAMESPACES
