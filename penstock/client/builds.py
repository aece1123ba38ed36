"""The calls of the build service: have a version built, follow it, find what was made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from penstock import names
from penstock.client import observed
from penstock.client.connection import Connection
from penstock.client.payload import Version, version_text
from penstock.errors import DeadlineExceeded, NotFound, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

DEFAULT_WAIT: Final = 3600.0
"""Seconds that `wait=True` waits for a build."""
ENDED: Final = frozenset((pb.BUILD_STATE_SUCCEEDED, pb.BUILD_STATE_FAILED, pb.BUILD_STATE_CANCELLED))
_REOPEN_PAUSE: Final = 0.2

OnLine = Callable[[pb.BuildLogLine], None]


class BuildCalls:
    """What the registry's build service answers; every call may raise any class of `penstock.errors`."""

    _connection: Connection

    async def build(
        self,
        name: str,
        version: Version = None,
        *,
        spec: manifest_pb2.BuildSpec | None = None,
        wait: bool | float = False,
        on_line: OnLine | None = None,
        request_key: str = "",
        timeout: float | None = None,
    ) -> pb.Build:
        """Has a version built, and returns the job; how it ended is in its `state`, `gate` and `result_version`.

        Args:
            name, version: what to start from: a number, an alias, or None for the newest.
            spec: the steps; None for what the version's manifest says. A step `compile` whose `batch.seen` is
                "observed" is tuned for the batches that the model's ready replicas have executed so far.
            wait: until it has ended: seconds, or True for an hour.
            on_line: told of every line of its log while waiting.
            request_key: makes a repetition of this call find the same job.
            timeout: seconds of the call itself.

        Raises:
            NotFound, InvalidArgument for steps that cannot be and where nothing was observed, ResourceExhausted while
            too many wait; DeadlineExceeded when it has not ended in time, which does not end it.
        """
        if spec is not None and observed.asks(spec):
            spec = observed.filled(spec, await self._observed(names.model(name), timeout))
        request = pb.CreateBuildRequest(
            name=names.model(name), version=version_text(version), spec=spec, request_key=request_key
        )
        retries = self._connection.retries if request_key else 0
        stub = self._connection.stubs.builds.CreateBuild
        answer = await self._connection.call(stub, request, timeout=timeout, retries=retries)
        if wait is False:
            return answer.build
        return await self.ended_build(answer.build, wait=wait, on_line=on_line)

    async def _observed(self, name: str, timeout: float | None) -> dict[str, int]:
        """Sizes of the batches that a model's ready replicas have executed; raises InvalidArgument for none."""
        request = oip.ModelStatisticsRequest(name=name)
        stub = self._connection.stubs.inference.ModelStatistics
        try:
            answer = await self._connection.read_only(stub, request, timeout)
        except NotFound:
            raise observed.nothing_observed(name) from None
        return observed.histogram(name, answer.model_stats)

    async def builds(
        self, name: str = "", *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[pb.Build]:
        """Builds of a model or of all, newest first, page after page; without the reports of their steps."""
        token = ""
        while True:
            request = pb.ListBuildsRequest(name=name, page_size=page_size, page_token=token)
            page = await self._connection.read_only(self._connection.stubs.builds.ListBuilds, request, timeout)
            for build in page.builds:
                yield build
            token = page.next_page_token
            if not token:
                return

    async def get_build(self, build_id: str, *, timeout: float | None = None) -> pb.Build:
        """One build; raises NotFound."""
        request = pb.GetBuildRequest(id=build_id)
        answer = await self._connection.read_only(self._connection.stubs.builds.GetBuild, request, timeout)
        return answer.build

    async def watch_build(
        self, build_id: str, *, offset: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[pb.WatchBuildResponse]:
        """A build and its log from line `offset` on, then what comes, until it has ended."""
        request = pb.WatchBuildRequest(id=build_id, offset=offset)
        call = self._connection.stubs.builds.WatchBuild(request, timeout=timeout, metadata=self._connection.headers())
        async with aclosing(self._connection.read(call)) as answers:
            async for answer in answers:
                yield answer

    async def cancel_build(self, build_id: str, *, timeout: float | None = None) -> pb.Build:
        """Ends a build that waits or runs; fine when it has ended. Raises NotFound."""
        request = pb.CancelBuildRequest(id=build_id)
        answer = await self._connection.read_only(self._connection.stubs.builds.CancelBuild, request, timeout)
        return answer.build

    async def find_engine(
        self,
        source_digest: str,
        *,
        builder: str,
        builder_version: str,
        architecture: str,
        precision: str = "",
        profile: str = "",
        timeout: float | None = None,
    ) -> pb.Engine | None:
        """The engine that was compiled from this model for exactly this; None for a miss.

        Without a precision or a profile any will do, and the newest that runs on the architecture is given.
        """
        request = pb.FindEngineRequest(
            source_digest=names.digest(source_digest, "source_digest"),
            builder=builder,
            builder_version=builder_version,
            architecture=architecture,
            precision=precision,
            profile=profile,
        )
        answer = await self._connection.read_only(self._connection.stubs.builds.FindEngine, request, timeout)
        return answer.engine if answer.HasField("engine") else None

    async def overrides(self, name: str = "", *, timeout: float | None = None) -> list[pb.GateOverride]:
        """Who deployed what in spite of its gate, of one model or of all, newest first."""
        request = pb.ListOverridesRequest(name=names.model(name) if name else "")
        answer = await self._connection.read_only(self._connection.stubs.builds.ListOverrides, request, timeout)
        return list(answer.overrides)

    async def ended_build(
        self, build: pb.Build, *, wait: bool | float = True, on_line: OnLine | None = None
    ) -> pb.Build:
        """Follows a build to its end, over breaks of the connection too; wait and on_line as in `build`."""
        offset, seconds = 0, DEFAULT_WAIT if isinstance(wait, bool) else wait
        try:
            async with asyncio.timeout(seconds):
                while build.state not in ENDED:
                    try:
                        async with aclosing(self.watch_build(build.id, offset=offset)) as answers:
                            async for answer in answers:
                                build = answer.build if answer.HasField("build") else build
                                for line in answer.lines:
                                    offset = line.offset + 1
                                    if on_line is not None:
                                        on_line(line)
                    except Unavailable:
                        await asyncio.sleep(_REOPEN_PAUSE)
        except TimeoutError:
            text = f"build {build.id} has not ended within {seconds:g} s; it goes on"
            raise DeadlineExceeded(text) from None
        return build
