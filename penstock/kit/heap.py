"""What the C library does with memory that was freed: a service keeps what it will need again a moment later.

glibc gives the top of its heap back to the system as soon as twice the largest block of before is free there. A process
that handles messages of 600 KB, several copies of each, does that with every message, and then pays a page fault for
every 4 KiB of the next one: a thousand faults and two milliseconds of the kernel's time (docs/performance.md). Other C
libraries are left alone.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

KEPT: Final = 64 << 20
"""Bytes free at the top of the heap, beyond which they are given back."""
APART: Final = 8 << 20
"""Blocks of this size and more are mapped by themselves, and given back when they are freed."""

# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed() -> None:
    """Sets both for the whole process; to be called once, early."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_MMAP_THRESHOLD, APART)
