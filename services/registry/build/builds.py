"""Jobs as callers see them: asked for, looked at, followed, cancelled. Names are checked; answers are messages."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, Final

from penstock import names
from penstock.errors import InvalidArgument, NotFound, PenstockError
from penstock.kit.log import get_logger
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2

from ..blobs import BlobStore
from ..catalog import Catalog
from ..database import Database
from ..threads import Threads
from . import dag, engines, overrides
from .journal import Journal
from .metrics import BuildMetrics
from .runner import Bell, Runner
from .sandbox import Builder, Listener, opened
from .store import ENDED, BuildStore, NewBuild

MAX_PARAMETERS: Final = 64 << 10
_MOST_LINES: Final = 500

log = get_logger()


class Builds:
    """The build service's decisions."""

    def __init__(
        self,
        store: BuildStore,
        journal: Journal,
        catalog: Catalog,
        blobs: BlobStore,
        database: Database,
        threads: Threads,
        builder: Builder,
        runner: Runner,
        bell: Bell,
        *,
        interval: float = 2.0,
    ) -> None:
        self._store = store
        self._journal = journal
        self._catalog = catalog
        self._blobs = blobs
        self._database = database
        self._threads = threads
        self._builder = builder
        self._runner = runner
        self._bell = bell
        self._interval = interval
        self._metrics = BuildMetrics()
        # Describing starts a process: one at a time, whoever asks.
        self._describing = asyncio.Semaphore(1)

    async def create(
        self,
        name: str,
        version: int | str | None,
        spec: manifest_pb2.BuildSpec | None,
        *,
        request_key: str,
        creator: str,
    ) -> pb.Build:
        """Records a job; spec: None for what the manifest says. Raises InvalidArgument for what cannot be done."""
        fingerprint = _fingerprint(name, version, spec)
        if (earlier := await self._threads.run(self._store.earlier, name, request_key, fingerprint)) is not None:
            return earlier
        source = await self._catalog.get(name, version)
        spec = spec or source.manifest.build
        complete = await self._complete(spec, set(source.artifacts), source.manifest.format)
        new = NewBuild(name, source.version, complete, creator, request_key, fingerprint)
        try:
            return await self._threads.run(self._store.create, new)
        finally:
            self._runner.wake()

    async def of_published(self, version: models_pb2.ModelVersion, creator: str) -> str:
        """Asks for what the manifest of a version that was just published says; the job's id, empty for none.

        Never raises for the spec's sake: the version is there, so what is wrong with its job is the job's failure.
        """
        spec = version.manifest.build
        if not spec.steps:
            return ""
        key = f"publish-{version.name}-{version.version}"
        try:
            return (await self.create(version.name, version.version, None, request_key=key, creator=creator)).id
        except PenstockError as error:
            fingerprint = _fingerprint(version.name, version.version, None)
            new = NewBuild(version.name, version.version, spec, creator, key, fingerprint)
            refused = await self._threads.run(self._store.create, new, refused=error.message)
            self._metrics.ended(refused.state)
            return refused.id

    async def get(self, build_id: str) -> pb.Build:
        return await self._threads.run(self._store.get, build_id)

    async def list_builds(self, name: str, size: int, token: str) -> tuple[list[pb.Build], str]:
        return await self._threads.run(self._store.list_builds, name, size, token)

    async def cancel(self, build_id: str) -> pb.Build:
        try:
            build, ended = await self._threads.run(self._store.cancel, build_id)
            if ended:
                self._metrics.ended(build.state)
            return build
        finally:
            self._runner.wake()
            self._bell.ring()

    async def watch(self, build_id: str, offset: int) -> AsyncGenerator[pb.WatchBuildResponse]:
        """The job and its lines from `offset` on, then what comes, until the job has ended; raises NotFound."""
        shown: pb.Build | None = None
        while True:
            rung = self._bell.next()
            build = await self._threads.run(self._store.get, build_id)
            lines = await self._threads.run(self._journal.read, build_id, offset, _MOST_LINES)
            offset += len(lines)
            answer = pb.WatchBuildResponse(lines=lines)
            if build != shown:
                answer.build.CopyFrom(build)
                shown = build
            if lines or answer.HasField("build"):
                yield answer
            if len(lines) == _MOST_LINES:
                continue
            if build.state in ENDED:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await rung.wait()

    async def find_engine(self, wanted: pb.FindEngineRequest) -> pb.Engine | None:
        if engines.is_open(wanted):
            found = await self._threads.run(engines.completed, self._database, wanted)
            if found is None:
                return None
            wanted = found
        return await self._threads.run(self._engine, wanted)

    async def overrides(self, name: str, size: int) -> list[pb.GateOverride]:
        return await self._threads.run(overrides.listed, self._database, name, size)

    def _engine(self, wanted: pb.FindEngineRequest) -> pb.Engine | None:
        """The engine, whose files stay long enough to be fetched; a miss where one of them is gone."""
        found = self._store.find_engine(wanted)
        try:
            for artifact in (found.artifact, *found.files.values()) if found is not None else ():
                self._blobs.claim(artifact.digest)
        except NotFound:
            return None
        return found

    async def _complete(self, spec: manifest_pb2.BuildSpec, source: set[str], format: str) -> manifest_pb2.BuildSpec:
        """The spec with every id, parameter and input written out; raises InvalidArgument, Unsupported."""
        asked = dag.expand(
            [
                dag.Asked(step.step, _object(step.parameters, f"spec.steps[{index}].parameters"), step.id, step.inputs)
                for index, step in enumerate(spec.steps)
            ],
            [_object(text, f"spec.targets[{index}]") for index, text in enumerate(spec.targets)],
        )
        for role, digest in spec.files.items():
            field = f"spec.files.{role[:64]!a}"
            if not dag.ROLE.fullmatch(role):
                raise InvalidArgument(f"{field}: cannot be a role", field="spec.files")
            await self._claim(names.digest(digest, field), field, "spec.files")
        source = source | set(spec.files)
        described = await self._described(asked)
        made = manifest_pb2.BuildSpec(files=spec.files)
        for node in dag.wire(asked, described, source, onnx=format in dag.ONNX_FORMATS):
            for role, reference in node.inputs.items():
                if reference.startswith("sha256:"):
                    field = f"spec.steps[{len(made.steps)}].inputs.{role}"
                    await self._claim(reference, field, field)
            parameters = json.dumps(node.parameters, sort_keys=True)
            made.steps.add(id=node.id, step=node.step, parameters=parameters, inputs=node.inputs)
        return made

    async def _claim(self, digest: str, shown: str, field: str) -> None:
        """An artifact is here and stays until the job names it; raises NotFound."""
        try:
            await self._threads.run(self._blobs.claim, digest)
        except NotFound as error:
            raise NotFound(f"{shown}: {error.message}", field=field) from None

    async def _described(self, asked: Sequence[dag.Asked]) -> tuple[dag.Described, ...]:
        async with self._describing, opened(self._builder, Listener()) as sandbox:
            return await sandbox.describe([(one.step, one.parameters) for one in asked])


def _fingerprint(name: str, version: int | str | None, spec: manifest_pb2.BuildSpec | None) -> str:
    """Hash of what was asked for, so that a request key used for something else is noticed."""
    asked = json.dumps([name, str(version), "" if spec is None else spec.SerializeToString(deterministic=True).hex()])
    return hashlib.sha256(asked.encode()).hexdigest()


def _object(text: str, field: str) -> dict[str, Any]:
    """A JSON object from outside; raises InvalidArgument."""
    if len(text) > MAX_PARAMETERS:
        raise InvalidArgument(f"{field}: has {len(text)} characters; at most {MAX_PARAMETERS} are read", field=field)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{field}: is not JSON", field=field) from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{field}: must be a JSON object, such as {{}}", field=field)
    return found
