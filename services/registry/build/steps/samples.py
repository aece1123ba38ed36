"""Random inputs that a model can take, and what its reports are measured on.

Integers that index a table (an input of Gather over an initialiser) stay inside it; other integers are 0 or 1, which
masks and segment numbers are. Floats are normal. The same seed gives the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import onnx_file, tensors
from .session import Session

Array = NDArray[Any]

DEFAULT_SIZE = 16
MASK = "attention_mask"
"""The input that hides padding, in models of text."""


def random_inputs(
    model: Any,
    session: Session,
    rows: int,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    like: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """One batch of `rows`. sizes: symbolic dimension → its size; DEFAULT_SIZE otherwise. like: real samples, of which
    random ones are mixed: what no caller could send proves nothing.

    The first dimension, where it is not a number, is the batch.
    """
    chance = np.random.default_rng(seed)
    tables = _tables(model)
    pairs = chance.integers(0, min(map(len, like.values())), (2, rows)) if like else np.zeros((2, rows), np.int64)
    made = {}
    for name, (kind, shape) in session.inputs.items():
        full = [
            size if isinstance(size, int) else rows if axis == 0 else (sizes or {}).get(str(size), DEFAULT_SIZE)
            for axis, size in enumerate(shape)
        ]
        if like is not None and name in like:
            made[name] = _mixed(like[name], pairs, kind, chance)
        elif np.dtype(kind).kind == "f":
            made[name] = chance.standard_normal(full).astype(kind)
        else:
            made[name] = chance.integers(0, tables.get(name, 2), full).astype(kind)
    return made


def measuring(path: Path | None, model: Any, session: Session, rows: int, seed: int) -> dict[str, Array]:
    """A batch to measure on: the first rows of a set of samples where there is one, else random."""
    if path is None:
        return random_inputs(model, session, rows, seed)
    return next(tensors.batches(tensors.samples(path, "samples"), rows))


def visible(outputs: Mapping[str, Array], feeds: Mapping[str, Array], mask: str) -> dict[str, Array]:
    """The outputs without positions that the mask hides, where there is such an input: what stands there means nothing.

    An output of shape [batch, positions, ...] becomes one of the positions whose mask is not 0.
    """
    shown = feeds.get(mask)
    if shown is None or shown.ndim != 2 or not shown.any():
        return dict(outputs)
    return {
        name: array[shown != 0] if array.ndim > 2 and array.shape[:2] == shown.shape else array
        for name, array in outputs.items()
    }


def _mixed(real: Array, pairs: Array, kind: str, chance: np.random.Generator) -> Array:
    """Rows between two real ones each; of whole numbers, each from one of the two, and masks from the first alone."""
    first, second = real[pairs[0]], real[pairs[1]]
    if np.dtype(kind).kind == "f":
        part = chance.uniform(0, 1, (len(first), *[1] * (real.ndim - 1)))
        return np.asarray(part * first + (1 - part) * second, kind)
    if len(np.unique(real)) <= 2:
        return np.asarray(first, kind)
    return np.asarray(np.where(chance.random(first.shape) < 0.5, first, second), kind)


def _tables(model: Any) -> dict[str, int]:
    """Input → rows of the smallest initialiser that it indexes."""
    constants = onnx_file.constants(model)
    found: dict[str, int] = {}
    source: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
        if node.op_type == "Gather" and node.input[0] in constants:
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            name = source.get(node.input[1], node.input[1])
            rows = constants[node.input[0]].dims[axis]
            found[name] = min(found.get(name, rows), rows)
    return found
