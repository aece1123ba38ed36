"""Starting engines: a few at a time, each with its share of the processors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.v1 import manifest_pb2 as pb

from .engines.engine import Means
from .host.host import EngineHost


class Loader:
    """Starts the child processes of replicas.

    Loading and warming up take whole processors. A worker that is assigned many models at once loads half as many
    as it has processors at the same time, so that none runs out of time because of the others, and those that serve
    already keep some.

    Args:
        threads: of an engine whose manifest names none; 0 takes half of the processors.
        load_timeout: seconds from the start of the process to the end of the warm-up.
        means: what the operator lends to engines.
    """

    def __init__(self, *, threads: int, load_timeout: float, means: Means) -> None:
        half = max(1, len(os.sched_getaffinity(0)) // 2)
        self._threads = threads or half
        self._load_timeout = load_timeout
        self._means = means
        self._turns = asyncio.Semaphore(half)

    async def start(self, manifest: pb.Manifest, files: Mapping[str, Path], devices: Sequence[int] = ()) -> EngineHost:
        """A loaded and warm engine on these devices; raises the PenstockError that says why there is none."""
        async with self._turns:
            return await EngineHost.start(
                manifest,
                files,
                threads=self._threads,
                load_timeout=self._load_timeout,
                devices=devices,
                means=self._means,
            )
