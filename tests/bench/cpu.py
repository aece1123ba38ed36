"""CPU time, waits and memory of processes, from /proc: what a request costs the machine, whatever the clock on the wall
says.

A group is a process and all its descendants; an engine's child is counted apart from its worker. Times have the
kernel's resolution, a hundredth of a second on Linux, for all threads together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
ENGINE: Final = "engine"
ENGINE_COMM: Final = "penstock-engine"


class Restarted(Exception):
    """A process that was being measured has ended, so that its time is lost."""


@dataclass(frozen=True, slots=True)
class Spent:
    """One process: its group, the clock ticks that it has used so far, those of them in the kernel, and how often one
    of its threads has begun to wait."""

    group: str
    ticks: int
    kernel_ticks: int = 0
    waits: int = 0


@dataclass(frozen=True, slots=True)
class Used:
    """What each group has used: seconds of CPU, those of them in the kernel, and how often it began to wait."""

    seconds: dict[str, float]
    kernel: dict[str, float]
    waits: dict[str, float]


def parse_stat(text: str) -> tuple[str, int, int]:
    """Name, user + system ticks and system ticks of a line of /proc/<pid>/stat; the name may hold spaces and
    brackets."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return head.partition("(")[2], int(fields[11]) + int(fields[12]), int(fields[12])


def used(before: Mapping[int, Spent], after: Mapping[int, Spent], ticks_per_second: int) -> Used:
    """By group between two snapshots; a process that is new counts from its start. Raises Restarted."""
    if lost := before.keys() - after.keys():
        raise Restarted(f"ended while it was measured: {', '.join(sorted(before[pid].group for pid in lost))}")
    nothing = dict.fromkeys(sorted({spent.group for spent in after.values()}), 0.0)
    found = Used(dict(nothing), dict(nothing), dict(nothing))
    for pid, spent in after.items():
        start = before.get(pid, Spent(spent.group, 0))
        found.seconds[spent.group] += (spent.ticks - start.ticks) / ticks_per_second
        found.kernel[spent.group] += (spent.kernel_ticks - start.kernel_ticks) / ticks_per_second
        found.waits[spent.group] += spent.waits - start.waits
    return found


class Meter:
    """Measures groups of processes: `heads` has the group of each pid that heads a family."""

    def __init__(self, heads: Mapping[int, str]) -> None:
        self._heads = dict(heads)
        self._before: dict[int, Spent] = {}

    def start(self) -> None:
        """Counts from here."""
        self._before = self._snapshot()

    def stop(self) -> Used:
        """By group since `start`. Raises Restarted."""
        return used(self._before, self._snapshot(), os.sysconf("SC_CLK_TCK"))

    def _snapshot(self) -> dict[int, Spent]:
        found: dict[int, Spent] = {}
        for head, group in self._heads.items():
            for pid in family(head):
                with suppress(OSError):
                    name, ticks, kernel = parse_stat((PROC / str(pid) / "stat").read_text())
                    found[pid] = Spent(ENGINE if name == ENGINE_COMM else group, ticks, kernel, _waits(pid))
        return found


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def resident_megabytes(pid: int) -> float:
    """Memory of one process, in 10^6 bytes."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise Restarted(f"process {pid} has ended")


def _waits(pid: int) -> int:
    """How often threads of the process that live have given up their core of their own accord."""
    count = 0
    for task in (PROC / str(pid) / "task").glob("*"):
        with suppress(OSError):
            text = (task / "status").read_text()
            count += int(text.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0])
    return count


def _children(pid: int) -> Iterable[int]:
    for task in (PROC / str(pid) / "task").glob("*"):
        with suppress(OSError):
            yield from map(int, (task / "children").read_text().split())
