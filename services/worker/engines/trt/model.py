"""A loaded plan as an engine: rows are cut into buckets, and the copies of one overlap the work of another.

Two slots take turns. All that is asked of a batch is put on their streams at once: a slot's own copies and runs keep
their order, and while one computes, the other copies. Inputs and outputs of the whole batch lie in pinned memory, so
nothing waits on this side before the last row is there. Which requests are in the batch is still open while the one
before it runs: that is the batcher's, whose staging lies in memory that it shares with this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.v1 import manifest_pb2 as pb

from ..contract import promised
from ..engine import Array, OutOfMemory, TensorInfo, dtype
from . import buckets
from .device import Device, forget_frames, quietly
from .slot import Slot, context_of, set_shapes
from .tensors import Layout, Shape, fits, layout, size_of

_MEASURED: Final = 3
_FAILED: Final = "the model failed on these inputs"


class TensorRTEngine:
    """Made by `built`. See Engine; outputs are views that are valid until the next run."""

    def __init__(
        self, stack: ExitStack, device: Device, slots: Sequence[Slot], plan: Layout, most: int, wanted: Sequence[str]
    ) -> None:
        self._stack, self._device, self._slots, self._layout = stack, device, slots, plan
        self.inputs, self.outputs = plan.inputs, plan.outputs
        self._wanted = [name for name in wanted if name in plan.outputs]
        self._most = most
        self.milliseconds: dict[int, float] = {}
        """What a batch of each bucket takes, as measured at load; empty where shapes are not fixed."""
        self._host: dict[str, Array] = {}

    @property
    def costs(self) -> dict[int, float]:
        """See Measured."""
        return {rows: milliseconds / 1e3 for rows, milliseconds in self.milliseconds.items()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Engine.run."""
        fed = {name: inputs[name] for name in self.inputs}
        rows = self._rows(fed)
        try:
            return self._run(fed, rows)
        except Exception as error:
            for slot in self._slots:  # what was begun still reads and writes the buffers
                quietly(slot.stream.synchronize)
            raise self._device.translated(error, _FAILED) from None

    def close(self) -> None:
        """See Engine.close."""
        self._host.clear()
        self._stack.close()

    def make_ready(self, sizes: Mapping[str, int]) -> None:
        """Pinned memory, contexts, graphs, and how long each bucket takes. sizes: bytes of a full batch's tensors."""
        self._host = {name: self._device.pinned(size) for name, size in sizes.items() if self._is_used(name)}
        if not self._layout.fixed:
            for slot in self._slots:
                for profile in range(len(self._layout.profiles)):
                    slot.prepare(profile, profile, None)
            return
        ranges = [self._layout.rows(profile) for profile in range(len(self._layout.profiles))]
        for bucket in buckets.buckets(ranges, self._most):
            shapes = self._layout.shapes(bucket.profile, bucket.rows)
            for slot in self._slots:
                slot.prepare(bucket.rows, bucket.profile, shapes)
            self.milliseconds[bucket.rows] = self._measured(bucket.rows)

    def _is_used(self, name: str) -> bool:
        return name in self.inputs or name in self._wanted

    def _measured(self, rows: int) -> float:
        slot, times = self._slots[0], []
        for _ in range(_MEASURED):
            began, ended = self._device.event(), self._device.event()
            began.record(slot.stream)
            slot.enqueue(slot.units[rows])
            ended.record(slot.stream)
            ended.synchronize()
            times.append(float(ended.time_since(began)))
        return max(min(times), 1e-6)

    def _rows(self, fed: Mapping[str, Array]) -> int:
        """Rows of the batch; raises InvalidArgument for inputs that the plan cannot take."""
        for name, array in fed.items():
            if not fits(self.inputs[name], array):
                raise InvalidArgument(
                    f"the model refuses the inputs: {name!r} has shape {list(array.shape)}, not {self.inputs[name]}"
                )
        counts = {array.shape[0] for array in fed.values()} if self._layout.batched else {1}
        if len(counts) != 1 or not 0 < max(counts) <= self._most:
            raise InvalidArgument(
                f"the model refuses the inputs: they have {sorted(counts)} rows; it takes 1 to {self._most}, the same "
                "in all of them"
            )
        return counts.pop()

    def _run(self, fed: Mapping[str, Array], rows: int) -> dict[str, Array]:
        shapes: dict[str, Shape] = {}
        done = 0
        for turn, size in enumerate(self._pieces(rows)):
            count = min(size, rows - done)
            self._begin(self._slots[turn % len(self._slots)], fed, done, count, size, shapes)
            done += count
        for slot in self._slots:
            slot.stream.synchronize()
        given = {}
        for name in self._wanted:
            info, shape = self.outputs[name], shapes[name]
            whole = (rows, *shape[1:]) if self._layout.batched else shape
            given[name] = self._host[name][: size_of(info, whole)].view(dtype(info.datatype)).reshape(whole)
        return given

    def _pieces(self, rows: int) -> list[int]:
        if self.milliseconds:
            return buckets.split(rows, self.milliseconds)
        most = max(self._layout.rows(profile)[2] for profile in range(len(self._layout.profiles)))
        return [min(most, rows - start) for start in range(0, rows, most)]

    def _begin(
        self, slot: Slot, fed: Mapping[str, Array], start: int, count: int, size: int, shapes: dict[str, Shape]
    ) -> None:
        """Puts `count` rows on a slot's stream: there, computed as a batch of `size`, and back."""
        for name, array in fed.items():
            piece = array[start : start + count] if self._layout.batched else array
            area = self._area(self.inputs[name], piece.shape, start)
            np.copyto(area.view(dtype(self.inputs[name].datatype)).reshape(piece.shape), piece)
            self._device.to_device(slot.addresses[name], area, slot.stream)
        unit = slot.units[size] if self.milliseconds else self._reshaped(slot, fed, count)
        slot.enqueue(unit)
        for name in self._wanted:
            shape = shapes.setdefault(name, tuple(unit.context.get_tensor_shape(name)))
            piece_shape = (count, *shape[1:]) if self._layout.batched else shape
            self._device.to_host(self._area(self.outputs[name], piece_shape, start), slot.addresses[name], slot.stream)

    def _area(self, info: TensorInfo, shape: Shape, start: int) -> Array:
        """The pinned bytes of some rows of a tensor."""
        size = size_of(info, shape)
        offset = start * (size // shape[0]) if self._layout.batched else 0
        return self._host[info.name][offset : offset + size]

    def _reshaped(self, slot: Slot, fed: Mapping[str, Array], count: int) -> Any:
        """The unit of the profile that takes these shapes, with them set."""
        shapes = {
            name: (count, *array.shape[1:]) if self._layout.batched else array.shape for name, array in fed.items()
        }
        profile = self._layout.profile_of(shapes)
        if profile is None:
            told = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
            raise InvalidArgument(f"the model refuses the inputs: no profile of the plan takes {told}")
        unit = slot.units[profile]
        set_shapes(unit.context, shapes, str)
        return unit


def built(trt: Any, engine: Any, manifest: pb.Manifest, stack: ExitStack, device: Device, words: Any) -> TensorRTEngine:
    """The engine of a deserialised plan, ready to run. Everything that it takes is on the stack."""
    plan = layout(trt, engine, batched=manifest.batching.max_batch_size > 0)
    for streams in (2, 1):  # one is slower, and it is enough where memory is short
        part = stack.enter_context(ExitStack())
        try:
            return _with_streams(streams, trt, engine, plan, manifest, stack, device.part(part), words)
        except Exception as error:
            failure = device.translated(error, "the plan cannot be set up on this device")
            forget_frames(error)
        part.close()
        if not isinstance(failure, OutOfMemory):
            break
    raise failure


def _with_streams(
    streams: int,
    trt: Any,
    engine: Any,
    plan: Layout,
    manifest: pb.Manifest,
    stack: ExitStack,
    device: Device,
    words: Any,
) -> TensorRTEngine:
    most = max(1, manifest.batching.max_batch_size)
    largest = _largest(trt, engine, plan, most, words)
    sizes = {name: size_of(_info(plan, name), shape) for name, shape in largest.items()}
    slots: list[Slot] = []
    while len(slots) < streams:
        slots.append(Slot(trt, engine, device, sizes, words))
    made = TensorRTEngine(stack, device, slots, plan, most, list(promised(manifest).wanted))
    whole = {name: (max(most, shape[0]), *shape[1:]) if plan.batched else shape for name, shape in largest.items()}
    made.make_ready({name: size_of(_info(plan, name), shape) for name, shape in whole.items()})
    return made


def _info(plan: Layout, name: str) -> TensorInfo:
    return plan.inputs[name] if name in plan.inputs else plan.outputs[name]


def _largest(trt: Any, engine: Any, plan: Layout, most: int, words: Any) -> dict[str, Shape]:
    """The largest shape that each tensor can have on the device."""
    found: dict[str, Shape] = {}
    for profile in range(len(plan.profiles)):
        least, _, top = plan.rows(profile)
        rows = max(least, min(top, most))
        shapes = plan.shapes(profile, rows)
        context = context_of(trt, engine, profile, 0)
        set_shapes(context, shapes, words)
        for name in plan.outputs:
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise InvalidManifest(
                    f"files.model: the size of the plan's output {name!r} depends on the data, which is not run here",
                    field="files.model",
                )
            if plan.batched and (not shape or shape[0] != rows):
                raise InvalidManifest(
                    f"files.model: the plan's output {name!r} has not one row for each row of its inputs",
                    field="files.model",
                )
            shapes[name] = shape
        for name, shape in shapes.items():
            # By bytes: profiles may differ in more than one dimension.
            info = _info(plan, name)
            if name not in found or size_of(info, shape) > size_of(info, found[name]):
                found[name] = shape
    return found
