"""What a process takes upon itself that runs what somebody else gave: an engine's, a build step's.

Light on purpose: such a process imports this before anything else, and nothing of a service.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_NO_NEW_PRIVS: Final = 38


def tie_to(parent: int, name: str, *, oom_score: int) -> None:
    """Ends this process together with its parent's thread, and takes away privileges and core files.

    name: as `ps` shows it, 15 characters. oom_score: 0 to 1000; the higher, the sooner the kernel ends it for memory.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above could take effect
        os._exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(oom_score))
