"""The table of engines: which one runs a format. A new engine is one file with `probe` and `load`, and one row here.

An engine's library is imported inside its `load`, so asking the table costs nothing; the worker asks it too.
"""

from __future__ import annotations

from typing import Final

from penstock.errors import Unsupported

from . import onnx, python, tensorrt, torch
from .engine import EngineKind, Means

ENGINES: Final = (
    EngineKind("onnx", ("onnx",), onnx.probe, onnx.load),
    EngineKind("torch", ("torch-export",), torch.probe, torch.load),
    EngineKind("tensorrt", ("tensorrt",), tensorrt.probe, tensorrt.load),
    EngineKind("python", ("python",), python.probe, python.load),
)


def by_format(artifact_format: str) -> EngineKind:
    """The engine of a manifest's `format`; raises Unsupported where none runs it."""
    for kind in ENGINES:
        if artifact_format in kind.formats:
            return kind
    known = ", ".join(name for kind in ENGINES for name in kind.formats)
    raise Unsupported(f"no engine runs the format {artifact_format[:40]!r}; there are engines for {known}")


def probe_all(means: Means) -> tuple[list[str], dict[str, str]]:
    """Names of the engines that run on this machine with these means, and why each of the others does not."""
    reasons = {kind.name: kind.probe(means) for kind in ENGINES}
    return [name for name, reason in reasons.items() if reason is None], {
        name: reason for name, reason in reasons.items() if reason is not None
    }
