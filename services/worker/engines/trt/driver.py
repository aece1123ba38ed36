"""The CUDA driver through libcuda: is there one that works, what is the device, and graphs, which pycuda does not know.

It is asked before anything of TensorRT's is made: without a driver a runtime answers with nothing at best and takes the
process down at worst. Names and numbers: https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

_COMPUTE_CAPABILITY: Final = (75, 76)  # CUdevice_attribute: major, minor
_CAPTURE_THREAD_LOCAL: Final = 1  # CUstreamCaptureMode
_NO_FLAGS: Final = ctypes.c_ulonglong(0)  # 64 bits, which ctypes would not make of a number by itself

STICKY: Final = frozenset((214, 700, 702, 710, 713, 714, 715, 716, 717, 718, 719, 720))
"""CUresults after which this process's context never works again: ECC, illegal address, launch timeout, assert, ..."""


def library() -> Any:
    """libcuda; raises OSError where there is none."""
    return ctypes.CDLL("libcuda.so.1")


def missing() -> str | None:
    """None where a driver answers and has a device, else the public reason."""
    try:
        driver = library()
    except OSError:
        return "TensorRT needs an NVIDIA driver, and this worker has none"
    status = int(driver.cuInit(0))
    if status != 0:
        return f"the NVIDIA driver of this worker does not start (CUDA error {status})"
    count = ctypes.c_int(0)
    if int(driver.cuDeviceGetCount(ctypes.byref(count))) != 0 or count.value < 1:
        return "the NVIDIA driver of this worker shows no device"
    return None


def architecture() -> str:
    """Of the first visible device, such as `sm90`. The driver must have started."""
    driver, device = library(), ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    numbers = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return f"sm{numbers[0]}{numbers[1]}"


def lost() -> int:
    """The sticky error that this thread's context is in; 0 where it is well."""
    status = int(library().cuCtxSynchronize())
    return status if status in STICKY else 0


class Graph:
    """An instantiated CUDA graph."""

    def __init__(self, driver: Any, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._handle = handle

    def launch(self, stream: int) -> int:
        """Runs it on a stream; the driver's status."""
        return int(self._driver.cuGraphLaunch(self._handle, ctypes.c_void_p(stream)))

    def destroy(self) -> None:
        """Gives its memory back."""
        self._driver.cuGraphExecDestroy(self._handle)


def capture(stream: int, enqueue: Callable[[], bool]) -> Graph | None:
    """What `enqueue` puts on the stream, as a graph; None where that cannot be captured, and nothing is left of it."""
    driver = library()
    if int(driver.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), _CAPTURE_THREAD_LOCAL)) != 0:
        return None
    captured = ctypes.c_void_p()
    try:
        enqueued = enqueue()
    finally:
        # Whatever became of it, the stream must leave capture: nothing else runs on it until then.
        ended = int(driver.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(captured)))
    if ended != 0 or not captured.value:
        return None
    try:
        handle = ctypes.c_void_p()
        if not enqueued or int(driver.cuGraphInstantiateWithFlags(ctypes.byref(handle), captured, _NO_FLAGS)) != 0:
            return None
        return Graph(driver, handle)
    finally:
        driver.cuGraphDestroy(captured)
