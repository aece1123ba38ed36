"""Tensors as the Open Inference Protocol carries them: datatypes, sizes, raw bytes.

Raw form: little-endian, row-major, no padding; BOOL is one byte; a BYTES element is a 4-byte little-endian length and
then its bytes. NumPy is imported by the two functions that need it, so that the SDK stands without it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from penstock.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Buffer = bytes | bytearray | memoryview

MAX_ELEMENTS: Final = 1 << 40
MAX_RANK: Final = 32
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype of the protocol.

    size: bytes per element, 0 for BYTES; field: its list in InferTensorContents, empty where only raw goes;
    numpy: dtype string, empty where numpy has none (BF16 is shown as float32).
    """

    name: str
    size: int
    field: str
    numpy: str


DATATYPES: Final[dict[str, Datatype]] = {
    row.name: row
    for row in (
        Datatype("BOOL", 1, "bool_contents", "?"),
        Datatype("UINT8", 1, "uint_contents", "<u1"),
        Datatype("UINT16", 2, "uint_contents", "<u2"),
        Datatype("UINT32", 4, "uint_contents", "<u4"),
        Datatype("UINT64", 8, "uint64_contents", "<u8"),
        Datatype("INT8", 1, "int_contents", "<i1"),
        Datatype("INT16", 2, "int_contents", "<i2"),
        Datatype("INT32", 4, "int_contents", "<i4"),
        Datatype("INT64", 8, "int64_contents", "<i8"),
        Datatype("FP16", 2, "", "<f2"),
        Datatype("BF16", 2, "", ""),
        Datatype("FP32", 4, "fp32_contents", "<f4"),
        Datatype("FP64", 8, "fp64_contents", "<f8"),
        Datatype("BYTES", 0, "bytes_contents", "O"),
    )
}

_BY_NUMPY = {row.numpy.lstrip("<"): row.name for row in DATATYPES.values() if row.numpy and row.name != "BYTES"}


def datatype(name: str, field: str = "datatype") -> Datatype:
    """The row of that datatype; raises InvalidArgument for a name that the protocol does not know."""
    try:
        return DATATYPES[name]
    except KeyError:
        known = ", ".join(DATATYPES)
        raise InvalidArgument(f"{field}: {name[:40]!r} is not a datatype; use one of {known}", field=field) from None


def element_count(shape: Sequence[int], field: str = "shape") -> int:
    """Number of elements; raises InvalidArgument for a negative dimension, more than 2**40 elements or 32 dimensions.

    Zeros do not hide what is beside them: numpy too refuses [0, 2**62, 4].
    """
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"{field}: more than {MAX_RANK} dimensions", field=field)
    count = extent = 1
    for dimension in shape:
        if dimension < 0:
            raise InvalidArgument(f"{field}: dimension {dimension} is negative", field=field)
        count *= dimension
        extent *= dimension or 1
        if extent > MAX_ELEMENTS:
            raise InvalidArgument(f"{field}: more than 2**40 elements", field=field)
    return count


def pack_bytes(items: Sequence[bytes]) -> bytes:
    """Raw form of a BYTES tensor."""
    parts: list[bytes] = []
    for item in items:
        parts.append(_LENGTH.pack(len(item)))
        parts.append(item)
    return b"".join(parts)


def unpack_bytes(buffer: Buffer, count: int, field: str = "data") -> list[bytes]:
    """The `count` elements of a raw BYTES tensor; raises InvalidArgument when the buffer holds anything else."""
    items: list[bytes] = []
    view = memoryview(buffer).cast("B")
    offset, end = 0, len(view)
    while offset < end:
        if len(items) == count:
            raise InvalidArgument(f"{field}: more than the {count} BYTES elements of its shape", field=field)
        if end - offset < 4:
            raise InvalidArgument(f"{field}: a BYTES element is cut short", field=field)
        (length,) = _LENGTH.unpack_from(view, offset)
        offset += 4
        if end - offset < length:
            raise InvalidArgument(f"{field}: a BYTES element is cut short", field=field)
        items.append(bytes(view[offset : offset + length]))
        offset += length
    if len(items) != count:
        raise InvalidArgument(f"{field}: {len(items)} BYTES elements, its shape asks for {count}", field=field)
    return items


def to_numpy(name: str, shape: Sequence[int], buffer: Buffer) -> npt.NDArray[Any]:
    """The tensor as an array: a read-only view where memory allows it, bytes objects for BYTES, float32 for BF16.

    Raises InvalidArgument when the buffer's size does not fit datatype and shape.
    """
    import numpy as np

    row, count = datatype(name), element_count(shape)
    if row.name == "BYTES":
        # Before anything is allocated by the shape, which is the caller's claim.
        items = unpack_bytes(buffer, count)
        array = np.empty(count, dtype=object)
        array[:] = items
        return array.reshape(shape)
    size = memoryview(buffer).nbytes
    if size != count * row.size:
        raise InvalidArgument(f"{size} bytes of data; {name} {list(shape)} takes {count * row.size}")
    if row.name == "BF16":
        wide = np.frombuffer(buffer, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    return np.frombuffer(buffer, dtype=row.numpy).reshape(shape)


def from_numpy(array: npt.NDArray[Any], name: str | None = None) -> tuple[str, list[int], bytes]:
    """Datatype, shape and raw bytes of an array; `name` chooses the datatype where the dtype leaves a choice (BF16).

    Strings and bytes objects become BYTES, strings as UTF-8. Raises InvalidArgument for a dtype without a datatype, and
    for values that an integer or BOOL datatype cannot hold.
    """
    import numpy as np

    shape = [int(dimension) for dimension in array.shape]
    chosen = name or datatype_of(array.dtype)
    if chosen == "BYTES":
        return chosen, shape, pack_bytes([_bytes_of(item) for item in array.ravel().tolist()])
    if chosen == "BF16":
        return chosen, shape, _to_bf16(array).tobytes()
    with np.errstate(invalid="ignore", over="ignore"):
        exact = np.ascontiguousarray(array, dtype=datatype(chosen).numpy)
    if exact.dtype.kind in "biu" and exact.dtype != array.dtype and not np.array_equal(exact, np.atleast_1d(array)):
        raise InvalidArgument(f"the array of {array.dtype} has values that {chosen} cannot hold; convert it first")
    return chosen, shape, exact.tobytes()


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype; raises InvalidArgument where there is none."""
    if dtype.kind in "OSU":
        return "BYTES"
    try:
        return _BY_NUMPY[dtype.kind + str(dtype.itemsize) if dtype.kind != "b" else "?"]
    except KeyError:
        raise InvalidArgument(f"dtype {dtype} has no datatype in the protocol; convert the array first") from None


def _bytes_of(item: object) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    # bytes(7) would be seven zeros.
    raise InvalidArgument(f"an element of a BYTES tensor must be str or bytes, not {type(item).__name__}")


def _to_bf16(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Upper halves of float32, rounded to nearest even; NaN stays NaN."""
    import numpy as np

    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2")
