"""Named arrays in files: `.npz` without pickles, or safetensors. Calibration sets, evaluation sets, weights.

A set of samples is a file of arrays that have one row per sample along their first axis.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, TooLarge

from ..step import installed

Array = NDArray[Any]

MAX_BYTES = 8 << 30
_KINDS = {
    "BOOL": "?", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def read(path: Path, role: str) -> dict[str, Array]:
    """The arrays of a file, bfloat16 widened to float32; raises InvalidArgument or TooLarge with public words."""
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        return _read_npz(path, role)
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors(path, role)
    raise InvalidArgument(f"{role}: an .npz file or safetensors is needed; a pickle is never read", field=role)


def samples(path: Path, role: str) -> dict[str, Array]:
    """The arrays of a set of samples; raises InvalidArgument unless all have the same number of rows, at least one."""
    arrays = read(path, role)
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not rows or 0 in rows.values() or len(set(rows.values())) != 1:
        told = ", ".join(f"{name} has {count}" for name, count in sorted(rows.items())) or "it is empty"
        raise InvalidArgument(f"{role}: every array needs the same number of rows, at least one; {told}", field=role)
    return arrays


def batches(arrays: Mapping[str, Array], size: int, most: int | None = None) -> Iterator[dict[str, Array]]:
    """Slices of `size` rows, the last one smaller, of the first `most` rows."""
    rows = min(len(array) for array in arrays.values())
    for start in range(0, min(rows, rows if most is None else most), size):
        end = min(start + size, rows if most is None else most)
        yield {name: array[start:end] for name, array in arrays.items()}


def write(arrays: Mapping[str, Array], path: Path) -> Path:
    """Writes arrays as safetensors."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(path))
    return path


def _read_npz(path: Path, role: str) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise TooLarge(f"{role}: the arrays are larger than {MAX_BYTES >> 30} GiB", field=role)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise InvalidArgument(
            f"{role}: an .npz file of plain arrays is needed, without objects", field=role, detail=repr(error)
        ) from None


def _read_safetensors(path: Path, role: str) -> dict[str, Array]:
    installed("build", "safetensors")
    if path.stat().st_size > MAX_BYTES:
        raise TooLarge(f"{role}: the file is larger than {MAX_BYTES >> 30} GiB", field=role)
    from safetensors import SafetensorError, deserialize

    try:
        found = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InvalidArgument(f"{role}: the safetensors file is damaged", field=role, detail=str(error)) from None
    return {name: _array(name, value, role) for name, value in found}


def _array(name: str, value: Mapping[str, Any], role: str) -> Array:
    data, shape, kind = value["data"], value["shape"], value["dtype"]
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if kind not in _KINDS:
        raise InvalidArgument(f"{role}: {name[:60]} is of type {kind}, which is not taken here", field=role)
    return np.frombuffer(data, _KINDS[kind]).reshape(shape)
