"""ONNX Runtime, on the execution providers that it has here: see onnx_providers.py.

The file is opened once, without following a link at its end, scanned for tensors that lie outside it (onnx_scan.py) and
given to the runtime as bytes: what was checked is what is loaded, and the runtime never learns a path.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import Internal, InvalidArgument, InvalidManifest, PenstockError
from penstock.untrusted.onnx_scan import refuse_external
from penstock.v1 import manifest_pb2 as pb

from .contract import promised
from .engine import NOTHING, Array, DeviceLost, Means, OutOfMemory, TensorInfo, dtype, open_model, public
from .onnx_binding import Binding
from .onnx_providers import CPU, Provider, providers
from .trt.driver import STICKY

MAX_FILE = 2**31 - 1  # a protobuf message cannot be larger

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_FLOAT, _BFLOAT16 = 1, 16  # TensorProto.DataType
_CUDA_ERROR = re.compile(r"CUDA failure (\d{1,4}):")


def probe(means: Means = NOTHING) -> str | None:
    """None where ONNX Runtime is installed, else what to install. Does not import it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed on this worker (install penstock[worker-onnx])"
    return None


def load(files: Mapping[str, Path], manifest: pb.Manifest, threads: int, means: Means = NOTHING) -> OnnxEngine:
    """The model of role `model`. Raises InvalidManifest with a public reason where it cannot be loaded."""
    data = _read(files["model"])
    try:
        refuse_external(data)
    except InvalidArgument as error:
        raise InvalidManifest(f"files.model: {error.message}", field="files.model") from None

    import onnxruntime

    wanted = list(promised(manifest).wanted)
    chosen = providers(onnxruntime.get_available_providers(), manifest)
    session = _session(onnxruntime, data, threads, chosen)
    narrow = [arg.name for arg in session.get_outputs() if arg.name in wanted and arg.type == "tensor(bfloat16)"]
    if narrow:
        session = _session(onnxruntime, data + widened(narrow), threads, chosen)
    return OnnxEngine(session, onnxruntime.OrtValue, wanted, narrow)


def _session(onnxruntime: Any, data: bytes, threads: int, chosen: Sequence[Provider]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Several replicas share the cores: threads that wait by spinning would take them from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=[(name, dict(limits)) for name, limits in chosen])
    except Exception as error:  # the runtime's exceptions have no base class of their own
        raise InvalidManifest(
            f"files.model: ONNX Runtime cannot load it: {public(error)}", field="files.model", detail=str(error)
        ) from None


class OnnxEngine:
    """An inference session. Asks only for the outputs that are wanted, and leaves out what is not a tensor.

    narrow: outputs in bfloat16, which the runtime cannot hand to numpy; their float32 twins are asked for instead.
    """

    def __init__(self, session: Any, ort_value: Any, wanted: list[str], narrow: list[str]) -> None:
        self._session = session
        self._ort_value = ort_value
        twins = {_twin(name) for name in narrow}
        self.inputs = {arg.name: _info(arg) for arg in session.get_inputs()}
        self.outputs = {
            arg.name: _info(arg) for arg in session.get_outputs() if arg.type in _DATATYPES and arg.name not in twins
        }
        # Text never leaves the processor, and bfloat16 needs values of its own.
        plain = {"BYTES", "BF16"}.isdisjoint(info.datatype for info in (*self.inputs.values(), *self.outputs.values()))
        on_gpu = session.get_providers()[0] != CPU
        self._binding = Binding(session, ort_value, "cuda") if on_gpu and plain else None
        self._asked = {name: _twin(name) if name in narrow else name for name in wanted if name in self.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Engine.run."""
        fed = {name: self._fed(inputs[name], info) for name, info in self.inputs.items()}
        try:
            asked = list(self._asked.values())
            answer = self._binding.run(asked, fed) if self._binding else self._session.run(asked, fed)
        except MemoryError:
            raise
        except Exception as error:  # as in _session
            if type(error).__name__ == "InvalidArgument":
                raise InvalidArgument(f"the model refuses the inputs: {public(error)}", detail=str(error)) from None
            raise _failure(str(error)) from None
        return {
            name: _given(array, self.outputs[name].datatype) for name, array in zip(self._asked, answer, strict=True)
        }

    def close(self) -> None:
        """See Engine.close."""
        self._session = self._binding = None

    def _fed(self, array: Array, info: TensorInfo) -> Any:
        """What the runtime takes for an input: an array, strings, or for bfloat16 a value of its own."""
        if info.datatype == "BYTES":
            try:
                texts = [item.decode() for item in array.ravel().tolist()]
            except UnicodeDecodeError:
                raise InvalidArgument(f"{info.name}: the model takes text, and this is not UTF-8") from None
            return _objects(texts, array.shape)
        plain = np.ascontiguousarray(array, dtype=dtype(info.datatype))
        if info.datatype == "BF16":
            return self._ort_value.ortvalue_from_numpy_with_onnx_type(plain, _BFLOAT16)
        return plain


def _failure(words: str) -> PenstockError:
    """What the runtime's words mean; it has no class for any of this."""
    if (found := _CUDA_ERROR.search(words)) and int(found[1]) in STICKY:
        return DeviceLost(f"the device of this replica is lost (CUDA error {found[1]})", detail=words)
    if "CUDA failure 2:" in words or "Failed to allocate memory" in words:
        return OutOfMemory("the batch needs more memory than is free", detail=words)
    return Internal("the model failed on these inputs", detail=words)


def widened(names: list[str]) -> bytes:
    """Bytes that, appended to a serialised model, give each of these bfloat16 tensors a float32 twin as an output.

    Two serialised messages one after the other are their merge, so this is a ModelProto that holds a graph of Cast
    nodes. Every bfloat16 is exactly a float32, whose upper half is the bfloat16 again.
    """
    to_float = _field(1, b"to") + bytes([3 << 3, _FLOAT]) + b"\xa0\x01\x02"  # AttributeProto: name, i, type = INT
    value_type = _field(2, _field(1, bytes([1 << 3, _FLOAT])))  # ValueInfoProto.type: tensor_type.elem_type
    graph = b""
    for name in names:
        twin = _twin(name).encode()
        node = _field(1, name.encode()) + _field(2, twin) + _field(4, b"Cast") + _field(5, to_float)
        graph += _field(1, node) + _field(12, _field(1, twin) + value_type)
    return _field(7, graph)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a serialised message."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2, *length]) + content


def _twin(name: str) -> str:
    return f"{name}/as-float32"


def _read(path: Path) -> bytes:
    with open_model(path) as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidManifest("files.model: an ONNX file cannot be larger than 2 GiB", field="files.model")
    return data


def _info(arg: Any) -> TensorInfo:
    """A tensor of the session. The runtime shows a scalar and a tensor of unknown rank alike, as []."""
    shape = tuple(size if isinstance(size, int) else -1 for size in arg.shape)
    return TensorInfo(arg.name, _DATATYPES.get(arg.type, arg.type), shape or None)


def _given(array: Array, datatype: str) -> Array:
    if datatype == "BYTES":
        return _objects([text.encode(errors="surrogateescape") for text in array.ravel().tolist()], array.shape)
    if datatype == "BF16":
        return (np.ascontiguousarray(array).view("<u4") >> 16).astype("<u2")
    return array


def _objects(items: list[Any], shape: tuple[int, ...]) -> Array:
    made = np.empty(len(items), dtype=object)
    made[:] = items
    return made.reshape(shape)
