"""A CUDA device that is none: pycuda's `driver` and libcuda over ordinary memory, by the rules of the real ones.

Nothing that is put on a stream happens before somebody waits for it, and streams are interleaved by a seeded die, so a
missing synchronisation shows. Memory is counted. Any single call can be made to fail (`fail_at`), and the whole device
to be lost (`sticky`). What no program may do is written to `violations`.
"""

from __future__ import annotations

import importlib.machinery
import itertools
import random
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

GRAPH_BYTES = 4096
CONTEXT_BYTES = 1 << 20


class Error(Exception):
    """As pycuda.driver.Error."""


class MemoryError(Error):
    """As pycuda.driver.MemoryError."""


class LogicError(Error):
    """As pycuda.driver.LogicError."""


class Gpu:
    """The device and all that is on it."""

    def __init__(self, total: int = 1 << 30, capability: tuple[int, int] = (9, 0), driver_status: int = 0) -> None:
        self.total, self.capability, self.driver_status = total, capability, driver_status
        self.memory: dict[int, bytearray] = {}
        self.counted: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.streams: dict[int, deque[Callable[[], None]]] = {}
        self.clock: dict[int, float] = {}
        self.capturing: dict[int, list[Callable[[], None]] | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.current = 0
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.sticky = 0
        self.violations: list[str] = []
        self._next = itertools.count(0x7F00_0000_0000, 1 << 24)
        self._handles = itertools.count(1)
        self._dice = random.Random(3)

    @property
    def used(self) -> int:
        """Bytes that are taken on the device."""
        return sum(map(len, self.memory.values())) + sum(self.counted.values())

    def fails(self, call: str) -> bool:
        """Counts a call; True where it must fail."""
        self.calls.append(call)
        return bool(self.sticky) or len(self.calls) - 1 == self.fail_at

    def check(self, call: str) -> None:
        """Counts a call of pycuda's, which fails by raising."""
        if self.current < 1 and call not in ("init", "Device", "retain_primary_context", "push", "detach"):
            self.violations.append(f"{call} without a current context")
        if self.fails(call):
            raise LogicError(f"{call} failed: an illegal memory access was encountered")

    def take(self, size: int) -> int:
        """Counts bytes as taken; their handle. Raises MemoryError."""
        if self.used + size > self.total:
            raise MemoryError("cuMemAlloc failed: out of memory")
        handle = next(self._handles)
        self.counted[handle] = size
        return handle

    def give(self, handle: int) -> None:
        """Gives them back."""
        if self.counted.pop(handle, None) is None:
            self.violations.append("freed twice")

    def allocate(self, size: int) -> int:
        """Memory with rubbish in it; its address."""
        if self.used + size > self.total:
            raise MemoryError("cuMemAlloc failed: out of memory")
        address = next(self._next)
        self.memory[address] = bytearray(b"\xab" * size)
        return address

    def at(self, address: int, size: int) -> memoryview:
        """Bytes on the device."""
        memory = self.memory.get(address)
        if memory is None or len(memory) < size:
            self.violations.append(f"{size} bytes at {address:#x} are not allocated")
            return memoryview(bytearray(size))
        return memoryview(memory)[:size]

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Puts work on a stream, or into the graph that is being captured from it."""
        captured = self.capturing.get(stream)
        if captured is not None:
            captured.append(work)
        elif stream in self.streams:
            self.streams[stream].append(work)
        else:
            self.violations.append(f"work on the unknown stream {stream}")

    def wait(self, stream: int) -> None:
        """Does what is on a stream, and some of what is on others."""
        while self.streams[stream]:
            busy = [queue for queue in self.streams.values() if queue]
            self._dice.choice(busy).popleft()()

    # --- libcuda, as ctypes shows it ---

    def cuInit(self, flags: int) -> int:
        return self.driver_status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.capability[{75: 0, 76: 1}[attribute]]
        return 0

    def cuCtxSynchronize(self) -> int:
        return self.sticky

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        if self.fails("cuStreamBeginCapture"):
            return self.sticky or 900
        if self.streams[stream.value]:
            self.violations.append("captured a stream that is busy")
        self.capturing[stream.value] = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        captured = self.capturing.pop(stream.value, None)
        if self.fails("cuStreamEndCapture") or captured is None:
            return self.sticky or 901
        handle = next(self._handles)
        self.graphs[handle] = captured
        graph._obj.value = handle
        return 0

    def cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: int) -> int:
        if self.fails("cuGraphInstantiate"):
            return self.sticky or 1
        if self.used + GRAPH_BYTES > self.total:
            return 2
        handle = self.take(GRAPH_BYTES)
        self.graphs[handle] = self.graphs[graph.value]
        made._obj.value = handle
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        if self.fails("cuGraphLaunch"):
            return self.sticky or 1
        for work in self.graphs[graph.value]:
            self.enqueue(stream.value, work)
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        self.give(graph.value)
        del self.graphs[graph.value]
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        del self.graphs[graph.value]
        return 0


class Allocation:
    """As pycuda.driver.DeviceAllocation."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        gpu.check("mem_alloc")
        self._gpu, self._address = gpu, gpu.allocate(size)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        """Gives it back; twice is an error."""
        if self._gpu.memory.pop(self._address, None) is None:
            self._gpu.violations.append("device memory freed twice")


class Pinned(np.ndarray[Any, Any]):
    """An array whose `base` can be freed, as pagelocked_empty gives it."""


class HostAllocation:
    """As pycuda.driver.PagelockedHostAllocation, which is the base of the array."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self._bytes = gpu, bytearray(b"\xcd" * size)
        gpu.pinned[id(self)] = size
        self.__array_interface__ = np.frombuffer(self._bytes, np.uint8).__array_interface__ | {
            "data": (np.frombuffer(self._bytes, np.uint8).ctypes.data, False)
        }

    def free(self) -> None:
        """Gives it back."""
        if self._gpu.pinned.pop(id(self), None) is None:
            self._gpu.violations.append("pinned memory freed twice")


class Stream:
    """As pycuda.driver.Stream."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.check("Stream")
        self._gpu = gpu
        self.handle = next(gpu._handles)
        gpu.streams[self.handle] = deque()
        gpu.clock[self.handle] = 0.0

    def synchronize(self) -> None:
        """Waits for all that is on it."""
        self._gpu.check("synchronize")
        self._gpu.wait(self.handle)


class Event:
    """As pycuda.driver.Event."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.check("Event")
        self._gpu, self._stream, self._at = gpu, 0, 0.0

    def record(self, stream: Stream) -> Event:
        """Marks a place on a stream."""
        self._stream = stream.handle
        self._gpu.enqueue(stream.handle, self._note)
        return self

    def _note(self) -> None:
        self._at = self._gpu.clock[self._stream]

    def synchronize(self) -> Event:
        """Waits until that place is reached."""
        self._gpu.check("event_synchronize")
        self._gpu.wait(self._stream)
        return self

    def time_since(self, other: Event) -> float:
        """Milliseconds."""
        return self._at - other._at


class PrimaryContext:
    """As pycuda.driver.Context."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.check("retain_primary_context")
        self._gpu, self._bytes = gpu, gpu.take(CONTEXT_BYTES)

    def push(self) -> None:
        """Makes it current."""
        self._gpu.check("push")
        self._gpu.current += 1

    def detach(self) -> None:
        """Lets go of it."""
        self._gpu.give(self._bytes)


def pycuda_driver(gpu: Gpu) -> types.ModuleType:
    """A module like pycuda.driver."""
    module = types.ModuleType("pycuda.driver")

    def copy_in(address: int, source: Any, stream: Stream) -> None:
        gpu.check("memcpy_htod_async")
        view = memoryview(source).cast("B")

        def copy() -> None:
            gpu.at(address, len(view))[:] = view

        gpu.enqueue(stream.handle, copy)

    def copy_out(target: Any, address: int, stream: Stream) -> None:
        gpu.check("memcpy_dtoh_async")
        view = memoryview(target).cast("B")

        def copy() -> None:
            view[:] = gpu.at(address, len(view))

        gpu.enqueue(stream.handle, copy)

    def fill(address: int, value: int, size: int) -> None:
        gpu.check("memset_d8")
        gpu.at(address, size)[:] = bytes([value]) * size

    def pagelocked_empty(shape: int, kind: Any) -> Any:
        gpu.check("pagelocked_empty")
        assert kind is np.uint8
        return np.asarray(HostAllocation(gpu, shape))

    def pop() -> None:
        gpu.current -= 1

    def retain() -> PrimaryContext:
        return PrimaryContext(gpu)

    names: dict[str, Any] = {
        "Error": Error, "MemoryError": MemoryError, "LogicError": LogicError,
        "init": lambda: gpu.check("init"),
        "Device": lambda index: types.SimpleNamespace(retain_primary_context=retain),
        "Context": types.SimpleNamespace(pop=pop),
        "Stream": lambda: Stream(gpu), "Event": lambda: Event(gpu), "mem_alloc": lambda size: Allocation(gpu, size),
        "mem_get_info": lambda: (gpu.total - gpu.used, gpu.total), "pagelocked_empty": pagelocked_empty,
        "memset_d8": fill, "memcpy_htod_async": copy_in, "memcpy_dtoh_async": copy_out,
    }  # fmt: skip
    vars(module).update(names)
    return module


def install(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, **modules: types.ModuleType) -> None:
    """Puts pycuda, libcuda and other modules in place for the length of a test."""
    from services.worker.engines.trt import driver

    package = types.ModuleType("pycuda")
    package.__path__ = []
    package.driver = pycuda_driver(gpu)  # type: ignore[attr-defined]
    for name, module in {"pycuda": package, "pycuda.driver": package.driver, **modules}.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(driver, "library", lambda: gpu)
