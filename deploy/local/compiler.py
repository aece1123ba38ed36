"""One run of mypyc, in a process of its own since it ends the process when something is wrong: `python -m
deploy.local.compiler FOLDER LEVEL`. Called by deploy/local/compiled.py."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from mypyc.build import mypycify
from setuptools import Distribution  # type: ignore[import-untyped]

from deploy.local.compiled import GROUPS, modules, path_of
from penstock.kit.compiled import LIST, ROOT


def main() -> int:
    """Compiles GROUPS into a folder, and writes down there what it has made."""
    folder, level = Path(sys.argv[1]), sys.argv[2]
    groups: list[tuple[list[str], str | None]] = [
        ([str(path_of(name).relative_to(ROOT)) for name in names], group) for group, names in GROUPS.items()
    ]
    with tempfile.TemporaryDirectory(prefix="penstock-mypyc-") as scratch:
        options = ["--config-file", "pyproject.toml", "--cache-dir", f"{scratch}/cache"]
        paths = [path for paths, _ in groups for path in paths]
        extensions = mypycify(
            [*options, *paths], opt_level=level, debug_level="0", separate=groups, target_dir=f"{scratch}/c"
        )
        distribution = Distribution({"name": "penstock-compiled", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(folder), f"{scratch}/o"
        command.parallel = os.cpu_count()
        command.ensure_finalized()
        command.run()
    files = {name: str(path) for path in _relative(folder) if (name := _module(path))}
    missing = set(modules()) - files.keys()
    assert not missing, missing
    (folder / LIST).write_text(json.dumps(files))
    return 0


def _relative(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in sorted(folder.rglob("*.so"))]


def _module(path: Path) -> str:
    """Of an extension's file: `penstock/wire/call.cpython-311-x86_64-linux-gnu.so`."""
    return ".".join(path.with_name(path.name.partition(".")[0]).parts)


if __name__ == "__main__":
    sys.exit(main())
