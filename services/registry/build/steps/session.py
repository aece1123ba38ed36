"""ONNX models at work on the CPU: outputs, and times of two models that can be compared.

Times are taken in turns, source and candidate one after the other, so that whatever else the machine does hits both;
the median is kept. A model in bfloat16, which ONNX Runtime's CPU kernels lack, runs through `widened` (bfloat16.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.words import public

from ..step import Json
from .bfloat16 import uses_bfloat16, widened

Array = NDArray[Any]

_NUMPY = {
    "tensor(bool)": "?", "tensor(uint8)": "u1", "tensor(uint16)": "<u2", "tensor(uint32)": "<u4",
    "tensor(uint64)": "<u8", "tensor(int8)": "i1", "tensor(int16)": "<i2", "tensor(int32)": "<i4",
    "tensor(int64)": "<i8", "tensor(float16)": "<f2", "tensor(float)": "<f4", "tensor(double)": "<f8",
}  # fmt: skip

WARM_UPS, ROUNDS = 3, 15
METHOD = f"median of {ROUNDS} calls after {WARM_UPS}, source and candidate in turns, ONNX Runtime on the CPU"


class Session:
    """A model that runs. inputs: name → numpy type and shape, where a text or None in a shape may be any size."""

    def __init__(self, data: bytes, threads: int, role: str = "model") -> None:
        """Raises InvalidManifest with public words where the runtime cannot load it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self.emulated = uses_bfloat16(data)
        try:
            self._session = onnxruntime.InferenceSession(
                widened(data) if self.emulated else data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions have no base class of their own
            raise InvalidManifest(
                f"{role}: ONNX Runtime cannot load it: {public(error)}", field=role, detail=str(error)
            ) from None
        self.inputs = {arg.name: (_kind(arg.type, arg.name), list(arg.shape)) for arg in self._session.get_inputs()}
        self.outputs = [arg.name for arg in self._session.get_outputs() if arg.type in _NUMPY]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that are tensors of numbers; raises InvalidArgument where the model refuses the inputs."""
        fed = {}
        for name, (kind, _) in self.inputs.items():
            if name not in feeds:
                raise InvalidArgument(f"the samples lack the model's input {name}", field=name)
            fed[name] = np.ascontiguousarray(feeds[name], dtype=kind)
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, fed), strict=True))
        except Exception as error:  # as above
            raise InvalidArgument(f"the model refuses the samples: {public(error)}", detail=str(error)) from None


def latency(source: Session, candidate: Session, feeds: Mapping[str, Array], rounds: int = ROUNDS) -> Json:
    """Medians in milliseconds, and the candidate's as a ratio of the source's."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UPS + rounds):
        for session, kept in zip((source, candidate), times, strict=True):
            begun = time.perf_counter()
            session.run(feeds)
            if turn >= WARM_UPS:
                kept.append((time.perf_counter() - begun) * 1000)
    before, after = statistics.median(times[0]), statistics.median(times[1])
    return {"before_ms": round(before, 4), "after_ms": round(after, 4), "ratio": round(after / before, 4)}


def _kind(kind: str, name: str) -> str:
    if kind not in _NUMPY:
        raise InvalidManifest(f"model: the input {name} is of type {kind}, which a build cannot feed", field="model")
    return _NUMPY[kind]
