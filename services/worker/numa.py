"""Which processors an engine's process may use, on a machine whose memory has several nodes.

A process whose threads run on two nodes reads half of its weights over the link between them. So each engine gets one
node: the one of its GPU if it has one, else the one with the fewest threads of engines on it. On a machine with one
node, or where an engine wants more threads than a node has processors, nothing is pinned. Memory follows by itself: the
kernel takes it from the node of the thread that touches it first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NODES: Final = Path("/sys/devices/system/node")
PCI: Final = Path("/sys/bus/pci/devices")


def parse_list(text: str) -> frozenset[int]:
    """Numbers from the kernel's list format, `0-3,8`; empty for anything else (pure; cpuset(7), "List format")."""
    found: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if match is None:
            return frozenset()
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            return frozenset()
        found.update(range(first, last + 1))
    return frozenset(found)


def nodes(root: Path = NODES, allowed: frozenset[int] | None = None) -> dict[int, frozenset[int]]:
    """Processors by node, of those that are allowed; nodes without any are left out (memory alone, such as CXL)."""
    found = {}
    for folder in sorted(root.glob("node[0-9]*")):
        try:
            processors = parse_list((folder / "cpulist").read_text())
        except OSError:
            continue
        usable = processors if allowed is None else processors & allowed
        if usable:
            found[int(folder.name.removeprefix("node"))] = usable
    return found


def node_of_device(address: str, root: Path = PCI) -> int | None:
    """The node that a PCI device is on; None where the kernel does not say. address: as nvidia-smi writes it."""
    match = re.fullmatch(r"(?:[0-9A-Fa-f]{4})?([0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])", address.strip())
    if match is None:
        return None
    try:
        node = int((root / match[1].lower() / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def place(
    machine: Mapping[int, frozenset[int]], threads_on: Mapping[int, int], threads: int, near: int | None
) -> int | None:
    """The node for an engine of so many threads; None for no pinning (pure).

    threads_on: threads of engines that were placed on each node. near: node of the engine's GPU.
    """
    if len(machine) < 2:
        return None
    if near in machine:
        return near
    large = [node for node, processors in machine.items() if len(processors) >= threads]
    # By share, not by number: nodes may differ in size.
    return min(large, key=lambda node: ((threads_on.get(node, 0) + threads) / len(machine[node]), node), default=None)
