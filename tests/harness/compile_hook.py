"""What a worker's processes are made to do for a test, by a `sitecustomize.py` on their PYTHONPATH.

`compiles(folder, body)`: the process that compiles a plan runs `body` in place of the builder, with its `order`.
`device(folder, capability)`: the worker and its engines see a device that is none (fake_cuda), and engines load what
the real TensorRT-RTX has built through the fake runtime (fake_tensorrt); whoever compiles sees the real one.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parents[2])
_COMPILES: Final = """
import os
import sys
import time
from pathlib import Path

if "services.worker.plans.child" in sys.orig_argv:
    from penstock.compiling import compiler

    def build(order):
        Path("begun").touch()
{body}

    compiler.build = build
"""

_DEVICE: Final = """
import sys

ENGINE = "services.worker.host.child" in sys.orig_argv
if ENGINE or "services.worker" in sys.orig_argv:
    # Before the process has its own path: what is installed may be another checkout.
    sys.path.insert(0, {root!r})
    import importlib.metadata

    import pytest

    from tests.harness import fake_cuda, fake_tensorrt

    gpu = fake_cuda.Gpu(capability={capability})
    modules = {{}}
    if ENGINE:
        version = importlib.metadata.version("tensorrt-rtx-cu13-bindings")
        modules["tensorrt_rtx_bindings"] = fake_tensorrt.module(gpu, version, fake_tensorrt.add_one())
    fake_cuda.install(gpu, pytest.MonkeyPatch(), **modules)
"""


def compiles(folder: Path, body: str) -> Path:
    """Writes the hook; the folder belongs on PYTHONPATH."""
    return _written(folder, _COMPILES.format(body=indent(body, " " * 8)))


def device(folder: Path, capability: tuple[int, int] = (8, 9)) -> Path:
    """Writes the hook; the folder belongs on PYTHONPATH."""
    return _written(folder, _DEVICE.format(capability=capability, root=_ROOT))


def _written(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(f'"""See tests/harness/compile_hook.py."""\n{text}')
    return folder
