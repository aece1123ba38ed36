"""A provider that is a command: `COMMAND size POOL` prints a number, `COMMAND resize POOL COUNT [WORKER ...]` sets it.

The local suite brings one (deploy/local/resize.py); a script for any cloud can be another. It runs without a shell,
with the scheduler's environment, in a process group of its own that is killed when it takes too long.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from penstock.errors import Unavailable

SECONDS: Final = 30.0
_MOST_WORDS: Final = 500


class Command:
    """argv: the command and its first arguments. seconds: what one run may take."""

    def __init__(self, argv: Sequence[str], *, seconds: float = SECONDS) -> None:
        self._argv = tuple(argv)
        self._seconds = seconds

    async def size(self, pool: str) -> int:
        """See Provider. Raises Unavailable when the command fails or prints no number."""
        said = (await self._run("size", pool)).strip()
        if not said.isascii() or not said.isdigit() or len(said) > 9:
            raise Unavailable(
                "the command that resizes pools printed no number for `size`", detail=repr(said[:_MOST_WORDS])
            )
        return int(said)

    async def resize(self, pool: str, count: int, leaving: Sequence[str]) -> None:
        """See Provider. Raises Unavailable when the command fails."""
        await self._run("resize", pool, str(count), *leaving)

    async def _run(self, *arguments: str) -> str:
        # Not by the loop: it forks, and a fork of a process with threads may wait for them for ever.
        try:
            process = await asyncio.to_thread(_start, (*self._argv, *arguments))
        except OSError as problem:
            raise Unavailable("the command that resizes pools cannot be started", detail=str(problem)) from None
        try:
            async with asyncio.timeout(self._seconds):
                out, err = await asyncio.to_thread(process.communicate)
        except TimeoutError:
            raise Unavailable(f"the command that resizes pools took more than {self._seconds:g} s") from None
        finally:
            _end(process)
        if process.returncode != 0:
            words = err.decode(errors="replace").strip()[-_MOST_WORDS:]
            raise Unavailable(f"the command that resizes pools ended with status {process.returncode}", detail=words)
        return out.decode(errors="replace")


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills it if it still runs; the thread that waits for it then comes back."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
