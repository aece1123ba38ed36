"""Shared memory for tensor bytes: an anonymous file (memfd) that both processes map.

The worker makes it, sized for good: its seals forbid either side to shrink or grow it, so that no view can ever point
past its end (a shrunk mapping is a SIGBUS), and to lift the seals. It has no name; only the child gets its descriptor.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

MINIMUM: Final = 64 << 10
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Arena:
    """One mapping. `view` spans it all."""

    def __init__(self, descriptor: int, size: int, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=protection)
        self.size = size
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmaps now, or as soon as the last view of it is gone."""
        self.view.release()
        # Somebody still looks at a part of it: the mapping goes with that view.
        with suppress(BufferError):
            self._map.close()


def create(size: int, *, writable: bool) -> tuple[Arena, int]:
    """A new arena of at least that size, and its descriptor, which the caller sends to the child and then closes."""
    rounded = max(MINIMUM, 1 << (size - 1).bit_length())
    descriptor = os.memfd_create("penstock-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, rounded)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return Arena(descriptor, rounded, writable=writable), descriptor
    except BaseException:
        os.close(descriptor)
        raise
