"""System shared memory by name: what a region is, which names and numbers may be, and how its memory is opened.

Triton's extension (docs/protocol/extension_shared_memory.md of triton-inference-server/server) lets a client name a
POSIX shared memory object by its key. Here a key is one component below /dev/shm and nothing else: no path is built
from it, no link is followed, and only a plain file that this process's own user made is opened. Memory of ours has no
name that could be given (services/worker/host/arena.py). Nothing is mapped: a mapping of a file that its owner shrinks
is a SIGBUS, whereas reading and writing such a file is an error of one request.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.errors import InvalidArgument, Unsupported
from penstock.oip import inference_pb2 as oip

FOLDER: Final = "/dev/shm"  # where Linux keeps POSIX shared memory, shm_overview(7)
LIMIT: Final = 1 << 63
"""Offsets and sizes are below it: what the kernel's off_t holds."""
MAX_PER_REQUEST: Final = 32
"""Regions that the tensors of one request may lie in."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_KEY: Final = re.compile(r"/?([A-Za-z0-9_.-]{1,128})")
_REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_BYTE_SIZE: Final = "shared_memory_byte_size"
MARK: Final = _REGION.encode()
"""Bytes without which no serialised request names a region."""
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Region:
    """A registered region. key: as registered; inode: of the object, so that another one under the same key is
    noticed; offset: in the object; byte_size: of the region. Bytes."""

    name: str
    key: str
    inode: int
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What a tensor's parameters say: so many bytes of a region, from an offset in it."""

    region: str
    offset: int
    byte_size: int


def checked_name(name: str, field: str = "name") -> str:
    """The name itself if it may name a region; raises InvalidArgument."""
    if _NAME.fullmatch(name):
        return name
    raise InvalidArgument(
        f"{field}: {name[:80]!r} cannot name a region; use 1 to 128 of letters, digits, '_', '.', ':', '-', "
        "beginning with a letter, a digit or '_'",
        field=field,
    )


def component(key: str, field: str = "key") -> str:
    """The file name that a key means; raises InvalidArgument for what is no key."""
    found = _KEY.fullmatch(key)
    if found is None or not found[1].strip("."):
        raise InvalidArgument(
            f"{field}: {key[:80]!r} is not a key; use the name of a POSIX shared memory object, 1 to 128 of letters, "
            "digits, '_', '.', '-', with or without one '/' before it",
            field=field,
        )
    return found[1]


def checked_size(value: int, field: str, least: int = 0) -> int:
    """The number itself if it is a size or an offset; raises InvalidArgument."""
    if not least <= value < LIMIT:
        raise InvalidArgument(f"{field}: must be between {least} and 2**63 - 1, got {value}", field=field)
    return value


def open_key(key: str) -> tuple[int, os.stat_result]:
    """A descriptor of the object, to be closed by the caller, and what it is now.

    Raises InvalidArgument, in the same words for all that cannot be had: a caller learns nothing of what else there is.
    """
    name = component(key)
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=_folder())
    except OSError as problem:
        raise _unusable(key, repr(problem)) from None
    found = os.fstat(descriptor)
    # Another device: something is mounted there.
    whole = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_dev == os.fstat(_folder()).st_dev
    if not whole or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise _unusable(key, f"mode {found.st_mode:o}, links {found.st_nlink}, user {found.st_uid}")
    return descriptor, found


def measured(name: str, key: str, offset: int, byte_size: int) -> Region:
    """The region, found to be there and large enough; raises InvalidArgument."""
    checked_name(name)
    checked_size(offset, "offset")
    checked_size(byte_size, "byte_size", least=1)
    descriptor, found = open_key(key)
    os.close(descriptor)
    if offset + byte_size > found.st_size:
        raise InvalidArgument(
            f"shared memory {key!r} has {found.st_size} bytes; {byte_size} from offset {offset} do not lie in it",
            field="byte_size",
        )
    return Region(name, key, found.st_ino, offset, byte_size)


def reference(parameters: Mapping[str, oip.InferParameter], where: str) -> Reference | None:
    """What a tensor's parameters say of shared memory; None where they say nothing. Raises InvalidArgument.

    where: path of the tensor in the request, such as `inputs[0]`.
    """
    if _REGION not in parameters:
        for name in (_OFFSET, _BYTE_SIZE):
            if name in parameters:
                raise InvalidArgument(f"{where}: {name} without {_REGION}", field=f"{where}.parameters.{name}")
        return None
    named = parameters[_REGION]
    if named.WhichOneof("parameter_choice") != "string_param":
        raise InvalidArgument(f"{where}: {_REGION} must be a string", field=f"{where}.parameters.{_REGION}")
    region = checked_name(named.string_param, f"{where}.parameters.{_REGION}")
    size = _number(parameters, _BYTE_SIZE, where)
    if size is None:
        raise InvalidArgument(f"{where}: {_REGION} without {_BYTE_SIZE}", field=f"{where}.parameters.{_BYTE_SIZE}")
    return Reference(region, _number(parameters, _OFFSET, where) or 0, size)


def placed(region: Region, wanted: Reference, where: str) -> int:
    """Where in the object the reference begins; raises InvalidArgument unless it lies in the region whole."""
    if wanted.offset + wanted.byte_size > region.byte_size:
        raise InvalidArgument(
            f"{where}: {wanted.byte_size} bytes from offset {wanted.offset} do not lie in region "
            f"{region.name!r} of {region.byte_size} bytes",
            field=f"{where}.parameters",
        )
    return region.offset + wanted.offset


def said(parameters: Mapping[str, oip.InferParameter], wanted: Reference, size: int) -> None:
    """Writes into an output's parameters where it lies; size: its bytes."""
    parameters[_REGION].string_param = wanted.region
    parameters[_BYTE_SIZE].int64_param = size
    if wanted.offset:
        parameters[_OFFSET].int64_param = wanted.offset


def pack(regions: Iterable[Region]) -> str:
    """Regions as the value of a header between gateway and worker."""
    return ",".join(f"{each.name};{each.key};{each.inode};{each.offset};{each.byte_size}" for each in regions)


def unpack(value: str) -> dict[str, Region]:
    """Regions by name, checked as if a stranger had sent them; raises InvalidArgument."""
    regions: dict[str, Region] = {}
    for text in value.split(",", MAX_PER_REQUEST):
        parts = text.split(";")
        if len(parts) != 5 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts[2:]):
            raise InvalidArgument("the regions of a request cannot be read")
        name, key = checked_name(parts[0]), parts[1]
        component(key)
        inode, offset, byte_size = map(int, parts[2:])
        checked_size(offset + byte_size, "offset")
        regions[name] = Region(name, key, inode, offset, byte_size)
    return regions


def _number(parameters: Mapping[str, oip.InferParameter], name: str, where: str) -> int | None:
    if name not in parameters:
        return None
    field = f"{where}.parameters.{name}"
    chosen = parameters[name].WhichOneof("parameter_choice")
    if chosen not in ("int64_param", "uint64_param"):
        raise InvalidArgument(f"{field}: must be an integer", field=field)
    return checked_size(getattr(parameters[name], chosen), field)


def _unusable(key: str, detail: str) -> InvalidArgument:
    return InvalidArgument(
        f"key: there is no shared memory {key!r} that can be used: it must be a plain object on this host, and belong "
        "to the user that the server runs as",
        field="key",
        detail=detail,
    )


_opened: list[int] = []


def _folder() -> int:
    """A descriptor of the folder, opened once."""
    if not _opened:
        try:
            _opened.append(os.open(FOLDER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            raise Unsupported("this host has no POSIX shared memory") from None
    return _opened[0]
