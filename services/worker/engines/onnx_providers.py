"""Which of ONNX Runtime's execution providers run a model, in which order, and with which limits (pure).

The processor always comes last: it runs whatever the others do not know. A model gets a GPU when its manifest asks for
devices; of the GPU's providers the one of CUDA is the default, since TensorRT's compiles the model anew at every load.
It comes first for a model that says it was made for TensorRT (`environment.tensorrt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from penstock.v1 import manifest_pb2 as pb

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
WORKSPACE: Final = 1 << 30
"""Bytes that TensorRT may use to try kernels, where the manifest reserves no more."""

Provider = tuple[str, Mapping[str, str]]


def providers(available: Sequence[str], manifest: pb.Manifest) -> list[Provider]:
    """Names and options, the preferred one first.

    available: those of the installed build. Options are bounded: of the device's memory no more is taken than the
    manifest reserves, and no compiled engine is ever read from a file, since nobody would have signed it.
    """
    chosen: list[Provider] = []
    if manifest.resources.HasField("devices") and manifest.resources.devices.kind in ("", "gpu"):
        reserved = manifest.resources.devices.memory_bytes
        if TENSORRT in available and "tensorrt" in manifest.environment:
            chosen.append((TENSORRT, _tensorrt(reserved)))
        if CUDA in available:
            chosen.append((CUDA, _cuda(reserved)))
    return [*chosen, (CPU, {})]


def _cuda(reserved: int) -> dict[str, str]:
    options = {
        "device_id": "0",  # the first that this process sees
        # No more than is asked for: several replicas share a device.
        "arena_extend_strategy": "kSameAsRequested",
        # The exhaustive search takes minutes, and memory that nobody reserved.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return {**options, "gpu_mem_limit": str(reserved)} if reserved else options


def _tensorrt(reserved: int) -> dict[str, str]:
    return {
        "device_id": "0",
        "trt_max_workspace_size": str(min(WORKSPACE, reserved) if reserved else WORKSPACE),
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
        "trt_dump_ep_context_model": "0",
    }
