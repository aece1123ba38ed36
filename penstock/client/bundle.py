"""A model on the caller's disk: its manifest and the files that the manifest names.

Files lie beside the manifest or below it; a path that leaves the folder, directly or through a link, is refused, so
that a manifest from elsewhere cannot make `publish` upload a private key. A manifest in the folder of a Hugging Face
model or a SavedModel need not list its files (huggingface.py, savedmodel.py).
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.client import document, huggingface, savedmodel
from penstock.errors import InvalidArgument, InvalidManifest

MANIFESTS: Final = ("model.yaml", "model.yml", "model.json")
MAX_MANIFEST_BYTES: Final = 1 << 20
_FOLDERS: Final = {"huggingface": huggingface.files, "savedmodel": savedmodel.files}
"""Format → what finds its files in the manifest's folder."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """manifest: its path; text: its content; name: the model's name; files: path by role, in the manifest's order."""

    manifest: Path
    text: str
    name: str
    files: Mapping[str, Path]


def read(path: str | Path) -> Bundle:
    """Reads a manifest, or the one in a folder (model.yaml, model.yml or model.json).

    Only what an upload needs is checked here; the registry checks the rest. Raises InvalidManifest.
    """
    manifest = _find(Path(path))
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"{manifest}: a manifest is at most 1 MiB")
    try:
        text = manifest.read_text("utf-8")
    except UnicodeDecodeError:
        raise InvalidManifest(f"{manifest}: not UTF-8 text") from None
    content = _parse(text, manifest)
    find = _FOLDERS.get(str(content.get("format")))
    if find is not None and "files" not in content:
        content["files"] = find(manifest.parent)
        text = _with_files(text, content)
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise InvalidManifest("files: name the model's files by role, such as `model: model.onnx`", field="files")
    folder = manifest.resolve().parent
    return Bundle(
        manifest=manifest,
        text=text,
        name=str(content.get("name", "")),
        files={str(role): _inside(folder, str(role), name) for role, name in files.items()},
    )


def _with_files(text: str, content: Mapping[str, Any]) -> str:
    """The manifest's text with the files that were found: block YAML gets a line, everything else is JSON."""
    if text.lstrip().startswith("{"):
        return json.dumps(content, default=str)
    return f"{text}\nfiles: {json.dumps(content['files'])}\n"


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InvalidManifest(f"{path}: no such file or folder")
    found = [path / name for name in MANIFESTS if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InvalidManifest(f"{path}: no {' or '.join(MANIFESTS)} in this folder; `penstock init` writes one")
    raise InvalidManifest(f"{path}: more than one manifest; name the one to publish")


def _parse(text: str, manifest: Path) -> dict[str, Any]:
    try:
        content = document.parse(text, manifest)
    except InvalidArgument as error:
        raise InvalidManifest(error.message) from None
    if not isinstance(content, dict):
        raise InvalidManifest(f"{manifest}: a manifest is a mapping of fields")
    return content


def _inside(folder: Path, role: str, name: Any) -> Path:
    field = f"files.{role}"
    if not isinstance(name, str) or not name or "\0" in name:
        raise InvalidManifest(f"{field}: a path relative to the manifest, such as model.onnx", field=field)
    if Path(name).is_absolute():
        raise InvalidManifest(f"{field}: {name!r} is absolute; files lie beside the manifest", field=field)
    try:
        path = (folder / name).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError):
        raise InvalidManifest(f"{field}: no file {name!r} beside the manifest", field=field) from None
    if not path.is_relative_to(folder):
        raise InvalidManifest(f"{field}: {name!r} leads out of the manifest's folder", field=field)
    if not stat.S_ISREG(mode):
        raise InvalidManifest(f"{field}: {name!r} is not a file", field=field)
    return path
