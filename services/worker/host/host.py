"""EngineHost: a loaded model in a child process of its own, as the worker sees it.

Promises: the event loop never waits for an engine; a child that crashes, hangs, is killed or lies ends this host and
nothing else; whatever ends a start, no process, descriptor or memory stays behind. The worker imports no inference
library. One run at a time: the caller is the replica's batcher. Arenas have two sides: while a run has one of them, the
next batch is put together on the other, and once it has begun, what the run before gave can still be read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.errors import DeadlineExceeded, Internal, PenstockError, Unavailable
from penstock.internal.v1 import engine_pb2
from penstock.v1 import manifest_pb2 as pb

from ..costs import UNKNOWN, Costs
from ..engines.engine import NOTHING, DeviceLost, Means
from . import arena as arenas
from .frames import (
    BrokenFrame,
    OutputTensor,
    checked_costs,
    checked_outputs,
    checked_row_failures,
    error_of,
    pack,
    parse_response,
)
from .link import Link, LinkClosed
from .memory import resident_bytes
from .process import Process, end, spawn

MAX_ARENA: Final = 4 << 30
STOPPED: Final = "the engine stopped while it ran this request"
_NO_SIDE: Final = -1


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What one run gave.

    outputs: in the manifest's order, one row for every row of the batch; their views are valid until the next run on
    the same side.
    row_failures: rows that could not be used, and why; those rows of the outputs mean nothing. When every row failed
    there are no outputs.
    """

    outputs: list[OutputTensor]
    row_failures: dict[int, PenstockError]
    preprocess_ns: int
    infer_ns: int
    postprocess_ns: int


class EngineHost:
    """Made by `start`."""

    def __init__(self, manifest: pb.Manifest, process: Process, link: Link) -> None:
        self._process = process
        self._link = link
        self._promised = {spec.name: spec for spec in manifest.outputs}
        self._batched = manifest.batching.max_batch_size > 0
        self._next_id = 1
        # Answers that the child owes, the oldest first, each with the side that its call reads; the last one may be
        # that of a run under way, the others are of calls whose callers have left.
        self._owed: dict[int, int] = {}
        self._running: engine_pb2.HostRequest | None = None
        self._loaded_bytes = 0
        self.costs: Costs = UNKNOWN
        """What the engine has measured of the sizes that it runs; empty where it runs any."""
        self._inputs: list[arenas.Arena | None] = [None, None]
        self._outputs: list[arenas.Arena | None] = [None, None]

    @classmethod
    async def start(
        cls,
        manifest: pb.Manifest,
        files: Mapping[str, Path],
        *,
        threads: int,
        load_timeout: float,
        devices: Sequence[int | str] = (),
        processors: frozenset[int] = frozenset(),
        means: Means = NOTHING,
    ) -> EngineHost:
        """Starts a child that loads, checks and warms up the model.

        files: by role, inside the worker's cache. threads: of the engine; 0 means one. load_timeout: seconds.
        devices: indices of the GPUs that the child may see, or names of MIG slices; empty leaves it those that the
        worker sees. processors: those that the child may use; empty for all.
        means: what the operator lends to engines.
        Raises the PenstockError that says why the model cannot be served: InvalidManifest where model and manifest
        disagree, Unsupported where this worker lacks an engine, DeadlineExceeded, Unavailable when the child died.
        """
        count = manifest.resources.threads or threads or 1
        process, end_of_pair = spawn(count, devices, processors)
        host = cls(manifest, process, Link(end_of_pair))
        try:
            async with asyncio.timeout(load_timeout):
                await host._load(manifest, files, count, means)
        except TimeoutError:
            await host.close(0)
            raise DeadlineExceeded(f"the model did not load within {load_timeout:g} s") from None
        except BaseException:
            await host.close(0)
            raise
        return host

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the child now; what it was after load and warm-up once the child is gone."""
        with suppress(OSError):
            if self.alive:
                return resident_bytes(self.pid)
        return self._loaded_bytes

    @property
    def alive(self) -> bool:
        """False once the child is gone or was given up."""
        return self._process.alive and not self._link.closed

    def staging(self, size: int, side: int = 0) -> memoryview:
        """`size` bytes of a side's input arena, to be filled before a run on it begins. What they hold means nothing if
        there were fewer before.
        """
        arena = self._inputs[side]
        # A child may still be reading for a run that was cancelled: what it reads is not written to.
        if arena is None or arena.size < size or side in self._owed.values():
            arena = self._new_arena(self._inputs, side, size)
        return arena.view[:size]

    async def begin(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int = 0) -> None:
        """Has the child run what lies in a side's staging arena; `finish` gives what comes of it.

        batch_size: rows, 0 where the model has no batch dimension. Waits only for runs that were cancelled before.
        """
        call = engine_pb2.RunCall(batch_size=batch_size, inputs=inputs, side=side)
        try:
            await self._start(engine_pb2.HostRequest(id=self._new_id(), run=call), side)
        except BrokenFrame as error:
            raise self._broken(error) from None

    async def finish(self) -> RunOutcome:
        """What the run gave that was begun.

        Raises what the engine said of the whole batch (DeviceLost, and then the child is ended), or Unavailable when
        the child is gone. May be cancelled: the child finishes by itself, and the next run waits for that first.
        """
        request = self._running
        if request is None:
            raise RuntimeError("nothing was begun")
        try:
            return self._outcome(await self._answered(request), request.run)
        except BrokenFrame as error:
            raise self._broken(error) from None
        finally:
            self._running = None

    async def run(self, batch_size: int, inputs: Sequence[engine_pb2.TensorRef], side: int = 0) -> RunOutcome:
        """Begins and finishes."""
        await self.begin(batch_size, inputs, side)
        return await self.finish()

    async def check(self) -> None:
        """Has the child run a sample. Raises what the engine said of it, or Unavailable when the child is gone."""
        try:
            response = await self._ask(engine_pb2.HostRequest(id=self._new_id(), check=engine_pb2.CheckCall()))
            if response.WhichOneof("result") != "check":
                raise BrokenFrame("not the answer to a check")
        except BrokenFrame as error:
            raise self._broken(error) from None

    async def died(self) -> None:
        """Waits until the child is gone, for whatever reason."""
        await self._process.wait()

    async def close(self, timeout: float = 5.0) -> None:
        """Lets the child finish what it runs for that many seconds, then kills it. May be called again."""
        self._link.half_close()
        try:
            await end(self._process, timeout)
        finally:
            self._link.close()
            for arena in (*self._inputs, *self._outputs):
                self._free(arena)
            self._inputs, self._outputs = [None, None], [None, None]

    async def _load(self, manifest: pb.Manifest, files: Mapping[str, Path], threads: int, means: Means) -> None:
        self._new_arena(self._outputs, 0, 1)
        call = engine_pb2.LoadCall(
            engine=manifest.format,
            manifest=manifest.SerializeToString(deterministic=True),
            files={role: os.fspath(path) for role, path in files.items()},
            threads=threads,
            plan_keys=means.plan_keys,
            own_key=means.own_key,
            python=means.python,
            python_seconds=means.python_seconds,
        )
        try:
            response = await self._ask(engine_pb2.HostRequest(id=self._new_id(), load=call))
            if response.WhichOneof("result") != "load":
                raise BrokenFrame("not the answer to a load")
            self.costs = checked_costs(response.load.costs)
        except BrokenFrame as error:
            raise Internal("the engine failed while it loaded the model", detail=f"broken frame: {error}") from None
        except DeviceLost:
            raise
        except Unavailable as error:
            raise Unavailable("the engine stopped while it loaded the model", detail=error.detail) from None
        self._loaded_bytes = response.load.memory_bytes

    async def _ask(self, request: engine_pb2.HostRequest) -> engine_pb2.HostResponse:
        """The child's answer; raises its failure."""
        await self._start(request, _NO_SIDE)
        try:
            return await self._answered(request)
        finally:
            self._running = None

    async def _start(self, request: engine_pb2.HostRequest, side: int) -> None:
        """Sends a call, once the child owes nothing of before. side: what it reads."""
        if self._running is not None:
            raise RuntimeError("one run at a time")
        self._running = request
        try:
            while self._owed:
                await self._answer(next(iter(self._owed)))
        except BaseException:
            self._running = None
            raise
        self._send(request, side)

    def _send(self, request: engine_pb2.HostRequest, side: int) -> None:
        self._link.send(pack(request))
        self._owed[request.id] = side

    async def _answered(self, request: engine_pb2.HostRequest) -> engine_pb2.HostResponse:
        """The child's answer to what was sent, with an output arena that is large enough; raises its failure."""
        while True:
            response = await self._answer(request.id)
            kind = response.WhichOneof("result")
            if kind == "failure":
                failure = error_of(response.failure)
                if isinstance(failure, DeviceLost):
                    self._give_up()
                raise failure
            if kind != "need_bytes":
                return response
            side = request.run.side
            arena = self._outputs[side]
            have = arena.size if arena is not None else 0
            if not have < response.need_bytes <= MAX_ARENA:
                raise BrokenFrame(f"asks for an arena of {response.need_bytes} bytes, has {have}")
            self._new_arena(self._outputs, side, response.need_bytes)
            self._send(request, side)

    async def _answer(self, request_id: int) -> engine_pb2.HostResponse:
        """The next answer, which must be to this request. It stays owed if the caller leaves."""
        try:
            frame = await self._link.receive()
        except LinkClosed as closed:
            self._give_up()
            raise Unavailable(STOPPED, detail=repr(closed.__cause__ or "the link to the child closed")) from None
        del self._owed[request_id]
        return parse_response(frame, request_id)

    def _outcome(self, response: engine_pb2.HostResponse, call: engine_pb2.RunCall) -> RunOutcome:
        if response.WhichOneof("result") != "run":
            raise BrokenFrame("not the answer to a run")
        result, arena = response.run, self._outputs[call.side]
        rows = call.batch_size if self._batched else 1
        failures = checked_row_failures(result.row_failures, rows)
        view = arena.view if arena is not None else memoryview(b"")
        outputs = checked_outputs(result.outputs, view, self._promised, rows if self._batched else None)
        if len(outputs) < len(self._promised) and len(failures) < rows:
            raise BrokenFrame("an output is missing")
        return RunOutcome(outputs, failures, result.preprocess_ns, result.infer_ns, result.postprocess_ns)

    def _new_arena(self, sides: list[arenas.Arena | None], side: int, size: int) -> arenas.Arena:
        """A larger arena instead of the one on that side, announced to the child. Views of the old one stay readable.
        sides: of inputs or of outputs."""
        outputs = sides is self._outputs
        arena, descriptor = arenas.create(size, writable=not outputs)
        call = engine_pb2.ArenaCall(size_bytes=arena.size, outputs=outputs, side=side)
        self._link.send(pack(engine_pb2.HostRequest(id=self._new_id(), arena=call)), [descriptor])
        old, sides[side] = sides[side], arena
        self._free(old)
        return arena

    def _free(self, arena: arenas.Arena | None) -> None:
        if arena is not None:
            arena.close()

    def _give_up(self) -> None:
        """The child is gone or not to be trusted: nothing more is asked of it."""
        self._link.close()
        self._process.kill()

    def _broken(self, problem: BrokenFrame) -> Unavailable:
        """Gives the child up; what its caller is told."""
        self._give_up()
        return Unavailable(STOPPED, detail=f"broken frame: {problem}")

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id
