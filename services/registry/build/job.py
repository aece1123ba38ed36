"""One job from its first step to what it publishes: looks up, runs, keeps, concludes. The runner gives it its turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from penstock import plans
from penstock.errors import Internal, NotFound, PenstockError, Unsupported
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2

from ..blobs import BlobStore
from ..catalog import Catalog, memory_estimate
from ..threads import Threads
from . import dag, derive
from .journal import Journal
from .metrics import BuildMetrics
from .sandbox import Builder, Listener, Sandbox, opened
from .store import BuildStore, Work

MAX_REPORT: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that a job works with. changed: called when somebody who watches should look again."""

    store: BuildStore
    journal: Journal
    catalog: Catalog
    blobs: BlobStore
    threads: Threads
    builder: Builder
    keys: Path
    changed: Callable[[], None]
    metrics: BuildMetrics


class Job:
    """A job under way; cancel `run` to end it, and what its steps have made stays."""

    def __init__(self, bench: Bench, work: Work) -> None:
        self._bench = bench
        self._work = work
        self._nodes = nodes_of(work.spec)
        self._steps = list(work.steps)
        done = pb.BUILD_STATE_SUCCEEDED
        self._done = {step.id for step in work.steps if step.state == done}

    async def run(self) -> pb.GateVerdict.ValueType:
        """Runs what is left of the job, writes how it ended, and gives what its gates found; raises PenstockError where
        a step fails."""
        work, bench = self._work, self._bench
        version = await bench.catalog.get(work.name, work.number)
        published = {role: artifact.digest for role, artifact in version.artifacts.items()}
        source = {**published, **work.spec.files}
        if self._done:
            self._say(f"going on after {len(self._done)} steps that were done before")
        while todo := dag.ready(self._nodes, self._done):
            await self._step(todo[0], source)
            self._done.add(todo[0].id)
        return await self._conclude(version, published)

    # --- a step -------------------------------------------------------------------------------------------------------

    async def _step(self, node: dag.Node, source: dict[str, str]) -> None:
        bench = self._bench
        position = next(index for index, one in enumerate(self._nodes) if one.id == node.id)
        status = pb.StepStatus(id=node.id, step=node.step, state=pb.BUILD_STATE_RUNNING)
        status.start_time.GetCurrentTime()
        await self._save(position, status)
        try:
            await self._made(node, source, status)
        except PenstockError as error:
            status.state, status.reason = pb.BUILD_STATE_FAILED, error.message
            status.end_time.GetCurrentTime()
            self._say(f"failed: {error.message}", node.id)
            await self._save(position, status)
            bench.metrics.step(status)
            raise type(error)(f"step {node.id}: {error.message}", field=error.field, detail=error.detail) from None
        status.state, status.progress = pb.BUILD_STATE_SUCCEEDED, 1.0
        status.end_time.GetCurrentTime()
        self._say("found: its result was there before" if status.cached else _took(status), node.id)
        await self._save(position, status, keep=not status.cached)
        bench.metrics.step(status)

    async def _made(self, node: dag.Node, source: dict[str, str], status: pb.StepStatus) -> None:
        """Fills the status with the result, made or found."""
        bench = self._bench

        def progress(part: float) -> None:
            status.progress = part
            bench.changed()

        listener = Listener(lambda text: self._say(text, node.id), progress)
        async with opened(bench.builder, listener) as sandbox:
            (described,) = await sandbox.describe([(node.step, node.parameters)])
            optional = {role.name for role in described.inputs if not role.required}
            outputs = {step.id: {role: one.digest for role, one in step.outputs.items()} for step in self._steps}
            inputs = dag.digests(node, source, outputs, optional)
            status.key = dag.key(inputs, described)
            status.tools.update(described.tools)
            found = await bench.threads.run(self._found, status.key)
            if found is not None:
                status.cached, status.report = True, found.report
                for role, artifact in found.outputs.items():
                    status.outputs[role].CopyFrom(artifact)
                return
            await self._run(node, inputs, described, sandbox, status)

    async def _run(
        self, node: dag.Node, inputs: dict[str, str], described: dag.Described, sandbox: Sandbox, status: pb.StepStatus
    ) -> None:
        bench = self._bench
        paths = {}
        for role, digest in inputs.items():
            paths[role] = sandbox.folder / "in" / role
            await bench.threads.run(bench.blobs.copy_out, digest, paths[role])
        secrets = {name: await bench.threads.run(secret, bench.keys, name) for name in described.secrets}
        done = await sandbox.run(node.step, node.parameters, paths, secrets)
        report = json.dumps(done.report)
        if len(report) > MAX_REPORT:
            raise Internal(f"the step's report has {len(report)} bytes; at most {MAX_REPORT} are kept")
        for role, name in done.files.items():
            if role not in described.outputs:
                raise Internal(f"the step wrote {role}, which it did not say it would")
            artifact = await bench.threads.run(bench.blobs.copy_in, sandbox.work / name)
            status.outputs[role].CopyFrom(artifact)
        status.report = report

    def _found(self, key: str) -> pb.StepStatus | None:
        """The result of this key, if all its files are still here; they stay until this job names them."""
        found = self._bench.store.result(key)
        try:
            for artifact in found.outputs.values() if found is not None else ():
                self._bench.blobs.claim(artifact.digest)
        except NotFound:
            return None
        return found

    async def _save(self, position: int, status: pb.StepStatus, *, keep: bool = False) -> None:
        self._steps[position] = status
        await self._bench.threads.run(self._bench.store.save_step, self._work.id, position, status, keep=keep)
        self._bench.changed()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _conclude(self, version: models_pb2.ModelVersion, source: dict[str, str]) -> pb.GateVerdict.ValueType:
        """Publishes the model that the steps made, keeps the engines, and says what the gate found."""
        bench, work = self._bench, self._work
        gated, failed = dag.failed_checks([derive.report(step) for step in self._steps])
        outputs = {step.id: {role: one.digest for role, one in step.outputs.items()} for step in self._steps}
        written = dag.result(self._nodes, outputs)
        number = 0
        if dag.MODEL in written and written[dag.MODEL] != source.get(dag.MODEL):
            number = await self._publish(version, source, written)
        if gated and number:
            hold = bench.store.hold
            await bench.threads.run(hold, work.name, number, work.id, passed=not failed, failed_checks=failed)
        if gated:
            self._say(f"the gate failed: {'; '.join(failed)}" if failed else "the gate passed")
        verdict: pb.GateVerdict.ValueType = pb.GATE_VERDICT_UNSPECIFIED
        if gated:
            verdict = pb.GATE_VERDICT_FAILED if failed else pb.GATE_VERDICT_PASSED
        await self._keep_engines(failed)
        await bench.threads.run(
            bench.store.end,
            work.id,
            pb.BUILD_STATE_SUCCEEDED,
            result_number=number,
            gate=verdict,
            failed_checks=failed,
        )
        return verdict

    async def _publish(self, version: models_pb2.ModelVersion, source: dict[str, str], written: dict[str, str]) -> int:
        work = self._work
        sizes = [artifact.size_bytes for artifact in version.artifacts.values()]
        estimated = version.manifest.resources.memory_bytes == memory_estimate(sizes)
        described = derive.manifest(version.manifest, work.number, work.id, self._steps, estimated=estimated)
        digests = derive.digests(version.manifest.format, source, written)
        key = f"build-{work.id}"
        made = await self._bench.catalog.publish_built(described, digests, publisher=work.creator, request_key=key)
        self._say(f"published {work.name}@{made.version}")
        return made.version

    async def _keep_engines(self, failed: tuple[str, ...]) -> None:
        """An engine is found by others only if the job's gate, where there is one, passed."""
        bench, work = self._bench, self._work
        build = pb.Build(id=work.id, name=work.name, source_version=work.number)
        for step in self._steps:
            engine = derive.engine(step, build)
            if engine is None:
                continue
            if failed:
                self._say("its engine is not kept, because the gate failed", step.id)
                continue
            await bench.threads.run(bench.store.keep_engine, engine)
            self._say(f"kept the engine for {engine.architecture}, {engine.precision}", step.id)

    def _say(self, text: str, step_id: str = "") -> None:
        if self._bench.journal.add(self._work.id, text, step_id):
            self._bench.changed()


def nodes_of(spec: manifest_pb2.BuildSpec) -> tuple[dag.Node, ...]:
    """The job that a complete spec describes."""
    return tuple(
        dag.Node(step.id, step.step, json.loads(step.parameters or "{}"), dict(step.inputs)) for step in spec.steps
    )


def secret(folder: Path, name: str) -> bytes:
    """The key of this registry with that name, made when it is first asked for, its public half beside it.

    Raises Unsupported where it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        try:
            plans.new_key(folder / name)
        except ImportError:
            text = "cryptography is not installed in the registry, which keeps the key (install penstock[plans])"
            raise Unsupported(text) from None
    return (folder / name).read_bytes()


def _took(status: pb.StepStatus) -> str:
    begun, ended = Timestamp(), Timestamp()
    begun.CopyFrom(status.start_time)
    ended.CopyFrom(status.end_time)
    seconds = (ended.ToNanoseconds() - begun.ToNanoseconds()) / 1e9
    files = ", ".join(f"{role} {one.size_bytes} bytes" for role, one in sorted(status.outputs.items()))
    return f"done in {seconds:.1f} s" + (f": {files}" if files else "")
