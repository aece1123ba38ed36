"""Models that are Python code: their publisher's, in an interpreter of the operator's, in a process of its own.

The code may do what the worker's user may do, so no worker runs it unless its operator says so by naming the
interpreter (setting `python_engine`). Here nothing of it is imported: it is unpacked into a folder, loaded by
foreign/served.py and spoken to through shared memory. When its process ends or takes too long, the batch fails and the
next one starts it anew.

The artifact is a `model.py`, or a zip with one at its top: `class Model` with `load(self, files, manifest)`, which may
be left out, and `run(self, inputs)`, dictionaries of numpy arrays by name. The manifest says what they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from penstock.errors import DeadlineExceeded, Internal
from penstock.v1 import manifest_pb2 as pb

from .contract import Promise, promised
from .engine import NOTHING, Array, Means, TensorInfo
from .foreign import bundle
from .foreign.process import ForeignProcess, Gone

LEAST_BYTES: Final = 1 << 30
"""Of data that a model's process may take, however little its manifest reserves: an interpreter with numpy is large."""

_PREFIX: Final = "penstock-python-"


def probe(means: Means = NOTHING) -> str | None:
    """None where the operator allows models of code, else how to allow them."""
    if not means.python:
        return "this worker runs no models that are Python code (setting python_engine names an interpreter for them)"
    if shutil.which(means.python) is None:
        return "the interpreter that python_engine names is not there"
    return None


def load(files: Mapping[str, Path], manifest: pb.Manifest, threads: int, means: Means = NOTHING) -> PythonEngine:
    """The loaded model. Raises InvalidManifest with what is wrong with its code."""
    swept()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        bundle.unpack(files["model"], folder)
        engine = PythonEngine(folder, files, manifest, means)
        engine.start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return engine


def swept() -> None:
    """Removes the folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError):
            if pid.isdecimal() and folder.stat().st_uid == os.geteuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder)


class PythonEngine:
    """A model whose code runs elsewhere. It has no word of its own on what it takes: the manifest is believed."""

    def __init__(self, folder: Path, files: Mapping[str, Path], manifest: pb.Manifest, means: Means) -> None:
        self._folder, self._means = folder, means
        self._files = {role: os.fspath(path) for role, path in files.items() if role != "model"}
        self._manifest = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
        self._most = max(LEAST_BYTES, 4 * manifest.resources.memory_bytes)
        promise: Promise = promised(manifest)
        self.inputs: Mapping[str, TensorInfo] = promise.fed
        self.outputs: Mapping[str, TensorInfo] = promise.wanted
        self._process: ForeignProcess | None = None

    def start(self) -> None:
        """Starts the process and has it load the model."""
        process = ForeignProcess(self._means.python, self._folder, self._most)
        try:
            process.load(self._files, self._manifest)
        except BaseException:
            process.close()
            raise
        self._process = process

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Engine.run. DeadlineExceeded after the operator's python_seconds."""
        if self._process is None:
            self.start()
        assert self._process is not None
        fed: dict[str, Any] = {name: (info, inputs[name]) for name, info in self.inputs.items()}
        try:
            given = self._process.run(fed, self.outputs, self._means.python_seconds)
        except Gone as gone:
            self._end()
            raise Internal("the model's process ended on this batch; it is started anew", detail=str(gone)) from None
        except DeadlineExceeded:
            self._end()
            raise
        for name, array in given.items():
            self._check(name, array)
        return given

    def close(self) -> None:
        """See Engine.close."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _check(self, name: str, array: Array) -> None:
        shape = self.outputs[name].shape or ()
        fits = len(shape) == array.ndim and all(
            size in (-1, have) for size, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise Internal(f"the model gave {name!r} the shape {list(array.shape)}, promised is {list(shape)}")
