"""The child process of an engine: starting it, and making sure that it is gone.

Its end is seen through a pidfd, so neither a signal handler nor a thread has a part in it. The child is executed anew,
never forked off the worker: it shares no memory, no locks, no descriptors but its end of the socket pair, and of the
environment only what is named here, so no token and no address gets into a process that runs models.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parents[3])
_KEPT: Final = frozenset(("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE"))
_KEPT_PREFIXES: Final = ("LC_", "CUDA_", "NVIDIA_")
_THREADS: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip


def environment(parent: Mapping[str, str], threads: int, devices: Sequence[int | str] = ()) -> dict[str, str]:
    """What a child of a process with this environment gets (pure). devices: numbers, or names of MIG slices."""
    kept = {name: value for name, value in parent.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    path = [_ROOT, *filter(None, parent.get("PYTHONPATH", "").split(os.pathsep))]
    counts = dict.fromkeys(_THREADS, str(max(1, threads)))
    if devices:
        # In the order of the PCI bus, as nvidia-smi counts them.
        kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    return {**kept, **counts, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}


class Process:
    """A process that was started with a process group of its own. Belongs to the running loop."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._started = started
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(started.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._started.pid

    @property
    def alive(self) -> bool:
        """False once its end has been noticed."""
        return not self._ended.is_set()

    @property
    def status(self) -> int:
        """How it ended: its exit status, or minus the number of the signal that ended it. Once it has."""
        return int(self._started.returncode)

    async def wait(self) -> None:
        """Waits for its end."""
        await self._ended.wait()

    def kill(self) -> None:
        """Kills it and its process group; nothing if it is gone."""
        if self.alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._started.kill()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._started.wait()
        self._ended.set()


def spawn(
    threads: int, devices: Sequence[int | str] = (), processors: frozenset[int] = frozenset()
) -> tuple[Process, socket.socket]:
    """A child that waits for its first frame, and the worker's end of the socket pair.

    processors: those that it may use; empty for all. Call it on the loop's own thread: the kernel ends the child
    together with the thread that started it (child.py).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [
        sys.executable, "-P", "-m", "services.worker.host.child", str(theirs.fileno()), str(os.getpid()),
        *map(str, sorted(processors)),
    ]  # fmt: skip
    try:
        with theirs:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(os.environ, threads, devices),
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return Process(started), ours


async def end(process: Process, patience: float) -> None:
    """Waits that long for the child to go by itself, then kills it and all that it started.

    When this is cancelled the child is killed at once.
    """
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        process.kill()
    await process.wait()
