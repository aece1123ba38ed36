"""The contract of a processor: batched, pure in its inputs, and lenient to the neighbours of a bad row.

A processor before the engine makes arrays with one row per item, whatever the items are: a row that cannot be used is
left as zeros and named in `failures` with public words, and the pipeline takes it out. A processor after the engine
sees only rows that were answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Made:
    """tensors: by name, first dimension the rows; failures: row → what is wrong with its item."""

    tensors: Mapping[str, Array]
    failures: Mapping[int, str] = field(default_factory=dict)


class Before(Protocol):
    """A processor before the engine; `input` is the BYTES tensor that it takes, one item per row."""

    input: str

    def __call__(self, items: Sequence[bytes]) -> Made:
        """Arrays for these items."""
        ...


class After(Protocol):
    """A processor after the engine."""

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """What it makes of the tensors that are there; raises InvalidArgument where they do not fit."""
        ...
