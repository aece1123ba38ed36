"""The process of a `python` model: `<interpreter> -I served.py <descriptor> <parent's pid> <folder> <bytes>`.

Runs in the operator's interpreter, which may have nothing of Penstock's: the standard library of Python 3.10 and numpy
are all that it needs. The folder holds model.py, whose class `Model` may have `load(files, manifest)` and must have
`run(inputs)`: dictionaries of numpy arrays by name in and out. It ends with its parent, leaves no core file, and may
take so many bytes of data.

Frames on the socket: 4 bytes little-endian, then JSON. Tensors lie in shared memory whose descriptors come with the
frames that announce them. BYTES are, in memory as on the wire, 4 bytes of length and the bytes, one after another.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from typing import Any

import numpy as np

MAX_FRAME = 1 << 20
ALIGNMENT = 64
LENGTH = struct.Struct("<I")


class Served:
    """The loop and what it holds."""

    def __init__(self, link: socket.socket, folder: str) -> None:
        self._link = link
        self._folder = folder
        self._maps: dict[str, mmap.mmap] = {}
        self._model: Any = None
        self._kept: Any = None

    def serve(self) -> None:
        """Answers until the other end closes."""
        while True:
            asked, descriptors = self._frame()
            if asked is None:
                return
            try:
                answer = self._answer(asked, descriptors)
            except MemoryError:
                answer = {"memory": True}
            except Exception as error:
                words = f"{type(error).__name__}: {error}"
                answer = {"error": words[:2000], "detail": traceback.format_exc()[-6000:]}
            data = json.dumps(answer).encode()
            self._link.sendall(LENGTH.pack(len(data)) + data)

    def _answer(self, asked: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if asked["call"] == "arena":
            old = self._maps.get(asked["name"])
            self._maps[asked["name"]] = mmap.mmap(descriptors[0], asked["size"])
            os.close(descriptors[0])
            if old is not None:
                # Where the model kept a view of its inputs, the memory goes with that.
                with suppress(BufferError):
                    old.close()
            return {}
        if asked["call"] == "load":
            sys.path.insert(0, self._folder)
            model = importlib.import_module("model").Model()
            if hasattr(model, "load"):
                model.load(asked["files"], asked["manifest"])
            self._model = model
            return {}
        if asked["call"] == "run":
            given = self._model.run({entry["name"]: self._array(entry) for entry in asked["inputs"]})
            self._kept = self._laid_out(given, asked["outputs"])
        outputs, parts, size = self._kept
        arena = self._maps.get("outputs")
        if arena is None or len(arena) < size:
            return {"need": size}
        for entry, part in zip(outputs, parts, strict=True):
            arena[entry["offset"] : entry["offset"] + entry["size"]] = part
        self._kept = None
        return {"outputs": outputs}

    def _array(self, entry: dict[str, Any]) -> Any:
        view = memoryview(self._maps["inputs"])[entry["offset"] : entry["offset"] + entry["size"]]
        if entry["dtype"] != "bytes":
            return np.frombuffer(view, np.dtype(entry["dtype"])).reshape(entry["shape"])
        items, at = [], 0
        while at < len(view):
            (size,) = LENGTH.unpack_from(view, at)
            items.append(bytes(view[at + 4 : at + 4 + size]))
            at += 4 + size
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array.reshape(entry["shape"])

    def _laid_out(self, given: dict[str, Any], wanted: dict[str, str]) -> tuple[list[Any], list[bytes], int]:
        outputs: list[Any] = []
        parts: list[bytes] = []
        offset = 0
        for name, dtype in wanted.items():
            if name not in given:
                raise KeyError(f"run gave no {name!r}; it gave {sorted(map(str, given))}")
            array = np.asarray(given[name], dtype=object if dtype == "bytes" else np.dtype(dtype))
            if dtype == "bytes":
                items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
                part = b"".join(LENGTH.pack(len(item)) + item for item in items)
            else:
                part = array.tobytes()
            outputs.append({"name": name, "shape": list(array.shape), "offset": offset, "size": len(part)})
            parts.append(part)
            offset += -(-len(part) // ALIGNMENT) * ALIGNMENT
        return outputs, parts, offset

    def _frame(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message and the descriptors that came with it; (None, []) at the end."""
        header, descriptors = self._exactly(LENGTH.size)
        if header is None:
            return None, []
        (size,) = LENGTH.unpack(header)
        if size > MAX_FRAME:
            return None, descriptors
        body, more = self._exactly(size)
        return (None if body is None else json.loads(body)), descriptors + more

    def _exactly(self, size: int) -> tuple[bytes | None, list[int]]:
        data = b""
        found: list[int] = []
        while len(data) < size:
            piece, descriptors, _, _ = socket.recv_fds(self._link, size - len(data), 4)
            if not piece:
                return None, found
            data += piece
            found += descriptors
        return data, found


def confine(parent: int, most: int) -> None:
    """Ties this process to its parent and limits what it takes."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if most:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> None:
    """Runs until the other end closes."""
    confine(int(sys.argv[2]), int(sys.argv[4]))
    with socket.socket(fileno=int(sys.argv[1])) as link:
        Served(link, sys.argv[3]).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
