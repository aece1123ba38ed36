"""The bare engine, without a service: ONNX Runtime called in a loop, and the worker's EngineHost called in a loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from penstock.internal.v1 import engine_pb2
from services.worker.host.host import EngineHost
from tests.bench.exchange import Exchange
from tests.bench.output import quantile
from tests.harness.engines import manifest_of

LEAST_RUNS: Final = 5
Times = list[float]


def minilm_feed(folder: Path, text: str, rows: int) -> dict[str, np.ndarray]:
    """What the encoder takes for `rows` times the same text."""
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    batch = np.tile(np.array(ids, np.int64), (rows, 1))
    return {"input_ids": batch, "attention_mask": np.ones_like(batch), "token_type_ids": np.zeros_like(batch)}


def rows_of(exchange: Exchange, rows: int) -> dict[str, np.ndarray]:
    """What a model with one tensor takes for `rows` times the same row."""
    one = np.frombuffer(exchange.data, exchange.expected.dtype).reshape(exchange.shape)
    return {exchange.input: np.repeat(one, rows, axis=0)}


def runtime_times(model: Path, feed: Mapping[str, np.ndarray], seconds: float) -> Times:
    """Seconds of each call of ONNX Runtime, one thread, ascending; the first calls are not counted."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    fed = dict(feed)
    for _ in range(3):
        session.run(outputs, fed)
    times: Times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end or len(times) < LEAST_RUNS:
        session.run(outputs, fed)
        times.append(time.perf_counter() - began)
    return sorted(times)


def host_times(folder: Path, exchange: Exchange, sizes: Sequence[int], seconds: float) -> dict[int, Times]:
    """Seconds of each EngineHost.run by batch size, ascending: shared memory, the child, processors, the engine.

    The sizes take turns for `seconds` in all, so that what disturbs the machine meanwhile disturbs all of them. Raises
    WrongAnswers.
    """
    return asyncio.run(_host_times(folder, exchange, sizes, seconds))


async def _host_times(folder: Path, exchange: Exchange, sizes: Sequence[int], seconds: float) -> dict[int, Times]:
    manifest, files = manifest_of(folder)
    host = await EngineHost.start(manifest, files, threads=1, load_timeout=60.0)
    times: dict[int, Times] = {rows: [] for rows in sizes}
    try:
        for rows in sizes:  # makes the arenas
            await _once(host, exchange, rows)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[sizes[-1]]) < LEAST_RUNS:
            for rows in sizes:
                times[rows].append(await _once(host, exchange, rows))
    finally:
        await host.close()
    return {rows: sorted(each) for rows, each in times.items()}


async def _once(host: EngineHost, exchange: Exchange, rows: int) -> float:
    data = exchange.data * rows
    reference = engine_pb2.TensorRef(
        name=exchange.input, datatype=exchange.datatype, shape=(rows, *exchange.shape[1:]), size_bytes=len(data)
    )
    began = time.perf_counter()
    host.staging(len(data))[:] = data
    outcome = await host.run(rows, [reference])
    took = time.perf_counter() - began
    output = np.frombuffer(outcome.outputs[0].data, exchange.expected.dtype).reshape(rows, -1)
    exchange.check(output[-1])
    return took


def summary(times: Times) -> dict[str, Any]:
    """Milliseconds: p50 and p99."""
    return {"p50_ms": quantile(times, 0.5) * 1e3, "p99_ms": quantile(times, 0.99) * 1e3, "runs": len(times)}
