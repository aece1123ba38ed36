"""Starting the child process of an engine, and making sure that it is gone.

The child is executed anew, never forked off the worker: it shares no memory, no locks, no descriptors but its end of
the socket pair, and of the environment only what is named here, so no token and no address gets into a process that
runs models.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parents[3])
_KEPT: Final = frozenset(("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE"))
_KEPT_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_")
_THREADS: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip


def environment(parent: Mapping[str, str], threads: int) -> dict[str, str]:
    """What a child of a process with this environment gets (pure)."""
    kept = {name: value for name, value in parent.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    path = [_ROOT, *filter(None, parent.get("PYTHONPATH", "").split(os.pathsep))]
    counts = dict.fromkeys(_THREADS, str(max(1, threads)))
    return {**kept, **counts, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}


async def spawn(threads: int) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """A child that waits for its first frame, and the worker's end of the socket pair.

    On failure and on cancellation nothing is left behind.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "services.worker.host.child",
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(os.environ, threads),
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


async def end(process: asyncio.subprocess.Process, patience: float) -> None:
    """Waits that long for the child to go by itself, then kills it and all that it started.

    When this is cancelled the child is killed at once.
    """
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        kill(process)
    await process.wait()


def kill(process: asyncio.subprocess.Process) -> None:
    """Kills the child and its process group; nothing if it is gone."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            process.kill()
