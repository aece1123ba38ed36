"""What a caller gives becomes an inference request (pure: no network, NumPy only where the caller brings it).

How each kind of input travels:

    numpy array                the datatype of its dtype, its own shape (object and string arrays are BYTES)
    Tensor                     exactly as it says
    str, bytes                 BYTES [1, 1]: a batch of one text or file
    list of str or bytes       BYTES [n, 1]: a batch of n
    list of numbers or bools   the datatype that the model's metadata names, in the shape of its nesting; where exactly
                               the batch dimension is missing, a batch of one. Only this kind needs metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from penstock import names, tensors
from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip

if TYPE_CHECKING:
    import numpy.typing as npt

Input: TypeAlias = "npt.NDArray[Any] | Tensor | str | bytes | Sequence[Any]"
Inputs: TypeAlias = "Mapping[str, Input]"
Parameter: TypeAlias = bool | int | float | str
Version: TypeAlias = int | str | None
Specs: TypeAlias = Mapping[str, oip.ModelMetadataResponse.TensorMetadata]

STRUCT_FORMATS: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_BATCH_OF_ONE: Final = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor without NumPy: datatype of the protocol, shape, raw bytes (little-endian, row-major; see tensors.py)."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, datatype: str, values: Any, shape: Sequence[int] | None = None) -> Tensor:
        """A tensor of nested or flat lists, or of an array; `shape` defaults to the nesting.

        The way to send BF16 (of floats or a float array) and to send texts in a shape of one's own. Raises
        InvalidArgument for ragged lists, values that do not fit the datatype and a shape that does not fit them.
        """
        if hasattr(values, "tolist"):
            shape = tuple(values.shape) if shape is None else shape
            values = values.tolist()
        flat = list(_flatten(values)) if _is_list(values) else [values]
        nesting = nesting_of(values) if shape is None else tuple(shape)
        if tensors.element_count(nesting) != len(flat):
            raise InvalidArgument(f"{len(flat)} values do not fill the shape {list(nesting)}", field="shape")
        return cls(datatype, nesting, pack(datatype, flat))


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request of a stream; fields as the arguments of `AsyncClient.infer`."""

    model: str
    inputs: Inputs
    version: Version = None
    outputs: Sequence[str] | None = None
    parameters: Mapping[str, Parameter] | None = None
    request_id: str | None = None
    priority: int | None = None


def version_text(version: Version) -> str:
    """The version as the wire carries it: empty for the default; raises InvalidArgument for what cannot be one."""
    if version is None or version == "":
        return ""
    if isinstance(version, bool) or not isinstance(version, int | str):
        raise InvalidArgument(f"version: {version!r} is neither an integer nor an alias", field="version")
    return str(names.version_or_alias(str(version)))


def needs_metadata(inputs: Inputs) -> bool:
    """Whether some input is a list of numbers, whose datatype only the model knows."""
    return any(_is_list(value) and not _is_text_list(value) for value in inputs.values())


def build(request: InferRequest, specs: Specs | None = None) -> oip.ModelInferRequest:
    """The message of a request; raises InvalidArgument where an input cannot be a tensor.

    specs: the model's inputs by name; required when `needs_metadata(request.inputs)`.
    """
    message = oip.ModelInferRequest(
        model_name=names.model(request.model, "model"),
        model_version=version_text(request.version),
        id=request.request_id or "",
    )
    for name, parameter in (request.parameters or {}).items():
        set_parameter(message.parameters[name], name, parameter)
    if request.priority is not None:
        message.parameters["priority"].uint64_param = request.priority
    for name in request.outputs or ():
        message.outputs.add(name=name)
    for name, value in request.inputs.items():
        tensor = to_tensor(name, value, specs)
        message.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.data)
    return message


def to_tensor(name: str, value: Input, specs: Specs | None = None) -> Tensor:
    """One input as a tensor, by the table above."""
    field = f"inputs.{name}"
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str | bytes | bytearray | memoryview):
        return _texts([value], field)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        datatype, shape, data = tensors.from_numpy(cast("npt.NDArray[Any]", value))
        return Tensor(datatype, tuple(shape), data)
    if not _is_list(value):
        raise InvalidArgument(f"{field}: {type(value).__name__} is not a tensor, text, bytes or list", field=field)
    if _is_text_list(value):
        return _texts(value, field)
    if specs is None or name not in specs:
        known = ", ".join(specs) if specs else "none"
        raise InvalidArgument(f"{field}: the model has no input of that name; it has: {known}", field=field)
    return _numbers(value, specs[name], field)


def set_parameter(target: oip.InferParameter, name: str, value: Parameter) -> None:
    """Fills a request parameter by the value's type; raises InvalidArgument for types the protocol lacks."""
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    elif isinstance(value, str):
        target.string_param = value
    else:
        field = f"parameters.{name}"
        raise InvalidArgument(f"{field}: use a bool, int, float or str, not {type(value).__name__}", field=field)


def parameter_value(parameter: oip.InferParameter) -> Parameter | None:
    """The value of a parameter; None when it is not set."""
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None


def pack(datatype: str, flat: Sequence[Any]) -> bytes:
    """Raw bytes of flat values; raises InvalidArgument for values that the datatype cannot hold."""
    tensors.datatype(datatype)
    if datatype == "BYTES":
        return tensors.pack_bytes([_as_bytes(item, "data") for item in flat])
    try:
        if datatype == "BOOL" and not all(value in (0, 1) for value in flat):
            raise ValueError("use true or false")
        if datatype == "BF16":
            return b"".join(_bf16(float(value)) for value in flat)
        return struct.pack(f"<{len(flat)}{STRUCT_FORMATS[datatype]}", *flat)
    except (struct.error, OverflowError, TypeError, ValueError) as error:
        raise InvalidArgument(f"a value does not fit {datatype}: {error}", field="data") from None


def nesting_of(values: Any) -> tuple[int, ...]:
    """Shape of nested lists; raises InvalidArgument when they are ragged."""
    if not _is_list(values):
        return ()
    shapes = {nesting_of(item) for item in values}
    if len(shapes) > 1:
        raise InvalidArgument("the lists are ragged: every row must have the same length", field="data")
    return (len(values), *(shapes.pop() if shapes else ()))


def _numbers(value: Sequence[Any], spec: oip.ModelMetadataResponse.TensorMetadata, field: str) -> Tensor:
    try:
        tensor = Tensor.of(spec.datatype, value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{field}: {error.message}", field=field) from None
    if len(tensor.shape) == len(spec.shape) - 1 and spec.shape[0] == -1:
        return Tensor(tensor.datatype, (_BATCH_OF_ONE, *tensor.shape), tensor.data)
    return tensor


def _texts(values: Sequence[Any], field: str) -> Tensor:
    items = [_as_bytes(value, field) for value in values]
    return Tensor("BYTES", (len(items), 1), tensors.pack_bytes(items))


def _as_bytes(value: Any, field: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise InvalidArgument(f"{field}: {type(value).__name__} is neither text nor bytes", field=field)


def _bf16(value: float) -> bytes:
    """Upper half of the float32, rounded to nearest even; NaN stays NaN."""
    if value != value:
        return b"\xc0\x7f"
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_text_list(value: Any) -> bool:
    return len(value) > 0 and all(isinstance(item, str | bytes | bytearray | memoryview) for item in value)


def _flatten(values: Any) -> Iterator[Any]:
    for value in values:
        if _is_list(value):
            yield from _flatten(value)
        else:
            yield value
