"""Tensors and parameters between JSON values and what the protocol's messages hold. Pure.

Inputs: `data` nested as `shape` says, or flat, row-major (OIP, "Tensor Data"). Numbers must be in range, integers must
be written as integers, BOOL as true and false, BYTES as strings (UTF-8). FP16 and BF16 travel as binary only, as in
Triton. Outputs are flat; what JSON cannot say (FP16, BF16, NaN, infinity, bytes that are not UTF-8) is refused with
the advice to ask for binary data, never changed silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from penstock.errors import Internal, InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.tensors import Buffer, Datatype, datatype, element_count, pack_bytes, unpack_bytes

MAX_PARAMETERS: Final = 256
BINARY_ONLY: Final = frozenset({"FP16", "BF16"})

_INT64: Final = range(-(1 << 63), 1 << 63)
_UINT64: Final = range(1 << 64)


def to_raw(name: str, shape: Sequence[int], data: object, field: str) -> bytes:
    """Raw bytes of a tensor whose `data` is JSON; raises InvalidArgument that names the element that is wrong."""
    row = datatype(name, field)
    if name in BINARY_ONLY:
        raise InvalidArgument(
            f"{field}: JSON cannot carry {name}; send the tensor with the binary tensor extension (binary_data_size)",
            field=field,
        )
    flat = _flatten(data, shape, field)
    _check_kinds(flat, row, field)
    if name == "BYTES":
        return pack_bytes([item.encode() for item in flat])
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=row.numpy)
    except OverflowError:
        raise InvalidArgument(f"{field}: a number is out of the range of {name}", field=field) from None
    if row.field.startswith("fp") and not np.isfinite(array).all():
        raise InvalidArgument(f"{field}: a number is out of the range of {name}", field=field)
    return array.tobytes()


def to_data(name: str, shape: Sequence[int], raw: Buffer, field: str) -> npt.NDArray[Any] | list[str]:
    """Flat values of a raw tensor: an array that orjson writes, or strings.

    Raises InvalidArgument for what JSON cannot carry, Internal when the bytes do not fit datatype and shape.
    """
    if name in BINARY_ONLY:
        raise _needs_binary(f"JSON cannot carry {name}", field)
    try:
        row, count = datatype(name, field), element_count(shape, field)
        if name == "BYTES":
            return [item.decode() for item in unpack_bytes(raw, count, field)]
    except UnicodeDecodeError:
        raise _needs_binary("an element is not UTF-8, which JSON strings must be", field) from None
    except InvalidArgument as error:
        raise Internal("the model answered with a broken tensor", field=field, detail=error.message) from None
    if len(raw) != count * row.size:
        detail = f"{len(raw)} bytes for {name} {list(shape)}"
        raise Internal("the model answered with a broken tensor", field=field, detail=detail)
    array = np.frombuffer(raw, dtype=row.numpy)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _needs_binary("an element is NaN or infinite, which JSON cannot carry", field)
    return array


def raw_of(output: oip.ModelInferResponse.InferOutputTensor) -> bytes:
    """Raw bytes of an output that came as typed contents; raises Internal when it came without any."""
    row = datatype(output.datatype)
    if not row.field:
        raise Internal(
            "the model answered without data", detail=f"{output.name}: {output.datatype} without raw contents"
        )
    values = getattr(output.contents, row.field)
    if row.name == "BYTES":
        return pack_bytes(values)
    return np.array(values, dtype=row.numpy).tobytes()


def parameters_in(document: object, field: str) -> dict[str, oip.InferParameter]:
    """A JSON object of booleans, numbers and strings as InferParameters; raises InvalidArgument for anything else."""
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidArgument(f"{field}: must be an object", field=field)
    if len(document) > MAX_PARAMETERS:
        raise InvalidArgument(f"{field}: more than {MAX_PARAMETERS} parameters", field=field)
    return {name: _parameter(value, f"{field}.{name[:64]}") for name, value in document.items()}


def parameters_out(parameters: Mapping[str, oip.InferParameter]) -> dict[str, bool | int | float | str]:
    """InferParameters as plain values; one without a value is left out."""
    plain: dict[str, bool | int | float | str] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            plain[name] = getattr(parameter, choice)
    return plain


def _parameter(value: object, field: str) -> oip.InferParameter:
    match value:
        case bool():
            return oip.InferParameter(bool_param=value)
        case int() if value in _INT64:
            return oip.InferParameter(int64_param=value)
        case int() if value in _UINT64:
            return oip.InferParameter(uint64_param=value)
        case float():
            return oip.InferParameter(double_param=value)
        case str():
            return oip.InferParameter(string_param=value)
    raise InvalidArgument(f"{field}: must be a boolean, a number or a string", field=field)


def _flatten(data: object, shape: Sequence[int], field: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidArgument(f"{field}: must be an array", field=field)
    count = element_count(shape, field)
    if list not in set(map(type, data)):
        if len(data) != count:
            raise InvalidArgument(f"{field}: {len(data)} elements; shape {list(shape)} asks for {count}", field=field)
        return data
    level: list[Any] = [data]
    for axis, dimension in enumerate(shape):
        if level and (set(map(type, level)) != {list} or set(map(len, level)) != {dimension}):
            message = f"{field}: the nesting does not follow shape {list(shape)} at dimension {axis}"
            raise InvalidArgument(message, field=field)
        level = list(chain.from_iterable(level))
    return level


def _check_kinds(flat: list[Any], row: Datatype, field: str) -> None:
    allowed, wording = _kinds(row)
    if set(map(type, flat)) <= allowed:
        return
    index = next(index for index, item in enumerate(flat) if type(item) not in allowed)
    raise InvalidArgument(f"{field}: element {index} must be {wording} for {row.name}", field=field)


def _kinds(row: Datatype) -> tuple[frozenset[type], str]:
    if row.name == "BOOL":
        return frozenset({bool}), "true or false"
    if row.name == "BYTES":
        return frozenset({str}), "a string"
    if row.field.startswith("fp"):
        return frozenset({int, float}), "a number"
    return frozenset({int}), "an integer within 64 bits"


def _needs_binary(why: str, field: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {why}; ask for the output with binary_data", field=field)
