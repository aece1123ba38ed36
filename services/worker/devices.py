"""What devices this worker has besides its processor, and how much of them a process uses.

What the operator declares is believed. Without that, NVIDIA's own tool is asked where it is installed: no library is
needed for it, and a worker without one simply has no devices.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
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

_TOOL: Final = "nvidia-smi"


def devices(declared: Sequence[str]) -> list[DeviceRecord]:
    """The devices to offer, with indices from 0. Blocks. Raises InvalidArgument for what DECLARED does not allow."""
    if not declared:
        return parse_found(_ask("--query-gpu=index,memory.total,name"))
    return [_declared(index, text) for index, text in enumerate(declared) if text != NONE]


def used_by(pid: int) -> int:
    """Bytes that a process has on GPUs, as they report it; 0 where they do not. Blocks."""
    return parse_used(_ask("--query-compute-apps=pid,used_memory"), pid)


def parse_found(text: str) -> list[DeviceRecord]:
    """Devices from lines of `index, MiB, name`; lines that say anything else are left out (pure)."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*(\d{1,4}),\s*(\d{1,9}),\s*([ -~]{0,80})", line)
        if match is not None:
            size = int(int(match[2]) * 2**20 * SHARE)
            found.append(DeviceRecord(index=int(match[1]), kind="gpu", memory_bytes=size, name=match[3].strip()))
    return found


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


def _ask(query: str) -> str:
    """The tool's answer; empty where it is not installed or fails."""
    tool = shutil.which(_TOOL)
    if tool is None:
        return ""
    command = [tool, query, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
