"""Frames between a worker and its child: 4 bytes little-endian length, then a message of engine.proto (pure).

`checked_outputs` is where the worker reads what a child says about shared memory. A child runs other people's models,
so nothing in its answers is believed: no offset, size, shape, name or number of things.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message

from penstock.errors import BY_NAME, Internal, InvalidArgument, PenstockError, from_code
from penstock.internal.v1 import engine_pb2
from penstock.tensors import DATATYPES, element_count
from penstock.v1 import manifest_pb2 as pb

from ..engines.engine import DeviceLost, OutOfMemory
from ..engines.trt.matching import PlanMissing, Target

HEADER: Final = struct.Struct("<I")
# Tensors do not travel in frames; the largest are a manifest and a failure for every row of a large batch.
MAX_FRAME: Final = 16 << 20
MAX_TEXT: Final = 500
MAX_WORD: Final = 64
MAX_DETAIL: Final = 8_000
MAX_RANK: Final = 32
MAX_COSTS: Final = 1024

TROUBLES: Final[Mapping[engine_pb2.Trouble.ValueType, type[OutOfMemory | DeviceLost]]] = {
    engine_pb2.TROUBLE_OUT_OF_MEMORY: OutOfMemory,
    engine_pb2.TROUBLE_DEVICE_LOST: DeviceLost,
}
"""Errors on which a worker acts, as frames name them."""


class BrokenFrame(Exception):
    """The child sent something that no honest child sends; for the log. It is killed."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of a run. data: a view into the output arena, valid until the next run."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


def pack(message: Message) -> bytes:
    """A message as a frame; raises ValueError where it is too large."""
    body = message.SerializeToString()
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame of {len(body)} bytes")
    return HEADER.pack(len(body)) + body


class FrameBuffer:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now; raises BrokenFrame for a length over MAX_FRAME."""
        self._bytes += data
        frames: list[bytes] = []
        while len(self._bytes) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._bytes)
            if size > MAX_FRAME:
                raise BrokenFrame(f"a frame of {size} bytes")
            end = HEADER.size + size
            if len(self._bytes) < end:
                break
            frames.append(bytes(self._bytes[HEADER.size : end]))
            del self._bytes[:end]
        return frames


def parse_response(frame: bytes, expected_id: int) -> engine_pb2.HostResponse:
    """The answer to one request; raises BrokenFrame for anything else."""
    try:
        response = engine_pb2.HostResponse.FromString(frame)
    except DecodeError as error:
        raise BrokenFrame("not a HostResponse") from error
    if response.id != expected_id:
        raise BrokenFrame(f"an answer to {response.id}, asked was {expected_id}")
    if response.WhichOneof("result") is None:
        raise BrokenFrame("an answer without a result")
    return response


def checked_outputs(
    references: Sequence[engine_pb2.TensorRef],
    arena: memoryview,
    promised: Mapping[str, pb.TensorSpec],
    rows: int | None,
) -> list[OutputTensor]:
    """Views of the outputs; raises BrokenFrame unless each is a promised one and lies whole inside the arena.

    rows: what the first dimension must be; None where the model has no batch dimension. The contents of BYTES tensors
    are not walked here: whoever cuts them must keep to the view.
    """
    if len(references) > len(promised):
        raise BrokenFrame(f"{len(references)} outputs, promised are {len(promised)}")
    outputs: dict[str, OutputTensor] = {}
    for reference in references:
        spec = promised.get(reference.name)
        if spec is None or reference.name in outputs or reference.datatype != spec.datatype:
            raise BrokenFrame(f"output {reference.name[:80]!r} {reference.datatype[:20]!r} is not promised")
        shape = tuple(reference.shape)
        size = _checked_size(reference, shape)
        if rows is not None and (not shape or shape[0] != rows):
            raise BrokenFrame(f"output {reference.name!r} has shape {shape} for {rows} rows")
        if size > len(arena) or reference.offset > len(arena) - size:
            raise BrokenFrame(f"output {reference.name!r} does not lie in the arena")
        view = arena[reference.offset : reference.offset + size]
        outputs[reference.name] = OutputTensor(reference.name, reference.datatype, shape, view)
    return list(outputs.values())


def _checked_size(reference: engine_pb2.TensorRef, shape: tuple[int, ...]) -> int:
    """The tensor's bytes, if they fit its shape."""
    if len(shape) > MAX_RANK:
        raise BrokenFrame(f"output {reference.name!r} has {len(shape)} dimensions")
    try:
        count = element_count(shape)
    except InvalidArgument as error:
        raise BrokenFrame(f"output {reference.name!r}: {error.message}") from None
    width = DATATYPES[reference.datatype].size
    size = int(reference.size_bytes)
    if (size != count * width) if width else (size < count * 4):
        raise BrokenFrame(f"output {reference.name!r} has {size} bytes for shape {shape}")
    return size


def checked_row_failures(failures: Sequence[engine_pb2.RowFailure], rows: int) -> dict[int, PenstockError]:
    """Failures by row; raises BrokenFrame for a row that the batch does not have."""
    checked: dict[int, PenstockError] = {}
    for entry in failures:
        if not 0 <= entry.row < rows or entry.row in checked:
            raise BrokenFrame(f"a failure of row {entry.row} of {rows}")
        checked[entry.row] = error_of(entry.failure)
    return checked


def checked_costs(costs: Mapping[int, float]) -> dict[int, float]:
    """Seconds of a batch by its size; raises BrokenFrame for what no engine has measured."""
    if len(costs) > MAX_COSTS or not all(rows > 0 and 0 < seconds < math.inf for rows, seconds in costs.items()):
        raise BrokenFrame("sizes that no engine has")
    return dict(sorted(costs.items()))


def error_of(failure: engine_pb2.Failure) -> PenstockError:
    """The error that a child reports, its text cut and on one line. An unknown code is Internal without its text."""
    detail = failure.detail[:MAX_DETAIL]
    if failure.code not in BY_NAME:
        return Internal("the engine failed", detail=f"{failure.code[:40]!r}: {failure.message[:MAX_TEXT]!r} {detail}")
    text = "".join(letter if letter.isprintable() else " " for letter in failure.message[:MAX_TEXT])
    if failure.HasField("missing_plan"):
        return PlanMissing(text, _target(failure.missing_plan), detail=detail)
    if failure.trouble in TROUBLES:
        return TROUBLES[failure.trouble](text, detail=detail)
    return from_code(failure.code, text, detail=detail)


def failure_of(error: PenstockError) -> engine_pb2.Failure:
    """An error as the child reports it."""
    told = engine_pb2.Failure(code=error.code.name, message=error.message[:MAX_TEXT], detail=error.detail[:MAX_DETAIL])
    if isinstance(error, PlanMissing):
        target = error.target
        told.missing_plan.CopyFrom(
            engine_pb2.PlanTarget(builder=target.builder, version=target.version, architecture=target.architecture)
        )
    told.trouble = next((trouble for trouble, kind in TROUBLES.items() if isinstance(error, kind)), told.trouble)
    return told


def _target(told: engine_pb2.PlanTarget) -> Target:
    """What a child says that it needs a plan for, in words that may be shown."""
    words = (told.builder, told.version, told.architecture)
    return Target(*("".join(letter for letter in word[:MAX_WORD] if letter.isprintable()) for word in words))
