"""Resident memory of a process, as the kernel counts it."""

from __future__ import annotations

import resource


def resident_bytes(process: int | str = "self") -> int:
    """Bytes, shared ones included; raises OSError where the process is gone."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
