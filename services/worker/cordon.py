"""Which devices are no longer to be used, because engines lose them again and again. Pure.

An engine that loses its device (`DeviceLost`) is started anew in a process of its own, which mends what CUDA calls a
sticky error. A device that is lost MOST times within WINDOW is broken itself: what runs on it would fail for as long as
somebody keeps starting it.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 3
WINDOW: Final = 600.0
"""Seconds in which so many losses make a device unusable."""


class Cordon:
    """The devices of one worker. A device that is cordoned stays so: only people can tell that it was mended."""

    def __init__(self) -> None:
        self._losses: dict[int, list[float]] = {}
        self._cordoned: set[int] = set()

    @property
    def cordoned(self) -> frozenset[int]:
        """Indices of those that are not to be used."""
        return frozenset(self._cordoned)

    def lost(self, device: int, now: float) -> bool:
        """Notes that an engine has lost a device, at a time of the caller's monotonic clock. True when that was once
        too often."""
        recent = [at for at in self._losses.get(device, ()) if now - at < WINDOW]
        self._losses[device] = [*recent, now]
        if device in self._cordoned or len(recent) + 1 < MOST:
            return False
        self._cordoned.add(device)
        return True
