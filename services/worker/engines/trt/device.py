"""The GPU that one model runs on: its context, memory and streams, through pycuda, and what its errors mean.

Everything that is taken is put on an ExitStack, so that closing it, after a load that failed or at the end, gives all
back in the right order. A device that is lost gives nothing back by call; the end of the process does.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from penstock.errors import Internal, PenstockError

from ..engine import Array, DeviceLost, OutOfMemory, public
from . import driver


class Device:
    """Made by `opened`. One thread."""

    def __init__(self, cuda: Any, stack: ExitStack) -> None:
        self._cuda = cuda
        self.stack = stack

    @classmethod
    def opened(cls, stack: ExitStack) -> Device:
        """The first visible device, with its primary context (the one that TensorRT uses) current until the stack
        closes."""
        import pycuda.driver as cuda

        cuda.init()
        context = cuda.Device(0).retain_primary_context()
        stack.callback(quietly, context.detach)
        context.push()
        stack.callback(quietly, cuda.Context.pop)
        return cls(cuda, stack)

    def part(self, stack: ExitStack) -> Device:
        """The same device, with what is taken through it put on another stack."""
        return Device(self._cuda, stack)

    def allocated(self, size: int) -> int:
        """Address of so many bytes of zeros on the device: padding that was never written must not be a wild index."""
        size = max(1, size)
        memory = self._cuda.mem_alloc(size)
        self.stack.callback(quietly, memory.free)
        self._cuda.memset_d8(int(memory), 0, size)
        return int(memory)

    def pinned(self, size: int) -> Array:
        """So many bytes of this machine's memory that the device copies from and to by itself."""
        array = self._cuda.pagelocked_empty(max(1, size), np.uint8)
        self.stack.callback(quietly, array.base.free)
        return np.asarray(array)

    def stream(self) -> Any:
        """A stream; `handle` is what others call it."""
        return self._cuda.Stream()

    def event(self) -> Any:
        """An event that keeps time."""
        return self._cuda.Event()

    def to_device(self, address: int, source: Array, stream: Any) -> None:
        """Starts a copy of pinned bytes."""
        self._cuda.memcpy_htod_async(address, source, stream)

    def to_host(self, target: Array, address: int, stream: Any) -> None:
        """Starts a copy to pinned bytes."""
        self._cuda.memcpy_dtoh_async(target, address, stream)

    def translated(self, error: Exception, what: str) -> PenstockError:
        """What an error of the device's means; `what` happened, in public words."""
        if isinstance(error, PenstockError):
            return error
        if isinstance(error, self._cuda.MemoryError | MemoryError):
            return OutOfMemory(f"{what}: the device has not enough memory", detail=public(error))
        return broken(what, repr(error))


def broken(what: str, detail: str) -> PenstockError:
    """DeviceLost where the context is in a sticky error, else Internal."""
    status = driver.lost()
    if status:
        return DeviceLost(f"the device of this replica is lost (CUDA error {status})", detail=f"{what}: {detail}")
    return Internal(what, detail=detail)


def quietly(free: Callable[[], object]) -> None:
    """Calls it; a device that is lost says so for everything, and nobody needs to hear it once more."""
    with suppress(Exception):
        free()


def forget_frames(error: BaseException) -> None:
    """Lets go of what the frames of an exception, and of those behind it, still hold. TensorRT's objects must be gone
    before the memory and the device below them are given back."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen.__traceback__ = None
        seen = seen.__context__
