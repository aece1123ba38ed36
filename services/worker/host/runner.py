"""What the child does for its worker: loads, checks and warms up one model, then runs batches. Blocking, one thread.

Outputs that do not fit their arena are kept: the worker sends a larger one and asks again with the same id, and gets
them without a second run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from penstock.errors import Internal, InvalidManifest, PenstockError, Unsupported
from penstock.internal.v1 import engine_pb2
from penstock.tensors import DATATYPES, element_count, pack_bytes, unpack_bytes
from penstock.v1 import manifest_pb2 as pb

from ..costs import UNKNOWN
from ..engines import catalogue, requirements
from ..engines.contract import validate
from ..engines.engine import Array, DeviceLost, Engine, Means, Measured, OutOfMemory, dtype, public
from ..processors.pipeline import Pipeline
from .arena import Arena
from .frames import failure_of
from .samples import sample

ALIGNMENT = 64


class Runner:
    """One loaded model."""

    def __init__(self, manifest: pb.Manifest, engine: Engine, pipeline: Pipeline) -> None:
        self._manifest = manifest
        self._engine = engine
        self._pipeline = pipeline
        self._specs = {spec.name: spec for spec in manifest.inputs}
        self._kept: tuple[int, engine_pb2.RunResult, list[bytes | memoryview]] | None = None

    @classmethod
    def load(cls, call: engine_pb2.LoadCall) -> Runner:
        """Loads, validates and warms up; raises a PenstockError whose message is the public reason."""
        manifest = pb.Manifest.FromString(call.manifest)
        requirements.check(manifest)
        kind = catalogue.by_format(call.engine)
        means = Means(tuple(call.plan_keys), call.own_key, call.python, call.python_seconds)
        if reason := kind.probe(means):
            raise Unsupported(reason)
        files = {role: Path(path) for role, path in call.files.items()}
        pipeline = Pipeline(manifest, files)
        engine = kind.load(files, manifest, call.threads, means)
        try:
            validate(manifest, engine)
            runner = cls(manifest, engine, pipeline)
            runner._warm_up()
        except BaseException:
            engine.close()
            raise
        return runner

    def run(
        self, request_id: int, call: engine_pb2.RunCall, inputs: Arena | None, outputs: Arena | None
    ) -> engine_pb2.RunResult | int:
        """The outputs, written to their arena; or the size that the arena must have. Raises PenstockError."""
        if self._kept is None or self._kept[0] != request_id:
            self._kept = None
            self._kept = (request_id, *self._compute(call, inputs))
        _, result, parts = self._kept
        need = sum(_aligned(len(part)) for part in parts)
        if outputs is None or outputs.size < need:
            return need
        for reference, part in zip(result.outputs, parts, strict=True):
            outputs.view[reference.offset : reference.offset + len(part)] = part
        self._kept = None
        return result

    @property
    def costs(self) -> Mapping[int, float]:
        """What the engine has measured of the sizes that it runs; empty where it runs any."""
        return self._engine.costs if isinstance(self._engine, Measured) else UNKNOWN

    def close(self) -> None:
        """Frees what the engine holds beyond this process: device memory, folders, processes of its own."""
        self._engine.close()

    def check(self) -> None:
        """Runs the smallest sample; raises what the engine says of it."""
        self._try(min(1, self._manifest.batching.max_batch_size))

    def _compute(
        self, call: engine_pb2.RunCall, arena: Arena | None
    ) -> tuple[engine_pb2.RunResult, list[bytes | memoryview]]:
        began = time.perf_counter_ns()
        view = memoryview(b"") if arena is None else arena.view
        tensors = {reference.name: self._input(reference, view) for reference in call.inputs}
        if tensors.keys() != self._specs.keys():
            raise Internal("the inputs are not those of the manifest", detail=f"got {sorted(tensors)}")
        answer, failures, marks = self._answer(tensors, call.batch_size)
        result = engine_pb2.RunResult()
        parts: list[bytes | memoryview] = []
        offset = 0
        for name, array in answer.items():
            datatype = next(spec.datatype for spec in self._manifest.outputs if spec.name == name)
            part = _raw(array, datatype)
            result.outputs.add(name=name, datatype=datatype, shape=array.shape, offset=offset, size_bytes=len(part))
            parts.append(part)
            offset += _aligned(len(part))
        for row, error in failures.items():
            result.row_failures.add(row=row, failure=failure_of(error))
        result.preprocess_ns = marks[0] - began
        result.infer_ns = marks[1] - marks[0]
        result.postprocess_ns = time.perf_counter_ns() - marks[1]
        return result, parts

    def _answer(
        self, tensors: Mapping[str, Array], batch_size: int
    ) -> tuple[dict[str, Array], dict[int, PenstockError], tuple[int, int]]:
        """Outputs, failures by row, and when the engine began and ended."""
        batch = self._pipeline.pre(tensors, batch_size)
        began = time.perf_counter_ns()
        if len(batch.failures) >= max(1, batch.rows):
            return {}, batch.failures, (began, began)
        given = self._engine.run(batch.tensors)
        ended = time.perf_counter_ns()
        return self._pipeline.post(batch, given), batch.failures, (began, ended)

    def _input(self, reference: engine_pb2.TensorRef, arena: memoryview) -> Array:
        """A view of one input; BYTES become an array of bytes objects."""
        spec = self._specs.get(reference.name)
        end = reference.offset + reference.size_bytes
        if spec is None or reference.datatype != spec.datatype or end > len(arena):
            raise Internal("an input does not fit the manifest or its arena", detail=str(reference)[:500])
        shape, data = tuple(reference.shape), arena[reference.offset : end]
        if spec.datatype == "BYTES":
            items = np.empty(element_count(shape), dtype=object)
            items[:] = unpack_bytes(data, items.size, reference.name)
            return items.reshape(shape)
        if len(data) != element_count(shape) * DATATYPES[spec.datatype].size:
            raise Internal("an input's bytes do not fit its shape", detail=str(reference)[:500])
        array = np.frombuffer(data, dtype=dtype(spec.datatype)).reshape(shape)
        return array if array.flags.aligned else array.copy()

    def _try(self, size: int) -> None:
        """Runs a made-up batch; raises its first failure."""
        tensors = {spec.name: sample(spec, self._manifest, size) for spec in self._manifest.inputs}
        _, failures, _ = self._answer(tensors, size)
        for error in failures.values():
            raise error

    def _warm_up(self) -> None:
        """Runs made-up requests, so that the first real one is not the slow one, and that a model which cannot run at
        all never becomes ready."""
        most = self._manifest.batching.max_batch_size
        sizes: Sequence[int] = sorted({1, most}) if most else [0]
        if most and self._manifest.warmup.batch_sizes:
            sizes = [min(size, most) for size in self._manifest.warmup.batch_sizes if size > 0]
        for size in sizes:
            for _ in range(max(1, self._manifest.warmup.runs)):
                try:
                    self._try(size)
                except (InvalidManifest, DeviceLost):
                    raise
                except PenstockError as error:
                    rows = f"a batch of {size}" if most else "a request"
                    raise InvalidManifest(
                        f"the model fails to warm up with {rows}: {error.message}", field="warmup", detail=error.detail
                    ) from None


def _raw(array: Array, datatype: str) -> bytes | memoryview:
    if datatype == "BYTES":
        return pack_bytes(array.ravel().tolist())
    flat = np.ascontiguousarray(array)
    return flat.reshape(-1).view(np.uint8).data if flat.size else b""


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def as_penstock_error(error: Exception) -> PenstockError:
    """Any exception as one that may be reported: what is not ours is Internal, with its words in the log only."""
    if isinstance(error, PenstockError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("the engine has not enough memory for this batch", detail=public(error))
    return Internal("the engine failed on this request", detail=f"{type(error).__name__}: {error}")
