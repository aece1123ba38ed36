"""Which TensorRT builder is installed here, and what it compiles for. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Final

from penstock.errors import Unsupported

# Package → (distribution, its extra). In the order in which they are looked for.
PACKAGES: Final = {
    "tensorrt": ("tensorrt", ""),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "compile"),
}
RTX_ARCHITECTURES: Final = ("75", "80", "86", "89", "120", "121")
"""What TensorRT-RTX can be told to compile for, as numbers of `sm`, whatever device is there."""


def builder() -> tuple[str, str]:
    """Package and version of the builder that would be used; raises Unsupported where there is none."""
    for package, (distribution, _) in PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            try:
                return package, importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    raise Unsupported("no TensorRT builder is installed on this builder (install penstock[compile])")
