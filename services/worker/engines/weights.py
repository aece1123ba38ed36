"""Weights from safetensors files, without a copy: the arrays are the page cache itself, and reads go on in parallel.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of a JSON header, the header with dtype,
shape and place of each tensor, then the tensors' bytes, without gaps or overlaps. It holds no code, and nothing of the
header is believed before it was checked. A large model is several files, each an artifact of its own in a role of its
own (`weights-1`, `weights-2`, ...): the worker fetches and verifies each alone, and a version that changes one of them
brings only that one.

A file is mapped, so replicas of one version on one worker share its pages, and nothing is allocated for it. That is
only for files of the worker's own cache: whoever cut one short would end the process that maps it. Pages that are not
there yet are asked for in pieces, by threads, before the mapping waits for them in order.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.errors import InvalidManifest

from .engine import Array, dtype, open_model

MAX_HEADER: Final = 100 << 20
"""Bytes of the header, as the format's own library allows."""
MAX_TENSORS: Final = 1_000_000
PIECE: Final = 16 << 20
"""Bytes that are asked for at once: large enough that Python's part in it costs nothing, small enough to share out."""

_DATATYPES: Final = {
    "BOOL": "BOOL", "U8": "UINT8", "I8": "INT8", "U16": "UINT16", "I16": "INT16", "U32": "UINT32", "I32": "INT32",
    "U64": "UINT64", "I64": "INT64", "F16": "FP16", "BF16": "BF16", "F32": "FP32", "F64": "FP64",
}  # fmt: skip
_LENGTH: Final = struct.Struct("<Q")
_ROLE: Final = re.compile(r"weights(?:-[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file. offset: from the end of the header, bytes; datatype: of the protocol."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def shards(files: Mapping[str, Path]) -> list[Path]:
    """The weights among a version's files, in the order of their numbers."""
    roles = sorted((role for role in files if _ROLE.fullmatch(role)), key=lambda role: int(role.partition("-")[2] or 0))
    return [files[role] for role in roles]


def parse(header: bytes, room: int) -> list[Place]:
    """The tensors of a header, by their place in the file (pure).

    room: bytes after the header. Raises InvalidManifest unless they fill it exactly, one after another.
    """
    try:
        document = json.loads(header)
        document.pop("__metadata__", None)
        if len(document) > MAX_TENSORS:
            raise ValueError("too many tensors")
        places = sorted((_place(name, entry) for name, entry in document.items()), key=lambda place: place.offset)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _wrong("its header does not say what a safetensors header says") from None
    end = 0
    for place in places:
        if place.offset != end:
            raise _wrong(f"the tensor {place.name[:80]!r} does not begin where the one before it ends")
        end += place.size
    if end != room:
        raise _wrong("it is cut short, or holds more than its header says")
    return places


def load(paths: Iterable[Path], threads: int = 8) -> dict[str, Array]:
    """Every tensor of some files by name, BF16 as bits; read-only views of one mapping per file.

    Raises InvalidManifest where a file is no safetensors file, or two of them have the same tensor.
    """
    found: dict[str, Array] = {}
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="weights") as pool:
        for path in paths:
            for name, array in _loaded(path, pool).items():
                if name in found:
                    raise _wrong(f"two files have the tensor {name[:80]!r}")
                found[name] = array
    return found


def _loaded(path: Path, pool: ThreadPoolExecutor) -> dict[str, Array]:
    with open_model(path) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, _LENGTH.size, 0)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
        start = _LENGTH.size + length
        if length > MAX_HEADER or start > size:
            raise _wrong("this is no safetensors file, or it is cut short")
        places = parse(os.pread(descriptor, length, _LENGTH.size), size - start)
        wanted = [
            pool.submit(os.posix_fadvise, descriptor, at, PIECE, os.POSIX_FADV_WILLNEED) for at in range(0, size, PIECE)
        ]
        for job in wanted:
            job.result()
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    view = memoryview(memory)[start:]
    return {place.name: _array(view, place) for place in places}


def _array(view: memoryview, place: Place) -> Array:
    array = np.frombuffer(view[place.offset : place.offset + place.size], dtype=dtype(place.datatype))
    if not array.flags.aligned:  # a header whose writer did not fill it up to eight bytes
        array = array.copy()
        array.flags.writeable = False
    return array.reshape(place.shape)


def _place(name: str, entry: Mapping[str, Any]) -> Place:
    first, last = entry["data_offsets"]
    shape, datatype = tuple(entry["shape"]), _DATATYPES[entry["dtype"]]
    if any(type(number) is not int or number < 0 for number in (first, last, *shape)) or len(shape) > 32:
        raise ValueError(name)
    if last - first != prod(shape) * dtype(datatype).itemsize:
        raise ValueError(name)
    return Place(name, datatype, shape, first, last - first)


def _wrong(text: str) -> InvalidManifest:
    return InvalidManifest(f"files.weights: {text}", field="files.weights")
