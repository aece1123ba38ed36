"""Which execution providers run an ONNX model, and running one with its tensors bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from penstock.v1 import manifest_pb2 as pb
from services.worker.engines.engine import DeviceLost, OutOfMemory
from services.worker.engines.onnx import _failure
from services.worker.engines.onnx_binding import KEPT, Binding
from services.worker.engines.onnx_providers import CPU, CUDA, TENSORRT, providers
from tests.harness.models import add_one

ALL = [TENSORRT, CUDA, CPU]


def manifest(devices: bool = True, **environment: str) -> pb.Manifest:
    made = pb.Manifest(environment=environment)
    if devices:
        made.resources.devices.CopyFrom(pb.Devices(kind="gpu", count=1, memory_bytes=1 << 20))
    return made


@pytest.mark.parametrize(
    ("available", "made", "wanted"),
    [
        ([CPU], manifest(), [CPU]),
        (ALL, manifest(devices=False, tensorrt=">=10"), [CPU]),
        (ALL, manifest(), [CUDA, CPU]),
        (ALL, manifest(tensorrt=">=10"), [TENSORRT, CUDA, CPU]),
        ([TENSORRT, CPU], manifest(tensorrt=">=10"), [TENSORRT, CPU]),
        (["AzureExecutionProvider", CPU], manifest(), [CPU]),
    ],
)
def test_what_is_there_and_what_is_asked_for_make_the_order(
    available: list[str], made: pb.Manifest, wanted: list[str]
) -> None:
    assert [name for name, _ in providers(available, made)] == wanted


def test_no_provider_takes_more_than_is_reserved_or_reads_engines_from_files() -> None:
    options = dict(providers(ALL, manifest(tensorrt=">=10")))
    assert options[CUDA]["gpu_mem_limit"] == options[TENSORRT]["trt_max_workspace_size"] == str(1 << 20)
    assert {options[TENSORRT][name] for name in ("trt_engine_cache_enable", "trt_timing_cache_enable")} == {"0"}
    made = manifest()
    made.resources.devices.memory_bytes = 0
    assert "gpu_mem_limit" not in dict(providers(ALL, made))[CUDA]


def test_another_kind_of_device_is_not_a_gpu() -> None:
    made = manifest()
    made.resources.devices.kind = "npu"
    assert [name for name, _ in providers(ALL, made)] == [CPU]


@pytest.fixture
def session(tmp_path: Path) -> Any:
    path = add_one(tmp_path / "m") / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=[CPU])


def test_bound_tensors_give_what_a_plain_run_gives(session: Any) -> None:
    binding = Binding(session, onnxruntime.OrtValue, "cpu")
    kept = []
    for seed, rows in enumerate((1, 5, 1, 5, 2)):
        x = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
        (y,) = binding.run(["y"], {"x": x.copy()})  # what the processor binds is the array itself
        np.testing.assert_array_equal(y, x + 1)
        kept.append((x, y))
    for x, y in kept:  # an answer is not written over by the next run
        np.testing.assert_array_equal(y, x + 1)


def test_memory_is_kept_for_so_many_shapes_and_no_more(session: Any) -> None:
    binding = Binding(session, onnxruntime.OrtValue, "cpu")
    for rows in range(1, KEPT + 5):
        binding.run(["y"], {"x": np.zeros((rows, 16), np.float32)})
    assert len(binding._kept) == KEPT
    assert ("x", (1, 16), "<f4") not in binding._kept


def test_what_the_runtime_says_of_a_device() -> None:
    words = "Non-zero status code: CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=/x.cc"
    lost = _failure(words)
    assert isinstance(lost, DeviceLost) and "700" in lost.message and "/x" not in lost.message
    assert isinstance(_failure("CUDA failure 2: out of memory ; GPU=0"), OutOfMemory)
    assert isinstance(_failure("bfc_arena: Failed to allocate memory for requested buffer of size 9"), OutOfMemory)
    assert not isinstance(_failure("CUDA failure 1: invalid argument"), DeviceLost | OutOfMemory)
