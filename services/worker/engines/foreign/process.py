"""This side of the process that runs a model's own code: started, asked, killed and started again.

Nothing that it answers is believed: names, shapes and places of tensors are checked before a byte is read. It is in the
process group of the engine's process, so whatever ends that ends it too.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.errors import DeadlineExceeded, Internal, InvalidArgument, InvalidManifest
from penstock.tensors import element_count, pack_bytes, unpack_bytes

from ...host import arena as arenas
from ..engine import Array, OutOfMemory, TensorInfo, dtype, public

MAX_FRAME: Final = 1 << 20
MAX_ARENA: Final = 4 << 30
ALIGNMENT: Final = 64
_LENGTH: Final = struct.Struct("<I")
_SCRIPT: Final = Path(__file__).with_name("served.py")
_KEPT: Final = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


class Gone(Exception):
    """The process ended, or said something that it could not have meant; the reason is for the log."""


class ForeignProcess:
    """One running interpreter. `folder`: holds model.py, and is its home."""

    def __init__(self, interpreter: str, folder: Path, most_bytes: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        counts = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
        # -I: neither PYTHONPATH nor the user's packages, only what the operator put into this interpreter.
        command = [interpreter, "-I", "-B", str(_SCRIPT), str(theirs.fileno()), str(os.getpid()), str(folder)]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*command, str(most_bytes)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**kept, **counts, "HOME": str(folder), "TMPDIR": str(folder)},
                    cwd=folder,
                )
            except OSError as error:
                ours.close()
                raise Internal("the interpreter for python models does not start", detail=repr(error)) from None
        self._link = ours
        self._arenas: dict[str, arenas.Arena] = {}

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    def load(self, files: Mapping[str, str], manifest: Mapping[str, Any]) -> None:
        """Has it import the model and load it; raises InvalidManifest with what the code says."""
        try:
            answer = self._ask({"call": "load", "files": files, "manifest": manifest}, None)
        except Gone as gone:
            raise InvalidManifest(
                "files.model: the model's process ended while it loaded", field="files.model", detail=str(gone)
            ) from None
        if "error" in answer or "memory" in answer:
            words = public(str(answer.get("error", "it needs more memory than a python model may take")))
            raise InvalidManifest(f"files.model: {words}", field="files.model", detail=str(answer.get("detail", "")))

    def run(
        self, inputs: Mapping[str, tuple[TensorInfo, Array]], wanted: Mapping[str, TensorInfo], seconds: float
    ) -> dict[str, Array]:
        """What the model gives for these inputs. Raises Internal, OutOfMemory, DeadlineExceeded; Gone where the process
        must be started anew."""
        entries = self._written(inputs)
        call = {"call": "run", "inputs": entries, "outputs": {name: _kind(info) for name, info in wanted.items()}}
        answer = self._ask(call, seconds)
        if "need" in answer:
            self._arena("outputs", answer["need"])
            answer = self._ask({"call": "again"}, seconds)
        if "memory" in answer:
            raise OutOfMemory("the batch needs more memory than a python model may take")
        if "error" in answer:
            raise Internal("the model failed on these inputs", detail=f"{answer['error']}\n{answer.get('detail', '')}")
        return self._read(answer, wanted)

    def close(self) -> None:
        """Ends it, and frees what it shared. May be called again."""
        self._process.kill()
        self._process.wait()
        self._link.close()
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()

    def _written(self, inputs: Mapping[str, tuple[TensorInfo, Array]]) -> list[dict[str, Any]]:
        """Copies the inputs to shared memory; where each lies."""
        entries: list[dict[str, Any]] = []
        parts, offset = [], 0
        for name, (info, array) in inputs.items():
            if info.datatype == "BYTES":
                part: Any = pack_bytes(array.ravel().tolist())
            else:
                part = np.ascontiguousarray(array, dtype=dtype(info.datatype)).reshape(-1).view(np.uint8)
            size = len(part)
            entries.append(
                {"name": name, "dtype": _kind(info), "shape": list(array.shape), "offset": offset, "size": size}
            )
            parts.append(part)
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        view = self._arena("inputs", offset).view
        for entry, part in zip(entries, parts, strict=True):
            view[entry["offset"] : entry["offset"] + entry["size"]] = memoryview(part)
        return entries

    def _read(self, answer: Mapping[str, Any], wanted: Mapping[str, TensorInfo]) -> dict[str, Array]:
        view = self._arenas["outputs"].view if "outputs" in self._arenas else memoryview(b"")
        given: dict[str, Array] = {}
        try:
            for entry in answer["outputs"]:
                name, offset, size, shape = entry["name"], entry["offset"], entry["size"], tuple(entry["shape"])
                info = wanted[name]
                if min(offset, size, *shape, 0) < 0 or offset + size > len(view):
                    raise ValueError(entry)
                given[name] = _array(info, view[offset : offset + size], shape)
        except (KeyError, TypeError, ValueError, InvalidArgument) as error:
            raise Gone(f"its outputs are broken: {error!r}") from None
        if given.keys() != wanted.keys():
            raise Gone(f"it gave {sorted(given)}")
        return given

    def _arena(self, name: str, size: Any) -> arenas.Arena:
        """Shared memory of at least that size, known to both sides."""
        have = self._arenas.get(name)
        if have is not None and isinstance(size, int) and have.size >= size:
            return have
        if not isinstance(size, int) or not 0 <= size <= MAX_ARENA:
            raise Gone(f"it asks for {size!r} bytes")
        made, descriptor = arenas.create(max(1, size), writable=True)
        try:
            self._ask({"call": "arena", "name": name, "size": made.size}, None, descriptor)
        finally:
            os.close(descriptor)
        if have is not None:
            have.close()
        self._arenas[name] = made
        return made

    def _ask(self, call: Mapping[str, Any], seconds: float | None, *descriptors: int) -> dict[str, Any]:
        data = json.dumps(call).encode()
        if len(data) > MAX_FRAME:
            raise Internal("the model's manifest is too large for a python model")
        self._link.settimeout(seconds)
        try:
            socket.send_fds(self._link, [_LENGTH.pack(len(data))], descriptors)
            self._link.sendall(data)
            (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            answer = json.loads(self._exactly(size)) if size <= MAX_FRAME else None
        except TimeoutError:
            self._process.kill()
            raise DeadlineExceeded(f"the model took longer than {seconds:g} s for this batch") from None
        except (OSError, ValueError, EOFError) as error:
            self._process.kill()
            raise Gone(f"{error!r}, exit status {self._process.wait()}") from None
        if not isinstance(answer, dict):
            self._process.kill()
            raise Gone("its answer is no object, or too long")
        return answer

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._link.recv(size - len(data))
            if not piece:
                raise EOFError("it closed the link")
            data += piece
        return data


def _kind(info: TensorInfo) -> str:
    return "bytes" if info.datatype == "BYTES" else dtype(info.datatype).str


def _array(info: TensorInfo, view: memoryview, shape: tuple[int, ...]) -> Array:
    """A copy: the memory is the other process's to write to. Raises ValueError unless the bytes fit the shape."""
    count = element_count(shape)
    if info.datatype == "BYTES":
        items = np.empty(count, dtype=object)
        items[:] = unpack_bytes(bytes(view), count, info.name)
        return items.reshape(shape)
    return np.frombuffer(bytes(view), dtype=dtype(info.datatype)).reshape(shape)
