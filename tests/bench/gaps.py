"""How long an engine's process waits for its next batch while requests wait: `python -m tests.bench.gaps`.

The worker's own Batcher and EngineHost with a real child, without sockets: more callers than a batch holds, each of
whom asks again as soon as his answer is encoded. What passes between two batches beyond what the child says that it
computed is copying rows in, copying outputs and answers out, and two wakes; the engine has nothing to do meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import PenstockError
from penstock.kit import log
from penstock.kit.loop import Loop
from penstock.oip import inference_pb2 as oip
from services.worker.batcher import Batcher
from services.worker.batching import BatchPolicy
from services.worker.codec import Schema
from services.worker.host.host import EngineHost
from services.worker.metrics import ReplicaMetrics
from services.worker.seat import Result
from services.worker.statistics import Statistics
from tests.bench import batches, exchange, models
from tests.bench.exchange import Exchange
from tests.bench.output import quantile
from tests.harness import models as small_models
from tests.harness.engines import manifest_of

SECONDS: Final = 4.0
WARM: Final = 0.5
"""Seconds that are not counted: arenas grow, pages are touched for the first time."""
CROWD: Final = 3
"""Callers for each row of a batch: so many that the queue always holds a whole one."""
CHECKED: Final = 61
"""Every so many answers one is compared with what it should be."""


@dataclass(frozen=True)
class Gap:
    """rows: of a batch, on average. Milliseconds, lower deciles, since whatever disturbs only adds: busy: of what a
    batch takes in the child; between: of what passes from its end until the next begins; ours: of CPU that the worker
    spends from an answer until the next batch is sent, the part that it can do something about. rate: rows a second."""

    rows: float
    busy: float
    between: float
    ours: float
    rate: float

    @property
    def idle(self) -> float:
        """The part of its time in which the engine waits, though somebody waits for it."""
        return self.between / (self.busy + self.between)


class Watched(EngineHost):
    """Notes when the child's answers came, and nanoseconds that it says it computed; nanoseconds of this thread from
    each answer to the next batch."""

    said: list[tuple[int, int]]
    ours: list[int]
    _came = 0

    async def begin(self, *arguments: Any) -> None:
        await super().begin(*arguments)
        self.ours.append(time.thread_time_ns() - self._came)

    def _outcome(self, *arguments: Any) -> Any:
        self._came = time.thread_time_ns()
        outcome = super()._outcome(*arguments)
        self.said.append((time.perf_counter_ns(), outcome.preprocess_ns + outcome.infer_ns + outcome.postprocess_ns))
        return outcome


class Crowd:
    """Callers each of whom always wants something."""

    def __init__(self, batcher: Batcher, schema: Schema, asked: Exchange, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._batcher, self._schema, self._asked = batcher, schema, asked
        self._message = oip.ModelInferRequest.FromString(asked.message())
        self.answered = 0
        self.failure: asyncio.Future[None] = self._loop.create_future()
        for _ in range(count):
            self._ask()

    def _ask(self) -> None:
        self._batcher.enter(self._schema.decode(self._message), self._loop.time() + 600.0, self._ended)

    def _ended(self, result: Result | PenstockError) -> None:
        if self.failure.done():
            return
        try:
            if isinstance(result, PenstockError):
                raise result
            payload = self._schema.encode("", result.outputs)
            self.answered += 1
            if self.answered % CHECKED == 0:
                self._asked.check(self._asked.output(payload))
        except Exception as problem:
            self.failure.set_exception(problem)
            return
        # Not at once: what a network brings comes in another turn of the loop.
        self._loop.call_soon(self._ask)

    async def goes_on(self, seconds: float) -> None:
        """Waits; raises what went wrong meanwhile."""
        await asyncio.wait([self.failure], timeout=seconds)
        if self.failure.done():
            self.failure.result()


async def measured(folder: Path, asked: Exchange, seconds: float) -> Gap:
    """Runs the model under a crowd. Raises WrongAnswers, PenstockError."""
    manifest, files = manifest_of(folder)
    policy = BatchPolicy.from_manifest(manifest.batching)
    host = await Watched.start(manifest, files, threads=1, load_timeout=60.0)
    assert isinstance(host, Watched)
    batcher = Batcher(
        [host], policy, statistics=Statistics(), metrics=ReplicaMetrics(manifest.name, 1), run_timeout=60.0
    )
    serving = asyncio.ensure_future(batcher.run())
    try:
        crowd = Crowd(batcher, Schema(manifest.name, 1, manifest), asked, CROWD * policy.capacity)
        host.said, host.ours = [], []
        await crowd.goes_on(WARM)
        host.said, host.ours, before = host.said[-1:], [], crowd.answered
        began = time.perf_counter()
        await crowd.goes_on(seconds)
        took, rows = time.perf_counter() - began, crowd.answered - before
        crowd.failure.cancel()
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        await host.close()
    between = [after - before - busy for (before, _), (after, busy) in itertools.pairwise(host.said)]
    busy, waits, ours = (
        quantile(sorted(each), 0.1) / 1e6 for each in ([busy for _, busy in host.said], between, host.ours)
    )
    return Gap(rows / len(between), busy, waits, ours, rows / took)


def cases(folder: Path) -> Mapping[str, Callable[[], tuple[Path, Exchange]]]:
    """Models, made when they are wanted, and what to ask of them."""

    def minilm() -> tuple[Path, Exchange]:
        made = models.one_thread(batches.MINILM, folder / "minilm")
        return made, batches.minilm_exchange(made)

    def affine() -> tuple[Path, Exchange]:
        return models.affine(folder / "affine", "affine", batches.BATCH, steps=50), exchange.affine("affine")

    return {
        "add1": lambda: (small_models.add_one(folder / "add1"), exchange.add1()),
        "image": lambda: (models.image(folder / "image"), exchange.image()),
        "picture": lambda: (models.picture(folder / "picture"), exchange.picture()),
        "affine": affine,
        "minilm": minilm,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gaps", description=__doc__)
    parser.add_argument("--models", default="add1,image,picture,affine", help="minilm too, where build/models has it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each (default: %(default)s)")
    options = parser.parse_args(arguments)
    log.setup("bench", "gaps", level="warning", format="json")
    gc.set_threshold(50_000, 20, 50)
    print(f"{'model':10}{'rows':>6}{'busy ms':>10}{'between ms':>12}{'ours ms':>10}{'idle':>8}{'rows/s':>9}")
    with tempfile.TemporaryDirectory(prefix="penstock-gaps-") as name, asyncio.Runner(loop_factory=Loop) as runner:
        known = cases(Path(name))
        for model in options.models.split(","):
            gap = runner.run(measured(*known[model](), options.seconds))
            times = f"{gap.busy:10.3f}{gap.between:12.3f}{gap.ours:10.3f}{gap.idle:8.1%}"
            print(f"{model:10}{gap.rows:6.1f}{times}{gap.rate:9.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
