"""The contract that every engine keeps, and the words that it is written in.

An engine is used by one thread, blocks while it runs, and speaks numpy: little-endian, row-major arrays whose dtype
follows from the datatype (`dtype`). numpy has no bfloat16, so BF16 travels as uint16 bit patterns; BYTES travels as an
object array of `bytes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from penstock.errors import Internal, ResourceExhausted, Unavailable
from penstock.tensors import DATATYPES
from penstock.untrusted.words import public as public
from penstock.v1 import manifest_pb2 as pb

Array = npt.NDArray[Any]


class OutOfMemory(ResourceExhausted):
    """The batch needs more memory than is free, of the machine or of the device. The engine is as well as before: the
    worker tries the batch again in two halves."""


class DeviceLost(Unavailable):
    """The engine's device, or what this process has of it, is broken for good: CUDA's sticky errors, an Xid. Nothing
    that the process would answer from now on is to be believed; the worker ends it and starts another."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the engine sees it, batch dimension included; -1 is a dimension that takes any size, and None as
    shape a tensor of which the model does not say even how many dimensions it has."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        shape = "of any shape" if self.shape is None else str(list(self.shape))
        return f"{self.name} {self.datatype} {shape}"


class Engine(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """What the model takes, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """What the model gives, by name."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that the manifest asks of the engine (contract.promised), by name; blocks.

        Tensors that the model does not take may be among `inputs`; they are left aside. The arrays may be views of
        memory that the next run writes to.
        Raises InvalidArgument when the model refuses the inputs, OutOfMemory (or MemoryError) when they are too many,
        DeviceLost when nothing can run in this process any more, Internal when it breaks in another way.
        """
        ...

    def close(self) -> None:
        """Frees what the model holds; the engine is not used again."""
        ...


@runtime_checkable
class Measured(Protocol):
    """An engine that runs a few sizes of batch only, and has measured them."""

    @property
    def costs(self) -> Mapping[int, float]:
        """Seconds of a batch by its size in rows: any other size is padded up to one of these. Empty where that does
        not hold for what was loaded."""
        ...


@dataclass(frozen=True, slots=True)
class Means:
    """What the operator of this worker lends to engines; nothing, unless it was configured.

    plan_keys: public keys of builders whose compiled plans may run here, 32 bytes each (penstock/plans.py).
    own_key: the worker's own public key, for what it compiled itself; empty where it compiles nothing.
    python: the interpreter that may run models which are Python code; empty for none. python_seconds: how long it may
    take for a batch.
    """

    plan_keys: tuple[bytes, ...] = ()
    own_key: bytes = b""
    python: str = ""
    python_seconds: float = 30.0


NOTHING: Final = Means()

# files by role, the manifest, number of threads, means -> the loaded model. Raises PenstockError with a public reason;
# DeviceLost as it is, so that the device is blamed and not the model.
Factory = Callable[[Mapping[str, Path], pb.Manifest, int, Means], Engine]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A row of the catalogue. `probe` gives None where the engine can run with these means, else the public reason why
    it cannot."""

    name: str
    formats: tuple[str, ...]
    probe: Callable[[Means], str | None]
    load: Factory


def dtype(datatype: str) -> np.dtype[Any]:
    """The numpy dtype that carries a datatype between the pipeline and an engine."""
    if datatype == "BF16":
        return np.dtype("<u2")
    return np.dtype(DATATYPES[datatype].numpy)


def open_model(path: Path) -> BinaryIO:
    """The model's file for reading; a link in its place is refused, so that the cache cannot be led elsewhere."""
    try:
        return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise Internal("the model file cannot be opened", detail=str(error)) from None
