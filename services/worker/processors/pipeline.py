"""A manifest's processors around its engine: raw tensors in, what the engine takes; what it gave, answers out.

A bad row fails alone: it is taken out before the engine and put back after it as zeros (empty for BYTES), so that row i
of every output is always the answer to row i of the batch. Where the model has no batch dimension there is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.errors import Internal, InvalidArgument, InvalidManifest, PenstockError
from penstock.v1 import manifest_pb2 as pb

from ..engines.contract import promised
from ..engines.engine import dtype
from .pool import PoolStep
from .processor import After, Array, Before
from .top_k import TopKStep


@dataclass(frozen=True, slots=True)
class Batch:
    """Between the two halves: tensors without the failed rows, and which rows failed why."""

    tensors: dict[str, Array]
    rows: int
    failures: dict[int, PenstockError]


class Pipeline:
    """Built from a manifest and its files; raises InvalidManifest where a processor's file is no good."""

    def __init__(self, manifest: pb.Manifest, files: Mapping[str, Path]) -> None:
        self._batched = manifest.batching.max_batch_size > 0
        self._inputs = [spec.name for spec in manifest.inputs]
        self._outputs = {spec.name: spec for spec in manifest.outputs}
        self._before = [_before(step, files) for step in manifest.preprocess]
        self._after = [_after(step, files) for step in manifest.postprocess]
        fed = promised(manifest).fed.values()
        self._texts = [info.name for info in fed if info.datatype == "BYTES"]

    def pre(self, tensors: Mapping[str, Array], batch_size: int) -> Batch:
        """What is fed to the engine, for the rows that can be used.

        `tensors` have the batch as first dimension, or none at all with batch_size 0. BYTES tensors are object arrays.
        """
        rows = batch_size if self._batched else 1
        there = dict(tensors)
        failures: dict[int, PenstockError] = {}
        for step in self._before:
            made = step(self._items(there.pop(step.input), rows, step.input))
            for row, why in made.failures.items():
                failures.setdefault(row, self._failure(step.input, why))
            there.update({name: value if self._batched else value[0] for name, value in made.tensors.items()})
        for name in self._texts:
            for row, item in enumerate(there[name] if self._batched else [there[name]]):
                if not _is_text(item):
                    failures.setdefault(row, self._failure(name, "not UTF-8 text, and the model takes text"))
        if failures and self._batched:
            kept = [row for row in range(rows) if row not in failures]
            there = {name: value[kept] for name, value in there.items()}
        return Batch(there, rows, failures)

    def post(self, batch: Batch, answers: Mapping[str, Array]) -> dict[str, Array]:
        """The manifest's outputs, a row for every row of the batch; Internal where the model breaks its word."""
        answered = batch.rows - len(batch.failures)
        tensors = {**batch.tensors, **answers}
        if self._batched:
            for name, value in answers.items():
                if value.ndim == 0 or value.shape[0] != answered:
                    raise Internal(f"the model gave {name!r} with shape {list(value.shape)} for a batch of {answered}")
        for step in self._after:
            if self._batched:
                tensors.update(step(tensors))
            else:
                made = step({name: value[None] for name, value in tensors.items()})
                tensors.update({name: value[0] for name, value in made.items()})
        outputs = {}
        for name, spec in self._outputs.items():
            value = tensors[name]
            if value.dtype != dtype(spec.datatype):
                raise Internal(f"the model gave {name!r} as {value.dtype}; it is {spec.datatype} in the manifest")
            outputs[name] = _put_back(value, batch) if self._batched and batch.failures else value
        return outputs

    def _items(self, tensor: Array, rows: int, name: str) -> list[bytes]:
        """One item per row, whether the caller gave [rows] or [rows, 1]."""
        if tensor.size != rows:
            raise InvalidArgument(f"{name}: {tensor.size} items for {rows} rows; give one per row", field=name)
        items: list[bytes] = tensor.ravel().tolist()
        return items

    def _failure(self, name: str, why: str) -> InvalidArgument:
        """Without the item's number: the row of the batch means nothing to a caller, who counts his own items."""
        field = f"inputs[{self._inputs.index(name)}]"
        return InvalidArgument(f"{field} ({name}): {why}", field=field)


def _put_back(value: Array, batch: Batch) -> Array:
    full = np.zeros((batch.rows, *value.shape[1:]), dtype=value.dtype)
    if value.dtype == object:
        full.fill(b"")
    full[[row for row in range(batch.rows) if row not in batch.failures]] = value
    return full


def _is_text(items: object) -> bool:
    try:
        for item in np.asarray(items, dtype=object).ravel().tolist():
            item.decode()
    except UnicodeDecodeError:
        return False
    return True


def _before(step: pb.Processor, files: Mapping[str, Path]) -> Before:
    kind = step.WhichOneof("kind")
    if kind == "image":
        from .image import ImageStep

        return ImageStep(step.image)
    if kind == "text":
        from .text import TextStep

        return TextStep(step.text, _file(files, step.text.tokenizer, "text.tokenizer"))
    raise InvalidManifest(f"preprocess: {kind or 'nothing'} does not go before the engine", field="preprocess")


def _after(step: pb.Processor, files: Mapping[str, Path]) -> After:
    kind = step.WhichOneof("kind")
    if kind == "top_k":
        return TopKStep(step.top_k, _file(files, step.top_k.labels, "top_k.labels") if step.top_k.labels else None)
    if kind == "pool":
        return PoolStep(step.pool)
    raise InvalidManifest(f"postprocess: {kind or 'nothing'} does not go after the engine", field="postprocess")


def _file(files: Mapping[str, Path], role: str, field: str) -> Path:
    if role not in files:
        raise InvalidManifest(f"{field}: the manifest has no file of the role {role!r}", field=field)
    return files[role]
