"""One stream of a plan: device buffers that never move, and for every size a context and its captured graph.

A graph holds the addresses and the shapes of the context that it was captured from, and a context must not be changed
after that: so each size has its own. They share one scratch memory, since one stream runs one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from penstock.errors import InvalidArgument

from ..engine import OutOfMemory
from . import driver
from .device import Device, broken, quietly
from .tensors import Shape


@dataclass(slots=True)
class Unit:
    """A context with its shapes set. graph: None where it could not be captured; then it is enqueued anew."""

    context: Any
    graph: driver.Graph | None = None


class Slot:
    """A stream and what runs on it.

    Args:
        sizes: bytes to keep for each tensor.
        words: what the runtime said last, for the log.
    """

    def __init__(self, trt: Any, engine: Any, device: Device, sizes: Mapping[str, int], words: Any) -> None:
        self._trt, self._engine, self._words = trt, engine, words
        self._device = device
        self.units: dict[int, Unit] = {}
        # In this order: what runs on the stream goes first, then its memory.
        self.addresses = {name: device.allocated(size) for name, size in sizes.items()}
        self._scratch = device.allocated(engine.device_memory_size_v2)
        self.stream = device.stream()
        device.stack.callback(self._forget)

    def prepare(self, key: int, profile: int, shapes: Mapping[str, Shape] | None) -> Unit:
        """A context for a profile, kept under a key; with shapes it is run once, and captured."""
        context = context_of(self._trt, self._engine, profile, self.stream.handle)
        context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        for name, address in self.addresses.items():
            if not context.set_tensor_address(name, address):
                raise broken("the plan does not take its buffers", self._words())
        unit = self.units[key] = Unit(context)
        if shapes is not None:
            set_shapes(context, shapes, self._words)
            # The first run sets up what cannot be set up while a graph is captured.
            self.enqueue(unit)
            self.stream.synchronize()
            # TensorRT-RTX says so itself where it would compile, or allocate, on the way.
            capturable = getattr(context, "is_stream_capturable", None)
            if capturable is None or capturable(self.stream.handle):
                unit.graph = driver.capture(self.stream.handle, partial(context.execute_async_v3, self.stream.handle))
            if unit.graph is not None:
                self._device.stack.callback(quietly, unit.graph.destroy)
        return unit

    def enqueue(self, unit: Unit) -> None:
        """Puts a run on the stream."""
        if unit.graph is not None:
            status = unit.graph.launch(self.stream.handle)
            if status != 0:
                raise broken("the model failed on these inputs", f"cuGraphLaunch: {status}")
        elif not unit.context.execute_async_v3(self.stream.handle):
            raise broken("the model failed on these inputs", self._words())

    def _forget(self) -> None:
        quietly(self.stream.synchronize)
        self.units.clear()
        self._engine = None
        self.stream = None


def context_of(trt: Any, engine: Any, profile: int, stream: int) -> Any:
    """A context without scratch memory, for one profile; raises OutOfMemory where there is none to be had."""
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise OutOfMemory("the device has not enough memory for another context of the plan")
    if engine.num_optimization_profiles > 1 and not context.set_optimization_profile_async(profile, stream):
        raise broken("the plan does not take its own profile", f"profile {profile}")
    return context


def set_shapes(context: Any, shapes: Mapping[str, Shape], words: Any) -> None:
    """Raises InvalidArgument where the plan does not take one."""
    for name, shape in shapes.items():
        if not context.set_input_shape(name, shape):
            raise InvalidArgument(
                f"the model refuses the inputs: {name!r} of shape {list(shape)} is outside the plan's profiles",
                detail=words(),
            )
