"""Starting an engine that may miss its plan: with what the version and the cache have, then with what was got."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from penstock.v1 import manifest_pb2 as pb

from ..engines.trt.matching import PlanMissing
from ..instances import Host
from .plans import Plans, Say
from .wanted import wanted

FORMAT: Final = "tensorrt"
_ROLE: Final = "plan~"
"""Begins as roles of plans do (engines/signed.py) and as no publisher's role can; it comes after all of them."""

Start = Callable[[pb.Manifest, Mapping[str, Path], Sequence[int]], Awaitable[Host]]


async def _nobody(reason: str) -> None:
    """Is told and does nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be loaded. files: by role, inside the worker's cache. source: digest of the file of role `model`,
    empty where there is none. say: told what the load waits for."""

    manifest: pb.Manifest
    files: Mapping[str, Path]
    source: str = ""
    devices: Sequence[int] = ()
    say: Say = field(default=_nobody)


class Starter:
    """Starts engines. start: gives a loaded and warm engine, or raises PlanMissing; plans: where it comes from then."""

    def __init__(self, start: Start, plans: Plans) -> None:
        self._start = start
        self._plans = plans

    async def start(self, load: Load) -> Host:
        """A loaded and warm engine; raises the PenstockError that says why there is none."""
        if load.manifest.format != FORMAT or not load.source:
            return await self._start(load.manifest, load.files, load.devices)
        need = wanted(load.manifest, load.source)
        with self._plans.held(load.source):
            try:
                return await self._with(load, await self._plans.kept(need))
            except PlanMissing as error:
                missing = error
            path = await self._plans.get(load.files["model"], need, missing, load.devices, load.say)
            return await self._with(load, [path])

    async def _with(self, load: Load, plans: Sequence[Path]) -> Host:
        more = {f"{_ROLE}{number}": path for number, path in enumerate(plans)}
        return await self._start(load.manifest, {**load.files, **more}, load.devices)
