"""Finds compiled modules in place of interpreted ones, where somebody has built them (`make compiled`).

What was built lies in a folder that is called as the fingerprint of the sources, the Python and the machine that it was
built from. So what was built from other sources is never found, and with every edit the interpreted code runs again. To
be called before anything that is listed is imported; this module itself needs nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "build" / "compiled"
"""Where `make compiled` builds: beside the sources, so whoever can write there can change these as well."""
VARIABLE: Final = "PENSTOCK_COMPILED"
"""Of the environment: `off`, or another folder than FOLDER."""
LIST: Final = "modules.json"
"""In the folder of a fingerprint: files by module. Written last."""
SOURCES: Final = ("penstock", "services/gateway", "services/worker")
"""What compiled code knows the insides of: constants, layouts, signatures."""


@dataclass(frozen=True, slots=True)
class Found:
    """Which code runs. reason: why it is interpreted, empty where it is compiled."""

    compiled: bool
    reason: str = ""

    def __str__(self) -> str:
        return "compiled" if self.compiled else f"interpreted ({self.reason})"


class _Finder(MetaPathFinder):
    """Answers for the modules that were built."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, str(file)))


def activate(folder: Path | None = None, *, root: Path = ROOT) -> Found:
    """From now on imports find what was built from these very sources. folder: where it lies in a folder of its
    fingerprint; by default what the environment says."""
    files, code = _look(folder or _folder(), root)
    early = sorted(files.keys() & sys.modules.keys())
    if early:
        return Found(False, f"{early[0]} was imported too early")
    if code.compiled:
        sys.meta_path.insert(0, _Finder(files))
    return code


def look() -> Found:
    """What a process would find that started now."""
    return _look(_folder(), ROOT)[1]


def tell(code: Found) -> None:
    """Says in the log which code runs."""
    from penstock.kit.log import get_logger  # late: what it needs is not to be loaded before `activate`

    get_logger().info("code", compiled=code.compiled, reason=code.reason)


def fingerprint(root: Path = ROOT) -> str:
    """Of the sources, this Python and this machine; hexadecimal."""
    digest = hashlib.sha256(f"{sys.version} {sys.implementation.cache_tag} {platform.machine()}".encode())
    for part in SOURCES:
        for path in sorted((root / part).rglob("*.py")):
            text = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(text)} ".encode())
            digest.update(text)
    return digest.hexdigest()[:32]


def _folder() -> Path | None:
    said = os.environ.get(VARIABLE, "")
    if said == "off":
        return None
    return Path(said) if said else FOLDER


def _look(folder: Path | None, root: Path) -> tuple[Mapping[str, Path], Found]:
    """Files by module, none unless they are those of these sources."""
    if folder is None:
        return {}, Found(False, f"{VARIABLE} is off")
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}, Found(False, "nothing was compiled")
    built = folder / fingerprint(root)
    if not (built / LIST).is_file():
        return {}, Found(False, "the sources are not those that were compiled")
    files = json.loads((built / LIST).read_text())
    return {name: built / file for name, file in files.items()}, Found(True)
