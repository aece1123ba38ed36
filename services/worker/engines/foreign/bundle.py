"""The code of a `python` model, from its artifact into a folder: one `model.py`, or a zip that has one at its top.

What a zip says is not believed: no path that leaves the folder, no links, no more files and bytes than a model needs,
and no entry that unpacks to more than it says.
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Final

from penstock.errors import InvalidManifest

from ..engine import open_model

MODEL: Final = "model.py"
MAX_ENTRIES: Final = 10_000
MAX_BYTES: Final = 4 << 30
MAX_SOURCE: Final = 4 << 20
_PIECE: Final = 1 << 20


def unpack(artifact: Path, folder: Path) -> None:
    """Writes the code below `folder`; raises InvalidManifest with what is wrong with it."""
    with open_model(artifact) as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            source = file.read(MAX_SOURCE + 1)
            if len(source) > MAX_SOURCE or b"\0" in source:
                raise _wrong("this is neither a zip archive nor Python source")
            (folder / MODEL).write_bytes(source)
            return
        try:
            with zipfile.ZipFile(file) as archive:
                _extract(archive, folder)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError):
            raise _wrong("the archive is damaged") from None
    if not (folder / MODEL).is_file():
        raise _wrong(f"the archive has no {MODEL} at its top")


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise _wrong(f"the archive holds more than {MAX_ENTRIES} files or {MAX_BYTES >> 30} GiB")
    for entry in entries:
        parts = entry.filename.rstrip("/").split("/")
        mode = entry.external_attr >> 16
        unsafe = "\\" in entry.filename or any(part in ("", ".", "..") for part in parts)
        if unsafe or (stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)):
            raise _wrong(f"the archive's {entry.filename[:80]!r} is not a plain file below it")
        target = folder.joinpath(*parts)
        try:
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError:
            raise _wrong(f"the archive has {entry.filename[:80]!r} twice, or as a file and a folder") from None
        with os.fdopen(descriptor, "wb") as written, archive.open(entry) as source:
            left = entry.file_size
            while piece := source.read(_PIECE):
                left -= len(piece)
                if left < 0:
                    raise _wrong(f"the archive's {entry.filename[:80]!r} is larger than it says")
                written.write(piece)


def _wrong(text: str) -> InvalidManifest:
    return InvalidManifest(f"files.model: {text}", field="files.model")
