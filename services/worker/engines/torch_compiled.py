"""Programs that AOTInductor compiled (`torch._inductor.aoti_compile_and_package`): native code, so signed ones only.

A package lies beside the program that it was compiled from, in a role that begins with `plan`, in the container of
penstock/plans.py. The program says what the tensors are; the package runs in its place where it was made by this very
PyTorch, for this machine's instruction set or GPU, from this very file. Where none was, the program itself runs.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from penstock.plans import BUILDERS, PlanHeader

from . import signed
from .engine import Means, open_model

BUILDER: Final = BUILDERS["torch"]
_PIECE: Final = 1 << 20


def architecture(torch: Any, device: str) -> str:
    """What a package must have been compiled for: `sm90`, or `cpu-x86_64_avx512`."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return f"sm{major}{minor}"
    kind = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "_")
    return f"cpu-{platform.machine().lower()}_{kind}"


def fits(header: PlanHeader, source: str, version: str, target: str) -> bool:
    """Whether a package can run in the place of the program with that digest (pure)."""
    made_by = (header.builder, header.version, header.source) == (BUILDER, version, source)
    return made_by and header.runs_on(target)


def load(files: Mapping[str, Path], means: Means, torch: Any, device: str) -> Any:
    """The compiled program for this worker, to be called like the program; None where there is none.

    A worker that trusts no builder looks at none. Raises InvalidManifest for one that no trusted builder signed.
    """
    packages = {role: path for role, path in files.items() if role.startswith("plan")}
    if not packages or not means.plan_keys:
        return None
    source, target = digest(files["model"]), architecture(torch, device)
    for header, package in signed.plans(packages, means.plan_keys):
        if fits(header, source, str(torch.__version__), target):
            return _loaded(torch, package)
    return None


def digest(path: Path) -> str:
    """As in PlanHeader.source."""
    found = hashlib.sha256()
    with open_model(path) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"


def _loaded(torch: Any, package: memoryview) -> Any:
    """Loads what was verified, from anonymous memory: torch reads packages by path only."""
    from torch._inductor import aoti_load_package

    descriptor = os.memfd_create("package", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(package)
        return aoti_load_package(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
