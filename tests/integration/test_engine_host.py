"""EngineHost with real child processes and real models."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from penstock.errors import Internal, InvalidArgument, Unavailable, Unsupported
from penstock.internal.v1 import engine_pb2
from penstock.tensors import DATATYPES, pack_bytes, unpack_bytes
from services.worker.engines.engine import Means
from services.worker.host.host import STOPPED, EngineHost
from services.worker.host.samples import png
from services.worker.processors.image import NOT_AN_IMAGE
from tests.harness import models
from tests.harness.engine_host import (
    ROOT,
    Tensor,
    add_one,
    floats,
    nothing_left_behind,
    staged,
    started,
)
from tests.harness.engines import manifest_of, of_document

__all__ = ["nothing_left_behind"]


async def test_every_datatype_makes_the_round_trip(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = 3
    tensors: list[Tensor] = []
    for datatype, row in DATATYPES.items():
        data = random.integers(0, 2 if datatype == "BOOL" else 256, rows * 2 * row.size, dtype=np.uint8).tobytes()
        if datatype == "BYTES":
            data = pack_bytes(["grün".encode(), b"", b"x" * 1000, b"a\0b", b"1", b"2"])
        tensors.append((f"in_{datatype.lower()}", datatype, (rows, 2), data))
    async with started(models.identity(tmp_path)) as made:
        outcome = await made.run(rows, staged(made, tensors))
        got = {output.name: output for output in outcome.outputs}
        assert len(got) == len(DATATYPES) == 14
        for name, datatype, shape, data in tensors:
            output = got[name.replace("in_", "out_")]
            assert (output.datatype, output.shape) == (datatype, shape)
            assert bytes(output.data) == data, datatype
        assert outcome.row_failures == {}
        assert made.memory_bytes > 10 << 20


async def test_arenas_grow_from_a_kilobyte_to_64_megabytes_and_back(tmp_path: Path) -> None:
    async with started(models.any_size(tmp_path)) as made:
        for size in (1 << 10, 1 << 20, 64 << 20, 1 << 10):
            data = np.random.default_rng(size).integers(0, 100, size // 4).astype("<f4").tobytes()
            outcome = await made.run(0, staged(made, [("x", "FP32", (size // 4,), data)]))
            assert outcome.outputs[0].data == data
        assert made.alive


async def test_an_outcome_stays_readable_until_the_next_run_even_if_the_arena_grows(tmp_path: Path) -> None:
    async with started(models.any_size(tmp_path)) as made:
        first = await made.run(0, staged(made, [floats([1, 2, 3])]))
        staged(made, [floats(np.zeros(1 << 20))])
        assert np.frombuffer(first.outputs[0].data, "<f4").tolist() == [1, 2, 3]


async def test_outputs_larger_than_their_arena_do_not_run_the_model_twice(tmp_path: Path) -> None:
    # Random numbers: a second run would not give the sum that came with them.
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["r"], dtype=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
    ]
    folder = _graph(tmp_path, nodes, ["r", "sum"])
    async with started(folder) as made:
        for size in (1 << 18, 1 << 20):
            outcome = await made.run(0, staged(made, [floats(np.zeros(size))]))
            got = {output.name: np.frombuffer(output.data, "<f4") for output in outcome.outputs}
            np.testing.assert_allclose(got["r"].sum(dtype=np.float64), got["sum"], rtol=1e-3)


def _graph(folder: Path, nodes: list[Any], outputs: list[str]) -> Path:
    shapes: dict[str, list[Any]] = {"r": ["n"], "sum": []}
    return models._write(
        folder,
        "g",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        [{"name": name, "datatype": "FP32", "shape": [-1] if shapes[name] else []} for name in outputs],
        batching={"max_batch_size": 0},
    )


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


async def until_stopped(pid: int) -> None:
    while stat(pid)[0] != "T":  # noqa: ASYNC110 (the kernel tells nobody when a SIGSTOP has arrived)
        await asyncio.sleep(0)


async def test_a_frozen_child_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    async with started(models.add_one(tmp_path)) as made:
        os.kill(made.pid, signal.SIGSTOP)
        await until_stopped(made.pid)
        run = asyncio.create_task(add_one(made, 2))
        loop = asyncio.get_running_loop()
        late = 0.0
        for _ in range(2_000):
            due = loop.time()
            await asyncio.sleep(0)
            late = max(late, loop.time() - due)
        assert not run.done()
        assert late < 10  # for ever, if the loop waited for the child
        os.kill(made.pid, signal.SIGCONT)
        assert await run == [1, 17]


def busy_ticks(pid: int) -> int:
    return int(stat(pid)[11])


async def busy(made: EngineHost) -> asyncio.Task[Any]:
    """A run that would last for minutes, and is in the engine now."""
    run = asyncio.create_task(
        made.run(0, staged(made, [("times", "INT64", (1,), np.array([10**7], np.int64).tobytes())]))
    )
    before = busy_ticks(made.pid)
    while busy_ticks(made.pid) < before + 3:  # noqa: ASYNC110 (nor when it computes)
        await asyncio.sleep(0)
    assert not run.done()
    return run


async def test_a_child_killed_in_a_run_ends_the_run_and_the_host(tmp_path: Path) -> None:
    async with started(models.slow(tmp_path)) as made:
        died = asyncio.create_task(made.died())
        run = await busy(made)
        assert not died.done()
        os.kill(made.pid, signal.SIGKILL)
        with pytest.raises(Unavailable) as caught:
            await run
        assert caught.value.message == STOPPED == "the engine stopped while it ran this request"
        await asyncio.wait_for(died, 30)
        assert not made.alive
        with pytest.raises(Unavailable):
            await made.run(0, staged(made, [("times", "INT64", (1,), bytes(8))]))


async def test_a_cancelled_run_leaves_the_host_usable(tmp_path: Path) -> None:
    async with started(models.add_one(tmp_path)) as made:
        for _ in range(20):
            os.kill(made.pid, signal.SIGSTOP)
            await until_stopped(made.pid)
            run = asyncio.create_task(add_one(made, 1))
            for _ in range(5):
                await asyncio.sleep(0)
            arena = made._inputs[0]
            reads = arena.view[:64] if arena is not None else memoryview(b"")
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            # The child still reads for the run that nobody waits for: nothing may be written there.
            made.staging(64)[:] = b"\xff" * 64
            assert np.frombuffer(reads, "<f4").tolist() == [*range(16)]
            later = asyncio.create_task(add_one(made, 3))
            await asyncio.sleep(0)
            os.kill(made.pid, signal.SIGCONT)
            assert await later == [1, 17, 33]


async def test_two_sides_never_meet(tmp_path: Path) -> None:
    """While a run reads one side the other one is filled, and what the run gave is read while the next one runs."""
    async with started(models.any_size(tmp_path)) as made:
        sizes = [64, 70_000, 64, 300_000, 1, 300_000, 5]
        given = [np.random.default_rng(size).integers(0, 100, size).astype("<f4").tobytes() for size in sizes]
        references = [
            [engine_pb2.TensorRef(name="x", datatype="FP32", shape=(size,), size_bytes=4 * size)] for size in sizes
        ]
        made.staging(len(given[0]), 0)[:] = given[0]
        await made.begin(0, references[0], 0)
        for number in range(1, len(sizes)):
            side = number % 2
            made.staging(len(given[number]), side)[:] = given[number]
            outcome = await made.finish()
            await made.begin(0, references[number], side)
            assert outcome.outputs[0].data == given[number - 1]
        assert (await made.finish()).outputs[0].data == given[-1]


async def test_a_run_that_was_cancelled_keeps_its_own_side(tmp_path: Path) -> None:
    async with started(models.add_one(tmp_path)) as made:
        reference = staged(made, [floats(np.zeros((1, 16), np.float32))])
        os.kill(made.pid, signal.SIGSTOP)
        await until_stopped(made.pid)
        run = asyncio.create_task(made.run(1, reference, 0))
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        other, own = made.staging(64, 1).obj, made._inputs[0]
        assert made.staging(64, 1).obj is other, "nobody reads the other side"
        made.staging(64, 0)
        assert made._inputs[0] is not own
        os.kill(made.pid, signal.SIGCONT)
        assert await add_one(made, 2) == [1, 17]


async def test_one_run_at_a_time(tmp_path: Path) -> None:
    async with started(models.add_one(tmp_path)) as made:
        await made.begin(1, staged(made, [floats(np.zeros((1, 16), np.float32))]))
        with pytest.raises(RuntimeError, match="one run at a time"):
            await made.begin(1, [], 1)
        with pytest.raises(RuntimeError, match="one run at a time"):
            await made.check()
        await made.finish()
        with pytest.raises(RuntimeError, match="nothing was begun"):
            await made.finish()


async def test_runs_cancelled_at_any_moment_never_mix_answers(tmp_path: Path) -> None:
    async with started(models.add_one(tmp_path)) as made:
        for steps in range(60):
            run = asyncio.create_task(add_one(made, 1 + steps % 5))
            for _ in range(steps):
                await asyncio.sleep(0)
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
            assert await add_one(made, 4) == [1, 17, 33, 49]


async def test_closing_ends_even_a_busy_child_and_may_be_repeated(tmp_path: Path) -> None:
    async with started(models.slow(tmp_path)) as made:
        run = await busy(made)
        await asyncio.gather(made.close(0.05), made.close(0.05))
        with pytest.raises(Unavailable):
            await run
        await made.died()
        await made.close()
        assert not made.alive
        assert made.memory_bytes > 0


async def test_a_polite_close_lets_the_run_finish(tmp_path: Path) -> None:
    async with started(models.slow(tmp_path)) as made:
        times = np.array([300], np.int64)
        run = asyncio.create_task(made.run(0, staged(made, [("times", "INT64", (1,), times.tobytes())])))
        await asyncio.sleep(0)
        await made.close(60)
        outcome = await run
        assert outcome.outputs[0].shape == (1,)


async def test_code_of_somebody_elses_runs_two_processes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text(
        "import os\nclass Model:\n    def run(self, inputs):\n"
        "        if inputs['x'][0, 0] < 0: os._exit(1)\n        return {'y': inputs['x'] + 1}\n"
    )
    side = [{"name": "x", "datatype": "FP32", "shape": [16]}]
    document = {
        "name": "code",
        "format": "python",
        "files": {"model": "model.py"},
        "inputs": side,
        "outputs": [{**side[0], "name": "y"}],
        "batching": {"max_batch_size": 8},
    }
    manifest, files = of_document(document, tmp_path)
    with pytest.raises(Unsupported, match="python_engine"):
        await EngineHost.start(manifest, files, threads=1, load_timeout=60)
    means = Means(python=sys.executable)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = await EngineHost.start(manifest, files, threads=1, load_timeout=60, means=means)
    try:
        child = made.pid
        with pytest.raises(Internal, match="it is started anew"):
            await made.run(1, staged(made, [floats(np.full((1, 16), -1, np.float32))]))
        outcome = await made.run(2, staged(made, [floats(np.zeros((2, 16), np.float32))]))
        assert np.frombuffer(outcome.outputs[0].data, np.float32).tolist() == [1.0] * 32
        del outcome  # a view keeps its memory, and the error caught above keeps this frame
        assert made.alive and made.pid == child
        assert sum(name.startswith("penstock-python-") for name in os.listdir(tmp_path)) == 1
    finally:
        await made.close()
    assert not any(name.startswith("penstock-python-") for name in os.listdir(tmp_path))


async def test_a_child_keeps_to_its_processors(tmp_path: Path) -> None:
    manifest, files = manifest_of(models.add_one(tmp_path))
    own = min(os.sched_getaffinity(0))
    made = await EngineHost.start(manifest, files, threads=1, load_timeout=60, processors=frozenset((own,)))
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{made.pid}/task")]
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset((own,))}
    finally:
        await made.close()


@pytest.mark.parametrize("threads", [1, 2])
async def test_bad_rows_are_reported_and_the_others_answered(threads: int, tmp_path: Path) -> None:
    document = {
        "name": "pictures",
        "format": "onnx",
        "files": {"model": "model.onnx"},
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "best", "datatype": "BYTES", "shape": [1]}],
        "preprocess": [
            {"image": {"input": "image", "output": "x", "width": 4, "height": 4, "mode": "L", "layout": "FLAT"}}
        ],
        "postprocess": [{"top_k": {"input": "y", "output_labels": "best"}}],
        "batching": {"max_batch_size": 32},
    }
    models.add_one(tmp_path)
    manifest, files = of_document(document, tmp_path)
    made = await EngineHost.start(manifest, files, threads=threads, load_timeout=60)
    try:
        rows = [png(9, 9), b"no picture", png(3, 3), b""]
        outcome = await made.run(4, staged(made, [("image", "BYTES", (4, 1), pack_bytes(rows))]))
        assert {row: error.message for row, error in outcome.row_failures.items()} == dict.fromkeys(
            (1, 3), f"inputs[0] (image): {NOT_AN_IMAGE}"
        )
        assert all(type(error) is InvalidArgument for error in outcome.row_failures.values())
        assert unpack_bytes(outcome.outputs[0].data, 4) == [b"0", b"", b"0", b""]
        outcome = await made.run(2, staged(made, [("image", "BYTES", (2, 1), pack_bytes([b"", b"?"]))]))
        assert [*outcome.row_failures] == [0, 1]
        assert outcome.outputs == []
    finally:
        await made.close()


async def test_nothing_is_unpickled_in_a_child() -> None:
    script = (
        "import os, pickle, pathlib\n"
        "from services.worker.host.child import confine\n"
        "confine(os.getppid())\n"
        "assert pickle.loads(pickle.dumps([1, 'plain']))\n"
        "try: pickle.loads(pickle.dumps(pathlib.PurePath('a')))\n"
        "except RuntimeError as error: print(error)\n"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    said, _ = await child.communicate()
    assert said.decode().strip() == "nothing is unpickled in an engine's process"


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
async def test_an_exported_program_runs_in_a_child(tmp_path: Path) -> None:
    """Exported by another process: torch is never imported into one that hosts engines."""
    script = (
        "import sys, torch\n"
        "class AddOne(torch.nn.Module):\n"
        "    def forward(self, x): return x + 1\n"
        "batch = torch.export.Dim('batch', min=1, max=64)\n"
        "program = torch.export.export(AddOne(), (torch.ones(2, 16),), dynamic_shapes=({0: batch},))\n"
        "torch.export.save(program, sys.argv[1])\n"
    )
    exporter = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path / "model.pt2"))
    assert await exporter.wait() == 0
    manifest, _ = manifest_of(models.add_one(tmp_path))
    manifest.format = "torch-export"
    made = await EngineHost.start(manifest, {"model": tmp_path / "model.pt2"}, threads=1, load_timeout=100)
    try:
        assert await add_one(made, 3) == [1, 17, 33]
    finally:
        await made.close()


def shown(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


async def test_the_child_is_its_own_session_and_has_no_secrets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PENSTOCK_WORKER_TOKEN", "very-secret")
    async with started(models.add_one(tmp_path)) as made:
        assert os.getsid(made.pid) == os.getpgid(made.pid) == made.pid
        assert "very-secret" not in shown(made.pid, "environ")
        assert int(shown(made.pid, "oom_score_adj")) >= 600
        assert "NoNewPrivs:\t1" in shown(made.pid, "status")
        opened = [os.readlink(f"/proc/{made.pid}/fd/{name}") for name in os.listdir(f"/proc/{made.pid}/fd")]
        assert opened.count("/dev/null") == 2
        assert sum(target.startswith("socket:") for target in opened) == 1


async def test_a_child_dies_with_its_worker(tmp_path: Path) -> None:
    """The worker is another process here, and is killed."""
    models.add_one(tmp_path)
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from services.worker.host.host import EngineHost\n"
        "from tests.harness.engines import manifest_of\n"
        "async def main():\n"
        "    manifest, files = manifest_of(Path(sys.argv[1]))\n"
        "    made = await EngineHost.start(manifest, files, threads=1, load_timeout=60)\n"
        "    print(made.pid, [name for name in ('onnxruntime', 'torch') if name in sys.modules], flush=True)\n"
        "    await made.died()\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    try:
        assert worker.stdout is not None
        pid, _, imported = (await asyncio.wait_for(worker.stdout.readline(), 60)).decode().partition(" ")
        assert imported.strip() == "[]"
        gone = os.pidfd_open(int(pid))
        try:
            dead = asyncio.Event()
            asyncio.get_running_loop().add_reader(gone, dead.set)
            worker.kill()
            await asyncio.wait_for(dead.wait(), 30)
        finally:
            asyncio.get_running_loop().remove_reader(gone)
            os.close(gone)
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
