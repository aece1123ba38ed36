"""What devices this worker has besides its processor, and how much of them a process uses.

What the operator declares is believed. Without that, NVIDIA's own tool is asked where it is installed: no library is
needed for it, and a worker without one simply has no devices. A GPU that is cut into MIG slices cannot be used whole:
each slice is a device of its own, which CUDA knows by a name and not by a number.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from penstock.errors import InvalidArgument
from penstock.internal.v1.records_pb2 import DeviceRecord

NONE: Final = "none"
DECLARED: Final = r"none|[a-z][a-z0-9-]{0,30}:[0-9]{1,18}(:[A-Za-z0-9 ._-]{0,62})?"
"""`gpu:85899345920` or `gpu:85899345920:A100`; `none` hides what could be found."""
SHARE: Final = 0.95
"""Part of a GPU's memory that is offered: the driver and contexts of processes take the rest."""
PATIENCE: Final = 10.0
"""Seconds for NVIDIA's tool: it waits for a driver that is in trouble."""

SLICES: Final = 100
"""Index of a GPU's first MIG slice: this times one more than the GPU's own. No worker has as many GPUs."""

_TOOL: Final = "nvidia-smi"
_TABLE: Final = "--format=csv,noheader,nounits"


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG slice. index: of the device that it is; gpu: index of the GPU; profile: such as 3g.20gb."""

    index: int
    gpu: int
    profile: str
    memory_bytes: int
    uuid: str


def devices(declared: Sequence[str]) -> list[DeviceRecord]:
    """The devices to offer, with indices from 0. Blocks. Raises InvalidArgument for what DECLARED does not allow."""
    if not declared:
        whole = parse_found(_ask("--query-gpu=index,memory.total,name", _TABLE))
        return with_slices(whole, parse_slices(_ask("-L")))
    return [_declared(index, text) for index, text in enumerate(declared) if text != NONE]


def names(found: Sequence[DeviceRecord]) -> dict[int, str]:
    """What CUDA_VISIBLE_DEVICES calls those devices whose name is not their number. Blocks."""
    wanted = {device.index for device in found}
    if all(index < SLICES for index in wanted):
        return {}
    return {part.index: part.uuid for part in parse_slices(_ask("-L")) if part.index in wanted}


def addresses() -> dict[int, str]:
    """PCI address of each GPU, by its own index (gpu_of). Blocks."""
    return parse_addresses(_ask("--query-gpu=index,pci.bus_id", _TABLE))


def used_by(pid: int) -> int:
    """Bytes that a process has on GPUs, as they report it; 0 where they do not. Blocks."""
    return parse_used(_ask("--query-compute-apps=pid,used_memory", _TABLE), pid)


def parse_found(text: str) -> list[DeviceRecord]:
    """Devices from lines of `index, MiB, name`; lines that say anything else are left out (pure)."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(\d{1,4}),\s*(\d{1,9}),\s*([ -~]{0,80})", line)
        if match is not None:
            size = int(int(match[2]) * 2**20 * SHARE)
            found.append(DeviceRecord(index=int(match[1]), kind="gpu", memory_bytes=size, name=match[3].strip()))
    return found


def parse_slices(text: str) -> list[Slice]:
    """MIG slices from what `nvidia-smi -L` prints; other lines are left out (pure)."""
    found: list[Slice] = []
    gpu = None
    for line in text.splitlines():
        if (whole := re.fullmatch(r"GPU (\d{1,4}): [ -~]{0,160}", line)) is not None:
            gpu = int(whole[1])
        part = re.fullmatch(r"\s+MIG ((?:\d{1,2}c\.)?\d{1,2}g\.(\d{1,4})gb\S{0,16})\s+Device\s+(\d{1,2}): "
                            r"\(UUID: (MIG-[0-9A-Za-z/-]{1,80})\)\s*", line)  # fmt: skip
        if part is not None and gpu is not None:
            found.append(Slice((gpu + 1) * SLICES + int(part[3]), gpu, part[1], int(part[2]) * 10**9, part[4]))
    return found


def with_slices(whole: Sequence[DeviceRecord], slices: Sequence[Slice]) -> list[DeviceRecord]:
    """Devices to offer: each GPU, or its slices where it has any (pure)."""
    cut = {part.gpu for part in slices}
    names_of = {device.index: device.name for device in whole}
    offered = [device for device in whole if device.index not in cut]
    for part in slices:
        if part.gpu in names_of:
            name = f"{names_of[part.gpu]} MIG {part.profile}"
            size = int(part.memory_bytes * SHARE)
            offered.append(DeviceRecord(index=part.index, kind="gpu", memory_bytes=size, name=name))
    return offered


def parse_addresses(text: str) -> dict[int, str]:
    """PCI addresses by index from lines of `index, address` (pure)."""
    pairs = (re.fullmatch(r"\s*(\d{1,4}),\s*([0-9A-Fa-f:.]{12,16})\s*", line) for line in text.splitlines())
    return {int(pair[1]): pair[2] for pair in pairs if pair is not None}


def gpu_of(index: int) -> int:
    """The GPU that a device is, or is a slice of (pure)."""
    return index if index < SLICES else index // SLICES - 1


def parse_used(text: str, pid: int) -> int:
    """Bytes of one process from lines of `pid, MiB`, over all devices (pure)."""
    pairs = (re.fullmatch(r"\s*(\d+),\s*(\d+)\s*", line) for line in text.splitlines())
    return sum(int(pair[2]) * 2**20 for pair in pairs if pair is not None and int(pair[1]) == pid)


def _declared(index: int, text: str) -> DeviceRecord:
    kind, _, rest = text.partition(":")
    size, _, name = rest.partition(":")
    if not re.fullmatch(DECLARED, text):
        raise InvalidArgument(f"devices: {text!r} is not KIND:BYTES or KIND:BYTES:NAME", field="devices")
    return DeviceRecord(index=index, kind=kind, memory_bytes=int(size), name=name)


def _ask(*query: str) -> str:
    """The tool's answer; empty where it is not installed or fails."""
    tool = shutil.which(_TOOL)
    if tool is None:
        return ""
    command = [tool, *query]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
