"""What both examples need to write a model folder: build it once, know when it is current, fill in its manifest.

A folder counts as built only once `finish` has written build.json there, which names every file with its sha256 and
the fingerprint of what they were made from. An interrupted or failed build leaves no build.json, so it is never taken
for a finished one, and a file that was changed or cut short afterwards makes the folder out of date.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

STAMP = "build.json"


class CheckFailed(Exception):
    """The model that was built does not do what it should, or what it is made from is not there."""


def fingerprint(files: Iterable[Path], distributions: Iterable[str]) -> str:
    """A sha256 over the contents of the files and the installed versions of the distributions."""
    lines = [f"{path.name} {_sha256(path)}" for path in files]
    try:
        lines += [f"{name} {importlib.metadata.version(name)}" for name in distributions]
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckFailed(f"{error.name} is not installed; examples/README.md says what a build needs") from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_current(folder: Path, made_from: str) -> bool:
    """Whether the folder holds every file of a finished build, unchanged, made from this fingerprint."""
    stamp = _read_stamp(folder)
    files = stamp.get("files", {})
    return (
        bool(files)
        and stamp.get("fingerprint") == made_from
        and all((folder / name).is_file() and _sha256(folder / name) == digest for name, digest in files.items())
    )


def begin(folder: Path) -> None:
    """Makes the folder ready for a build: there, without a stamp and without the files of the build before."""
    folder.mkdir(parents=True, exist_ok=True)
    stale = _read_stamp(folder).get("files", {})
    (folder / STAMP).unlink(missing_ok=True)
    for name in stale:
        # Only the last part: a stamp that somebody edited must not reach outside the folder.
        (folder / Path(name).name).unlink(missing_ok=True)


def finish(folder: Path, made_from: str, names: Iterable[str]) -> None:
    """Declares the build done; call it last, after every check."""
    files = {name: _sha256(folder / name) for name in names}
    write_json(folder / STAMP, {"fingerprint": made_from, "files": files})


def write_manifest(template: Path, target: Path, metrics: Mapping[str, float]) -> None:
    """Writes the template manifest with `lineage.metrics` filled in."""
    manifest: dict[str, Any] = yaml.safe_load(template.read_text(encoding="utf-8"))
    manifest["lineage"]["metrics"] = dict(metrics)
    # default_flow_style=None keeps small maps and lists on one line, as the template has them.
    text = yaml.safe_dump(manifest, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    target.write_text(text, encoding="utf-8")


def write_json(target: Path, value: object) -> None:
    """Writes a value as readable JSON with a newline at the end."""
    target.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and isinstance(stamp.get("files"), dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
