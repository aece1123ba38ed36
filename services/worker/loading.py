"""Starting engines: a few at a time, each with its share of the processors, and on one node of the machine's memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from penstock.internal.v1.records_pb2 import DeviceRecord
from penstock.v1 import manifest_pb2 as pb

from . import devices as found_devices
from . import numa
from .engines.engine import Means
from .host.host import EngineHost


@dataclass(frozen=True, slots=True)
class Machine:
    """What the worker found where it runs.

    nodes: processors by NUMA node. near: node of each device that has one. names: what CUDA calls a device, where that
    is not its index.
    """

    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    near: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def found(cls, offered: Sequence[DeviceRecord]) -> Machine:
        """Asks the kernel and NVIDIA's tool. Blocks."""
        nodes = numa.nodes(allowed=frozenset(os.sched_getaffinity(0)))
        addresses = found_devices.addresses() if offered and len(nodes) > 1 else {}
        near = {}
        for device in offered:
            node = numa.node_of_device(addresses.get(found_devices.gpu_of(device.index), ""))
            if node is not None:
                near[device.index] = node
        return cls(nodes, near, found_devices.names(offered))


class Loader:
    """Starts the child processes of replicas.

    Loading and warming up take whole processors. A worker that is assigned many models at once loads half as many
    as it has processors at the same time, so that none runs out of time because of the others, and those that serve
    already keep some.

    Args:
        threads: of the engines of a replica together, where its manifest names none; 0 takes half of the processors.
        load_timeout: seconds from the start of the process to the end of the warm-up.
        means: what the operator lends to engines.
        machine: where they run.
    """

    def __init__(self, *, threads: int, load_timeout: float, means: Means, machine: Machine) -> None:
        half = max(1, len(os.sched_getaffinity(0)) // 2)
        self._threads = threads or half
        self._load_timeout = load_timeout
        self._means = means
        self._machine = machine
        self._placed: dict[EngineHost, tuple[int, int]] = {}
        self._loading: dict[int | None, int] = {}
        self._turns = asyncio.Semaphore(half)

    async def start(self, manifest: pb.Manifest, files: Mapping[str, Path], devices: Sequence[int] = ()) -> EngineHost:
        """A loaded and warm engine on these devices; raises the PenstockError that says why there is none."""
        async with self._turns:
            # Those of one replica work at the same time: together they get what a single one would.
            share = max(1, self._threads // max(1, manifest.instances))
            threads = manifest.resources.threads or share
            node = self._node(threads, devices)
            self._loading[node] = self._loading.get(node, 0) + threads
            try:
                host = await EngineHost.start(
                    manifest,
                    files,
                    threads=share,
                    load_timeout=self._load_timeout,
                    devices=[self._machine.names.get(index, index) for index in devices],
                    processors=frozenset() if node is None else self._machine.nodes[node],
                    means=self._means,
                )
            finally:
                self._loading[node] -= threads
            if node is not None:
                self._placed[host] = (node, threads)
            return host

    def _node(self, threads: int, devices: Sequence[int]) -> int | None:
        self._placed = {host: place for host, place in self._placed.items() if host.alive}
        taken = {node: count for node, count in self._loading.items() if node is not None}
        for node, count in self._placed.values():
            taken[node] = taken.get(node, 0) + count
        near = next((self._machine.near[index] for index in devices if index in self._machine.near), None)
        return numa.place(self._machine.nodes, taken, threads, near)
