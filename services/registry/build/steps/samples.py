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


def random_inputs(
    model: Any, session: Session, rows: int, seed: int, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One batch of `rows`. sizes: a symbolic dimension or input name's dimension → its size; DEFAULT_SIZE otherwise.

    The first dimension, where it is not a number, is the batch.
    """
    chance = np.random.default_rng(seed)
    tables = _tables(model)
    made = {}
    for name, (kind, shape) in session.inputs.items():
        full = [
            size if isinstance(size, int) else rows if axis == 0 else (sizes or {}).get(str(size), DEFAULT_SIZE)
            for axis, size in enumerate(shape)
        ]
        if np.dtype(kind).kind == "f":
            made[name] = chance.standard_normal(full).astype(kind)
        else:
            made[name] = chance.integers(0, tables.get(name, 2), full).astype(kind)
    return made


def measuring(path: Path | None, model: Any, session: Session, rows: int, seed: int) -> dict[str, Array]:
    """A batch to measure on: the first rows of a set of samples where there is one, else random."""
    if path is None:
        return random_inputs(model, session, rows, seed)
    return next(tensors.batches(tensors.samples(path, "samples"), rows))


def _tables(model: Any) -> dict[str, int]:
    """Input → rows of the smallest initialiser that it indexes."""
    constants = onnx_file.constants(model)
    found: dict[str, int] = {}
    source = {}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
        if node.op_type == "Gather" and node.input[0] in constants:
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            name = source.get(node.input[1], node.input[1])
            rows = constants[node.input[0]].dims[axis]
            found[name] = min(found.get(name, rows), rows)
    return found
