"""The seam for TensorRT: says honestly whether this machine could run it, and loads nothing yet.

Building plans from ONNX and running them is another issue's work (design notes: tensorrt.md). Until then `load` raises
Unsupported with the reason. The driver is asked first, through libcuda itself: without one, a TensorRT runtime answers
with nothing at best and takes the process down at worst, so it is never built on hope.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import Unsupported
from penstock.v1 import manifest_pb2 as pb

from .engine import Engine

PACKAGES = ("tensorrt", "tensorrt_rtx_bindings")


def probe() -> str | None:
    """None where a CUDA driver answers and a TensorRT package is installed, else what is missing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "TensorRT needs an NVIDIA driver, and this worker has none"
    status = int(driver.cuInit(0))
    if status != 0:
        return f"the NVIDIA driver of this worker does not start (CUDA error {status})"
    if not any(importlib.util.find_spec(package) for package in PACKAGES):
        return "no TensorRT package is installed on this worker (tensorrt or tensorrt-rtx-cu13-bindings)"
    return None


def load(files: Mapping[str, Path], manifest: pb.Manifest, threads: int) -> Engine:
    """Raises Unsupported: with what the machine lacks, or with what this release lacks."""
    raise Unsupported(probe() or "this release of Penstock does not run TensorRT models yet; publish the ONNX file")
