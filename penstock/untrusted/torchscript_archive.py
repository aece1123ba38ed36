"""A TorchScript archive, rewritten so that loading it runs nothing of it (pure; knows no torch).

`torch.jit.load` reads pickles by a reader of its own in C++, which makes tensors, plain values and the archive's own
classes and calls nothing of Python's. But it runs `__setstate__` of those classes, which is code of the archive's, in a
language that has `torch.save` and `torch.from_file`; and the archive's text is compiled. So an archive with such a
method is refused. What is left is loaded without running; the operators of what was compiled are for the step to look
at before anything runs.

The members that a module needs are written to a new archive, so that two readers of zip files cannot see two archives.
Tables of source lines (more pickles) and what else was put in are left out.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from typing import IO, Final

from penstock.errors import InvalidArgument

from .archives import DAMAGED

MAX_TEXT: Final = 64 << 20
MAX_MEMBERS: Final = 100_000
RUN_BY_LOADING: Final = b"__setstate__"
_PIECE: Final = 1 << 20

_NEEDED: Final = re.compile(r"data\.pkl|constants\.pkl|version|byteorder|(?:data|constants)/[0-9]+")
_CODE: Final = re.compile(r"code/(?:[A-Za-z0-9_]+/)*[A-Za-z0-9_]+\.py")
_LEFT_OUT: Final = re.compile(
    r"code/.*\.debug_pkl|\.data/.*|extra/.*|traced_inputs(?:/.*|\.pkl)|\.format_version|\.storage_alignment"
)
_TEXT_OF_PICKLES: Final = ("data.pkl", "constants.pkl")


def is_torchscript(names: Iterable[str]) -> bool:
    """Whether an archive of these names, folder in front, is TorchScript."""
    return any(
        name.partition("/")[2] == "constants.pkl" or name.partition("/")[2].startswith("code/") for name in names
    )


def rewrite(source: IO[bytes], target: IO[bytes]) -> None:
    """Writes the checked archive to `target`; raises InvalidArgument with a public reason where it is not plain."""
    try:
        with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
            text = 0
            for name, info in _members(archive).items():
                if _LEFT_OUT.fullmatch(name):
                    continue
                code = _CODE.fullmatch(name) is not None
                if not code and not _NEEDED.fullmatch(name):
                    raise InvalidArgument(f"the archive holds {name[:60]!r}, which is no part of a scripted module")
                if code or name in _TEXT_OF_PICKLES:
                    text += info.file_size
                    if text > MAX_TEXT:
                        raise InvalidArgument(f"the archive's code is larger than {MAX_TEXT >> 20} MiB")
                if code:
                    _refuse_what_loading_runs(archive.read(info))
                _copy(archive, info, name, made)
    except (*DAMAGED, ValueError) as error:
        raise InvalidArgument("the file is not a TorchScript archive, or it is damaged") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members without their common folder, each name once."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name in found or len(found) > MAX_MEMBERS:
            raise InvalidArgument("the archive names a member twice, or has too many")
        found[name] = info
    return found


def _refuse_what_loading_runs(code: bytes) -> None:
    if RUN_BY_LOADING in code:
        raise InvalidArgument(
            "a class of the archive has a __setstate__, which loading would run; export the module with "
            "torch.export.export and torch.export.save"
        )


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, made: zipfile.ZipFile) -> None:
    stored = zipfile.ZipInfo(f"model/{name}")
    stored.file_size = info.file_size
    with archive.open(info) as source, made.open(stored, "w") as target:
        while piece := source.read(_PIECE):
            target.write(piece)
