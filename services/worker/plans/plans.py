"""A plan that a version does not bring: out of the worker's cache, from the registry, or compiled here, in this order.

Replicas that need the same plan get it by one effort: one goes the way, the others wait and find it in the cache, or
fail for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from penstock import plans, signals
from penstock.errors import Internal, InvalidArgument, PenstockError
from penstock.kit.log import get_logger
from penstock.kit.metrics import counter
from penstock.v1 import builds_pb2 as pb

from ..artifacts import Artifacts
from ..engines.trt.matching import PlanMissing, Target
from ..tasks import in_thread
from .cache import PlanCache
from .compiler import Compiled, Compiler
from .wanted import Wanted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Say = Callable[[str], Awaitable[None]]
"""Told what the load waits for, in public words; empty when it waits no more."""

log = get_logger()


@dataclass(slots=True)
class _Flight:
    """A plan that somebody is getting. problem: why it could not be got, for those who waited meanwhile."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holders: int = 0
    problem: PenstockError | None = None


class Plans:
    """The plans of one worker.

    Args:
        cache: of its own.
        artifacts: where what the registry has is pulled to.
        find: asks the registry for the plan of a request.
        compiler: None where this worker does not compile; then no_compiler says why, in public words.
        key: signs what was compiled here; None where nothing is.
    """

    def __init__(
        self,
        cache: PlanCache,
        artifacts: Artifacts,
        find: Callable[[pb.FindEngineRequest], Awaitable[pb.Engine | None]],
        *,
        compiler: Compiler | None,
        key: Ed25519PrivateKey | None,
        no_compiler: str = "",
    ) -> None:
        self._cache = cache
        self._artifacts = artifacts
        self._find = find
        self._compiler = compiler
        self._key = key
        self._no_compiler = no_compiler
        self._flights: dict[tuple[str, str, Target], _Flight] = {}
        self._got = counter(signals.WORKER_PLANS)

    def held(self, source: str) -> AbstractContextManager[None]:
        """Nothing of this ONNX file leaves the cache while the context lasts."""
        return self._cache.held(source)

    async def kept(self, wanted: Wanted) -> Sequence[Path]:
        """Verified plans of the cache in these shapes, whatever their target."""
        return await in_thread(self._cache.find, wanted)

    async def get(self, model: Path, wanted: Wanted, missing: PlanMissing, devices: Sequence[int], say: Say) -> Path:
        """The plan that a load missed; hold it (`held`). model: the ONNX file.

        Raises PlanMissing where there is none to be had, or what ended the compile, each with what can be done.
        """
        target = missing.target
        async with self._alone(wanted, target, say) as flight:
            if flight.problem is not None:
                raise flight.problem
            try:
                path = await self._got_by_one(model, wanted, missing, devices, say)
                await say("")
                return path
            except PenstockError as problem:
                flight.problem = problem
                self._got.labels("failed").inc()
                raise

    @contextlib.asynccontextmanager
    async def _alone(self, wanted: Wanted, target: Target, say: Say) -> AsyncIterator[_Flight]:
        key = (wanted.source, wanted.shapes, target)
        flight = self._flights.setdefault(key, _Flight())
        flight.holders += 1
        try:
            if flight.lock.locked():
                await say(f"waits for another replica's plan for {target}")
            async with flight.lock:
                yield flight
        finally:
            flight.holders -= 1
            if not flight.holders:
                del self._flights[key]

    async def _got_by_one(
        self, model: Path, wanted: Wanted, missing: PlanMissing, devices: Sequence[int], say: Say
    ) -> Path:
        target = missing.target
        if found := await in_thread(self._cache.find, wanted, target):
            self._got.labels("cache").inc()
            return found[0]
        if await in_thread(_is_plan, model):
            raise PlanMissing(f"{missing.message}; it has no ONNX file to compile one from", target)
        path, why = await self._from_registry(wanted, target)
        if path is not None:
            self._got.labels("registry").inc()
            return path
        if self._compiler is None or self._key is None:
            own = f"this worker compiles none: {self._no_compiler}"
            raise PlanMissing(f"{missing.message}; {why}, and {own}; have a build compile it", target)
        made = await self._compiled(self._compiler, self._key, model, wanted, target, devices, say)
        self._got.labels("compiled").inc()
        return made

    # --- the registry -------------------------------------------------------------------------------------------------

    async def _from_registry(self, wanted: Wanted, target: Target) -> tuple[Path | None, str]:
        """The registry's plan, verified and in the cache; else None and why, in public words."""
        request = pb.FindEngineRequest(
            source_digest=wanted.source,
            builder=target.builder,
            builder_version=target.version,
            architecture=target.architecture,
        )
        try:
            engine = await self._find(request)
            if engine is None:
                return None, "the registry has no such plan"
            return await self._fetched(engine, wanted, target), ""
        except PenstockError as error:
            problem = error
            unfit = isinstance(error, InvalidArgument | Internal)
            why = "the registry's plan cannot be used" if unfit else "the registry does not give one now"
        log.warning("plan_not_fetched", target=str(target), problem=problem.message, detail=problem.detail)
        return None, f"{why} ({problem.message})"

    async def _fetched(self, engine: pb.Engine, wanted: Wanted, target: Target) -> Path:
        artifact = engine.artifact
        async with self._artifacts.held(artifact.digest, size=artifact.size_bytes) as pulled:

            def copy(container: BinaryIO) -> None:
                with pulled.open("rb") as file:
                    shutil.copyfileobj(file, container)

            # One that takes large batches in pieces only is made anew where that can be.
            path = await in_thread(self._cache.keep, wanted, target, copy, self._compiler is not None)
        log.info("plan_fetched", target=str(target), digest=artifact.digest, build=engine.build_id)
        return path

    # --- the compiler -------------------------------------------------------------------------------------------------

    async def _compiled(
        self,
        compiler: Compiler,
        key: Ed25519PrivateKey,
        model: Path,
        wanted: Wanted,
        target: Target,
        devices: Sequence[int],
        say: Say,
    ) -> Path:
        if compiler.busy:
            await say(f"waits for its turn to compile a plan for {target}")
        async with compiler.turn:
            await say(f"a plan for {target} is being compiled on this worker")
            log.info("plan_compiling", target=str(target), source=wanted.source)
            timing = self._cache.timing(wanted.source, target)
            try:
                async with compiler.compiled(model, wanted, target, devices, timing) as made:
                    path = await in_thread(self._sealed, made, wanted, target, key)
            except PenstockError as error:
                raise type(error)(
                    f"no plan for {target} was there and compiling one failed: {error.message}",
                    field=error.field,
                    detail=error.detail,
                ) from None
            except OSError as error:
                raise Internal("the worker cannot write its plan", detail=repr(error)) from None
        log.info("plan_compiled", target=str(target), source=wanted.source, seconds=made.seconds)
        return path

    def _sealed(self, made: Compiled, wanted: Wanted, target: Target, key: Ed25519PrivateKey) -> Path:
        """Signs what was compiled and puts it into the cache. Runs in a thread."""
        header = plans.PlanHeader(
            source=wanted.source,
            builder=target.builder,
            version=target.version,
            architecture=target.architecture,
            precision=made.precision,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            profiles=made.profiles,
        )
        with made.plan() as (file, size):
            path = self._cache.keep(wanted, target, lambda container: plans.seal(header, file, size, container, key))
        self._cache.keep_timing(wanted.source, target, made.timing())
        return path


def _is_plan(path: Path) -> bool:
    with path.open("rb") as file:
        return plans.is_plan(file.read(len(plans.MAGIC)))
