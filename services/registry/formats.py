"""Does a model file look like the format that its manifest names? (pure)

A cheap look at the outside: magic numbers, the top level of an ONNX protobuf, the names inside an archive. It catches
the wrong file and refuses pickles early; what is inside is the engine's to check, in its own process.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Final

from penstock.errors import InvalidArgument
from penstock.plans import MAGIC, is_plan

Peek = Callable[[int, int], bytes]
"""(offset, length) → up to that many bytes of the file."""

FIELD: Final = "files.model"
_MAX_FIELDS: Final = 100_000
_MAX_SOURCE: Final = 4 << 20
_MAX_DIRECTORY: Final = 16 << 20

_MAGIC: Final = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG image"),
    (b"\x7fELF", "a program"),
    (b"GGUF", "a GGUF file"),
    (b"ftrt", "a TensorRT plan"),
    (b"ptrt", "a TensorRT plan"),
    (MAGIC, "a compiled plan"),
)
# ModelProto's fields by onnx.proto: number to wire type (0 varint, 2 length-delimited).
_ONNX: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_REQUIRED: Final = {1, 7, 8}  # ir_version, graph, opset_import


def check(format: str, size: int, peek: Peek) -> None:
    """Raises InvalidArgument when the model file cannot be of that format.

    `tensorrt` takes what a builder of ours signed, and ONNX for it to compile; never a bare plan, since loading one
    runs whatever its author put in. Whether the signature holds is for the worker to say, who has the keys.
    """
    head = peek(0, 16)
    if not head:
        raise _wrong("the file is empty")
    if format == "python":
        _check_python(head, size, peek)
        return
    if _is_pickle(head):
        raise _wrong("this is a pickle, which can run code when it is loaded and is never read; export the model")
    if format == "tensorrt" and is_plan(head):
        return
    if format == "torch-export":
        _check_torch_export(head, size, peek)
    else:
        _check_onnx(format, head, size, peek)


def _wrong(text: str) -> InvalidArgument:
    return InvalidArgument(f"{FIELD}: {text}", field=FIELD)


def _is_pickle(head: bytes) -> bool:
    """Protocols 2 to 5 begin with \\x80 and their number; older ones often open a list, a mapping or an import."""
    return (head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5) or head[:1] in (b"]", b"}", b"c")


def _looks_like(head: bytes) -> str:
    return next((what for magic, what in _MAGIC if head.startswith(magic)), "something else")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _check_onnx(format: str, head: bytes, size: int, peek: Peek) -> None:
    known = _looks_like(head)
    if known != "something else":
        raise _wrong(f"format {format} needs an ONNX model; this is {known}")
    seen: set[int] = set()
    offset = 0
    for _ in range(_MAX_FIELDS):
        if offset == size:
            break
        number, offset = _skip_field(offset, size, peek)
        seen.add(number)
    if offset != size or not seen >= _REQUIRED:
        raise _not_onnx()


def _skip_field(offset: int, size: int, peek: Peek) -> tuple[int, int]:
    """Number of the protobuf field at offset, and where the next one begins."""
    window = peek(offset, 20)
    tag, used = _varint(window, 0)
    number, wire = tag >> 3, tag & 7
    if number == 0 or _ONNX.get(number, wire) != wire:
        raise _not_onnx()
    value, after = _varint(window, used) if wire in (0, 2) else (0, used)
    end = offset + {0: after, 1: used + 8, 2: after + value, 5: used + 4}.get(wire, size + 1)
    if end > size:
        raise _wrong("the ONNX model is cut short or damaged; export it again")
    return number, end


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, start + index + 1
    raise _not_onnx()


def _not_onnx() -> InvalidArgument:
    return _wrong("this is not an ONNX model: it is no ModelProto with ir_version, graph and opset_import")


# --- torch.export -----------------------------------------------------------------------------------------------------


def _check_torch_export(head: bytes, size: int, peek: Peek) -> None:
    if not head.startswith(b"PK\x03\x04"):
        raise _wrong(
            f"format torch-export needs the .pt2 archive that torch.export.save writes; this is {_looks_like(head)}"
        )
    names = archive_names(size, peek)
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        raise _wrong(
            "this is an archive of torch.save or TorchScript, whose pickle no engine reads; use torch.export.save "
            "or publish TorchScript as format torchscript, which a build converts"
        )


# --- Python -----------------------------------------------------------------------------------------------------------


def _check_python(head: bytes, size: int, peek: Peek) -> None:
    """Source, or an archive with a model.py at its top. What the code does is for the operators of workers to allow."""
    if head.startswith(b"PK\x03\x04"):
        if "model.py" not in archive_names(size, peek):
            raise _wrong("format python needs a zip archive with a model.py at its top")
    elif size > _MAX_SOURCE or b"\0" in head or _looks_like(head) != "something else":
        raise _wrong(f"format python needs a model.py, or a zip archive that holds one; this is {_looks_like(head)}")


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_names(size: int, peek: Peek) -> list[str]:
    """Names in a zip's directory; nothing is unpacked."""
    _bound_directory(size, peek)
    try:
        with zipfile.ZipFile(io.BufferedReader(_Seekable(size, peek))) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError):
        raise _damaged() from None


def _bound_directory(size: int, peek: Peek) -> None:
    """Refuses a directory too large to read, before zipfile reads it."""
    start = max(0, size - 65_557)
    tail = peek(start, size - start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise _damaged()
    (length,) = struct.unpack_from("<I", tail, at + 12)
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if wide >= 0 and wide + 56 <= len(tail):
        (length,) = struct.unpack_from("<Q", tail, wide + 40)
    if length > _MAX_DIRECTORY:
        raise _wrong("the archive holds too many files")


def _damaged() -> InvalidArgument:
    return _wrong("the archive is cut short or damaged; export it again")


class _Seekable(io.RawIOBase):
    """A file to read, made of `peek`."""

    def __init__(self, size: int, peek: Peek) -> None:
        self._size, self._peek, self._at = size, peek, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._peek(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
