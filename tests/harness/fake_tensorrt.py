"""TensorRT without a driver: the part of its Python API that the engine uses, with its names, order and error returns.

The real one answers with None or False where it cannot, logs why, and never raises; so does this. A plan of its own is
JSON that says which tensors there are and which of `MODELS` computes them; `plan` writes one in a signed container.
tests/contract/test_tensorrt_api.py holds the names against the real bindings.
"""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from penstock.plans import PlanHeader, wrap

from .fake_cuda import Gpu
from .fake_cuda import MemoryError as DeviceMemoryError

VERSION = "11.2.0.5"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key().public_bytes_raw()
SCRATCH = 4096
REAL = (b"vtrt", b"ftrt", b"ptrt")
"""How plans of real builders begin."""
CONTEXT_BYTES = 512

Arrays = Mapping[str, Any]
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
BIAS = np.array([1, 10, 100], np.float32)
MODELS: dict[str, Callable[[Arrays], dict[str, Any]]] = {
    "affine": lambda fed: {"y": fed["x"] @ WEIGHT + BIAS, "total": fed["x"].sum(1)},
    "identity": lambda fed: {"y": fed["x"]},
    "add_one": lambda fed: {"y": fed["x"] + 1},
}


class Severity(enum.IntEnum):
    """As ILogger.Severity."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.Enum):
    """As trt.DataType; the value is numpy's word, with BF16 as its bits."""

    FLOAT, HALF, BF16, INT8, INT32, INT64, BOOL, UINT8, FP8 = range(9)


NUMPY = {
    "FLOAT": "<f4", "HALF": "<f2", "BF16": "<u2", "INT8": "|i1", "INT32": "<i4", "INT64": "<i8", "BOOL": "|b1",
    "UINT8": "|u1", "FP8": "|u1",
}  # fmt: skip


class ExecutionContextAllocationStrategy(enum.Enum):
    """As the real one."""

    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class TensorLocation(enum.Enum):
    """As the real one."""

    DEVICE, HOST = range(2)


class TensorIOMode(enum.Enum):
    """As the real one."""

    NONE, INPUT, OUTPUT = range(3)


class TensorFormat(enum.Enum):
    """As the real one."""

    LINEAR, CHW2 = range(2)


class ILogger:
    """As the real one: `__init__` must be called, or nothing can be made with it."""

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Severity, msg: str) -> None:
        """To be overridden."""
        raise NotImplementedError


class _Owned:
    """Something that takes device memory for as long as Python holds it, and needs the device until then."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu, self._bytes = gpu, gpu.take(size)

    def __del__(self) -> None:
        if hasattr(self, "_bytes"):
            if self._gpu.current < 1:
                self._gpu.violations.append(f"{type(self).__name__} outlived the device's context")
            self._gpu.give(self._bytes)


class Runtime:
    """As the real one."""

    def __init__(self, logger: ILogger, *, gpu: Gpu, real: dict[str, Any] | None = None) -> None:
        gpu.calls.append("Runtime")
        if gpu.driver_status or gpu.current < 1:
            gpu.violations.append("a runtime without a driver: this is where a process dies")
        assert logger._made
        self._gpu, self._logger, self._real = gpu, logger, real
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        """The engine, or None."""
        if self.engine_host_code_allowed:
            self._gpu.violations.append("code for the host is allowed")
        if self._gpu.fails("deserialize_cuda_engine"):
            self._logger.log(Severity.ERROR, "[runtime] deserialization failed in /usr/src/trt/runtime.cpp")
            return None
        try:
            plan = bytes(serialized_engine)
            document = self._real if self._real is not None and plan[:4] in REAL else json.loads(plan)
            return ICudaEngine(self._gpu, self._logger, document)
        except (ValueError, DeviceMemoryError):
            self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magic tag does not match")
            return None


class ICudaEngine(_Owned):
    """As the real one."""

    def __init__(self, gpu: Gpu, logger: ILogger, document: dict[str, Any]) -> None:
        super().__init__(gpu, document["weights"])
        self._logger, self._document = logger, document
        self._tensors: dict[str, Any] = {entry["name"]: entry for entry in document["tensors"]}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(document["profiles"])
        self.device_memory_size_v2 = SCRATCH

    def get_tensor_name(self, index: int) -> str:
        """By its place."""
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input or output."""
        return TensorIOMode[self._tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> DataType:
        """Its type."""
        return DataType[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """With -1 for what varies."""
        return tuple(self._tensors[name]["shape"])

    def get_tensor_location(self, name: str) -> TensorLocation:
        """Where its bytes must be."""
        return TensorLocation[self._tensors[name].get("location", "DEVICE")]

    def get_tensor_format(self, name: str) -> TensorFormat:
        """How they are laid out."""
        return TensorFormat[self._tensors[name].get("format", "LINEAR")]

    def is_shape_inference_io(self, name: str) -> bool:
        """Whether it holds a shape."""
        return bool(self._tensors[name].get("shape_io"))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Smallest, best and largest."""
        return [tuple(shape) for shape in self._document["profiles"][profile_index][name]]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None:
        """A context, or None."""
        if self._gpu.fails("create_execution_context"):
            return None
        try:
            return IExecutionContext(self._gpu, self, strategy)
        except DeviceMemoryError:
            return None


class IExecutionContext(_Owned):
    """As the real one."""

    def __init__(self, gpu: Gpu, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        super().__init__(gpu, CONTEXT_BYTES)
        self.engine = engine
        self._strategy = strategy
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._runs = 0
        self._changes = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Forgets all shapes."""
        if self._gpu.fails("set_optimization_profile_async"):
            return False
        self._profile, self._shapes = profile_index, {}
        self._changes += 1
        return 0 <= profile_index < self.engine.num_optimization_profiles

    def set_device_memory(self, memory: int, size: int) -> None:
        """The scratch memory."""
        if self._strategy is not ExecutionContextAllocationStrategy.USER_MANAGED or size < SCRATCH:
            self._gpu.violations.append("scratch memory that is too small, or not asked for")
        self._gpu.at(memory, size)
        self._scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False outside of the profile."""
        if self._gpu.fails("set_input_shape"):
            return False
        self._changes += 1
        static = self.engine.get_tensor_shape(name)
        if -1 in static:
            low, _, high = self.engine.get_tensor_profile_shape(name, self._profile)
        else:
            low, high = static, static
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse("set_input_shape: the shape is not in the profile")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where the tensor lies."""
        if self._gpu.fails("set_tensor_address"):
            return False
        self._changes += 1
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As it follows from the inputs' shapes; -1 where it does not."""
        if name in self._shapes:
            return self._shapes[name]
        entry = self.engine._tensors[name]
        if entry.get("data_dependent"):
            return tuple(entry["shape"])
        first = next(iter(self._shapes.values()), ())
        return tuple(
            (first[axis] if axis < len(first) else -1) if size == -1 else size
            for axis, size in enumerate(entry["shape"])
        )

    def execute_async_v3(self, stream_handle: int) -> bool:
        """False unless every shape and every address is set."""
        if self._gpu.fails("execute_async_v3"):
            return self._refuse("enqueueV3: a CUDA error")
        engine = self.engine
        inputs = [name for name in engine._tensors if engine.get_tensor_mode(name) is TensorIOMode.INPUT]
        if any(-1 in engine.get_tensor_shape(name) and name not in self._shapes for name in inputs):
            return self._refuse("enqueueV3: an input shape is not set")
        if self._addresses.keys() != engine._tensors.keys():
            return self._refuse("enqueueV3: the address of a tensor is not set")
        if self._strategy is ExecutionContextAllocationStrategy.USER_MANAGED and not self._scratch:
            return self._refuse("enqueueV3: device memory is not set")
        captured = self._gpu.capturing.get(stream_handle) is not None
        if captured and not self._runs:
            return self._refuse("enqueueV3: the first run cannot be captured")
        self._runs += 1
        shapes = {name: self._shapes.get(name, engine.get_tensor_shape(name)) for name in inputs}
        shapes |= {name: self.get_tensor_shape(name) for name in engine._tensors if name not in shapes}
        self._gpu.enqueue(stream_handle, self._work(stream_handle, shapes, dict(self._addresses), captured))
        return True

    def _work(
        self, stream: int, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], captured: bool
    ) -> Callable[[], None]:
        changes, gpu, engine = self._changes, self._gpu, self.engine
        owner = None if captured else self

        def array(name: str) -> Any:
            kind = np.dtype(NUMPY[engine.get_tensor_dtype(name).name])
            size = int(np.prod(shapes[name])) * kind.itemsize
            return np.frombuffer(gpu.at(addresses[name], size), kind).reshape(shapes[name])

        def work() -> None:
            if owner is None and changes != self_changes():
                gpu.violations.append("a graph ran whose context was changed after it was captured")
            fed = {name: array(name) for name in shapes if engine.get_tensor_mode(name) is TensorIOMode.INPUT}
            for name, value in MODELS[engine._document["model"]](fed).items():
                if name in shapes:
                    array(name)[...] = value
            rows = next(iter(shapes.values()))[0] if next(iter(shapes.values())) else 1
            gpu.clock[stream] += 0.685 + 0.095 * rows

        def self_changes() -> int:
            return self._changes

        return work

    def _refuse(self, words: str) -> bool:
        self.engine._logger.log(Severity.ERROR, words)
        return False


def module(gpu: Gpu, version: str = VERSION, real: dict[str, Any] | None = None) -> types.ModuleType:
    """A module like `tensorrt`. real: what a plan is taken for that a real builder made."""
    made = types.ModuleType("tensorrt")
    names: dict[str, Any] = {
        "__version__": version,
        "ILogger": ILogger,
        "Runtime": lambda logger: Runtime(logger, gpu=gpu, real=real),
        **{kind.__name__: kind for kind in ENUMS},
    }
    vars(made).update(names)
    return made


ENUMS = (DataType, ExecutionContextAllocationStrategy, TensorLocation, TensorIOMode, TensorFormat)


def tensor(name: str, mode: str, dtype: str, *shape: int, **more: Any) -> dict[str, Any]:
    """An entry of a plan."""
    return {"name": name, "mode": mode, "dtype": dtype, "shape": list(shape), **more}


def plan(
    model: str,
    tensors: list[dict[str, Any]],
    profiles: list[dict[str, Any]],
    *,
    key: Ed25519PrivateKey = KEY,
    weights: int = 1 << 16,
    **header: Any,
) -> bytes:
    """A signed plan for a device of architecture sm90, unless the header says something else."""
    document = {"model": model, "tensors": tensors, "profiles": profiles, "weights": weights}
    said = {
        "source": "sha256:" + "0" * 64, "builder": "tensorrt", "version": VERSION, "architecture": "sm90",
        "precision": "fp32", "created": "2026-11-25T00:00:00Z", **header,
    }  # fmt: skip
    return wrap(PlanHeader(**said), json.dumps(document).encode(), key)


def add_one(most: int = 32) -> dict[str, Any]:
    """What is in a real plan of tests.harness.models.add_one."""
    tensors = [tensor("x", "INPUT", "FLOAT", -1, 16), tensor("y", "OUTPUT", "FLOAT", -1, 16)]
    profiles = [{"x": [[1, 16], [most, 16], [most, 16]]}]
    return {"model": "add_one", "tensors": tensors, "profiles": profiles, "weights": 1 << 10}


def affine(most: int = 64, **options: Any) -> bytes:
    """y = x @ WEIGHT + BIAS and total, the sum of each row of x."""
    tensors = [
        tensor("x", "INPUT", "FLOAT", -1, 4),
        tensor("y", "OUTPUT", "FLOAT", -1, 3),
        tensor("total", "OUTPUT", "FLOAT", -1),
    ]  # fmt: skip
    return plan("affine", tensors, [{"x": [[1, 4], [min(8, most), 4], [most, 4]]}], **options)


def identity(dtype: str, shape: tuple[int, ...] = (-1, 2), most: tuple[int, ...] = (64, 2), **options: Any) -> bytes:
    """y = x."""
    least = [1 if size == -1 else size for size in shape]
    tensors = [tensor("x", "INPUT", dtype, *shape), tensor("y", "OUTPUT", dtype, *shape)]
    return plan("identity", tensors, [{"x": [least, list(most), list(most)]}], **options)
