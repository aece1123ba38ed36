"""Compiled plans on TensorRT, or on TensorRT-RTX, whichever package is there.

A plan is native code, so nothing is handed to a runtime before a trusted builder's signature over all of it holds
(penstock/plans.py), and none but a plan for exactly this builder, version and architecture. The driver is asked first,
through libcuda itself: a TensorRT runtime is never made on hope. Code that a plan may carry for the host stays
forbidden, and no plug-in library is loaded.

A version may hold plans for several targets: roles `model` and those that begin with `plan` are looked at, and the one
for this worker is loaded. Where there is none the error names the target (trt/matching.py), and the worker, which may
add plans of its own, gets one (services/worker/plans).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from penstock.compiling.builders import PACKAGES
from penstock.errors import Internal, InvalidArgument, InvalidManifest, PenstockError, Unsupported
from penstock.plans import BUILDERS
from penstock.v1 import manifest_pb2 as pb

from . import signed
from .engine import NOTHING, Means, public
from .trt import driver, matching
from .trt.device import Device, forget_frames
from .trt.model import TensorRTEngine, built


def probe(means: Means = NOTHING) -> str | None:
    """None where a CUDA driver answers and TensorRT and pycuda are installed, else what is missing."""
    if reason := driver.missing():
        return reason
    if _package() is None:
        return "no TensorRT package is installed on this worker (tensorrt or tensorrt-rtx-cu13-bindings)"
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed on this worker (install penstock[worker-tensorrt])"
    if not _trusted(means):
        return "this worker trusts no builder's key and compiles nothing itself (settings plan_keys, compile_plans)"
    return None


def load(files: Mapping[str, Path], manifest: pb.Manifest, threads: int, means: Means = NOTHING) -> TensorRTEngine:
    """The plan for this worker among the version's files.

    Raises Unsupported where the machine lacks something, PlanMissing where no plan is for it, InvalidManifest where a
    file is no plan of a trusted builder.
    """
    package = _package()
    if (reason := probe(means)) or package is None:
        raise Unsupported(reason or "no TensorRT package is installed on this worker")
    trt = importlib.import_module(package)
    target = matching.Target(BUILDERS[package], trt.__version__, driver.architecture())
    plans = signed.plans(files, _trusted(means))
    try:
        plan = plans[matching.choose([header for header, _ in plans], target)][1]
    except matching.PlanMissing:
        signed.check_source(files)
        raise
    stack = ExitStack()
    try:
        return _loaded(trt, plan, manifest, stack)
    except Exception as error:
        failure = _public(error)
        forget_frames(error)
    # Outside of the handler: the exception's frames hold TensorRT's objects, which must be gone before the device is.
    stack.close()
    try:
        raise failure
    finally:
        del failure  # an exception that its own frame holds would live on, and the plan's bytes with it


def _trusted(means: Means) -> tuple[bytes, ...]:
    """Whose plans may run: builders', and what this worker compiled itself."""
    return (*means.plan_keys, means.own_key) if means.own_key else means.plan_keys


def _package() -> str | None:
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is not None), None)


def _loaded(trt: Any, plan: memoryview, manifest: pb.Manifest, stack: ExitStack) -> TensorRTEngine:
    try:
        device = Device.opened(stack)
    except Exception as error:  # pycuda's, which only pycuda knows
        raise Internal("the device of this worker cannot be opened", detail=repr(error)) from None
    logger, words = _logger(trt)
    # Both go before the device does, the engine first; its contexts went before, with their slots.
    held: dict[str, Any] = {"runtime": trt.Runtime(logger)}
    stack.callback(held.clear)
    held["runtime"].engine_host_code_allowed = False
    held["engine"] = engine = held["runtime"].deserialize_cuda_engine(plan)
    stack.callback(held.pop, "engine")
    if engine is None:
        raise InvalidManifest(
            f"files.model: TensorRT cannot load the plan: {public(words())}", field="files.model", detail=words()
        )
    return built(trt, engine, manifest, stack, device, words)


def _logger(trt: Any) -> tuple[Any, Callable[[], str]]:
    """A logger that keeps the last errors, and what it kept."""
    kept: deque[str] = deque(maxlen=4)

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                kept.append(msg)

    return Kept(), lambda: "; ".join(kept)


def _public(error: Exception) -> PenstockError:
    """As Factory promises: the publisher's fault, or the device's, or nobody's that a caller knows."""
    if not isinstance(error, PenstockError):
        return Internal("the plan cannot be loaded", detail=repr(error))
    if isinstance(error, InvalidArgument) and not isinstance(error, InvalidManifest):
        words = f"files.model: the plan cannot be loaded: {error.message}"
        return InvalidManifest(words, field="files.model", detail=error.detail)
    return error
