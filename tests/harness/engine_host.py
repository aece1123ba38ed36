"""EngineHost in tests: started and staged in a line, and proof that it leaves nothing behind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.internal.v1 import engine_pb2
from services.worker.host.host import EngineHost
from tests.harness.engines import manifest_of
from tests.harness.processes import children_of

ROOT = str(Path(__file__).resolve().parents[2])
Tensor = tuple[str, str, tuple[int, ...], bytes]


def descriptors() -> Counter[str]:
    """How many sockets, memory files and process handles this process has open. Not which: the loop takes a new pair
    of sockets for signals each time that it runs."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            found.update(kind for kind in ("socket", "memfd", "pidfd") if kind in target)
    return found


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """Whatever a test does, no child and no descriptor outlives it."""
    before, processes = descriptors(), children_of(os.getpid())
    yield
    # Fewer may be there than before: what tests of earlier left to the collector goes when it likes.
    assert not descriptors() - before
    assert set(children_of(os.getpid())) <= set(processes)


@asynccontextmanager
async def started(folder: Path, **options: Any) -> AsyncIterator[EngineHost]:
    manifest, files = manifest_of(folder)
    made = await EngineHost.start(manifest, files, **{"threads": 1, "load_timeout": 60, **options})
    try:
        yield made
    finally:
        await made.close()


def staged(made: EngineHost, tensors: Sequence[Tensor]) -> list[engine_pb2.TensorRef]:
    references, total = [], 0
    for name, datatype, shape, data in tensors:
        references.append(
            engine_pb2.TensorRef(name=name, datatype=datatype, shape=shape, offset=total, size_bytes=len(data))
        )
        total += -(-len(data) // 64) * 64
    arena = made.staging(max(1, total))
    for reference, (_, _, _, data) in zip(references, tensors, strict=True):
        arena[reference.offset : reference.offset + len(data)] = data
    return references


def floats(values: Any) -> Tensor:
    array = np.asarray(values, dtype="<f4")
    return ("x", "FP32", array.shape, array.tobytes())


async def add_one(made: EngineHost, rows: int) -> list[float]:
    """Runs the add1 model on `rows` different rows; the first column of the answer."""
    x = np.arange(rows * 16, dtype="<f4").reshape(rows, 16)
    outcome = await made.run(rows, staged(made, [floats(x)]))
    y = np.frombuffer(outcome.outputs[0].data, "<f4").reshape(outcome.outputs[0].shape)
    np.testing.assert_array_equal(y, x + 1)
    assert outcome.infer_ns > 0
    return [float(value) for value in y[:, 0]]
