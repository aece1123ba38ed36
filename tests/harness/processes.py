"""A service as a process, seen through its log: one JSON object per line on stderr."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.local.suite import ROOT


class Service:
    """A running process. `records` has what it has logged and we have read, `lines` the same as text."""

    def __init__(self, process: subprocess.Popen[bytes], log: asyncio.StreamReader) -> None:
        self._process, self._log = process, log
        self.records: list[dict[str, Any]] = []
        self.lines: list[str] = []

    async def event(self, name: str, /, within: float = 60.0, **fields: Any) -> dict[str, Any]:
        """Reads on until the next record of that event with these fields; raises AssertionError when the log ends
        without it."""
        wanted = {"event": name, **fields}.items()
        async with asyncio.timeout(within):
            while (record := await self._next()) is not None:
                if wanted <= record.items():
                    return record
        raise AssertionError(f"no event {name!r} in the log:\n" + "\n".join(self.lines))

    async def ended(self, within: float = 60.0) -> int:
        """Waits for the end and returns the exit status; negative for a signal."""
        async with asyncio.timeout(within):
            while await self._next() is not None:
                pass
            return await asyncio.to_thread(self._process.wait)

    @property
    def pid(self) -> int:
        """Of the process that was started; it may have others of its own."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def events(self) -> list[str]:
        """Names of the events read so far."""
        return [str(record.get("event")) for record in self.records]

    async def _next(self) -> dict[str, Any] | None:
        line = (await self._log.readline()).decode()
        if not line:
            return None
        self.lines.append(line.rstrip("\n"))
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            record = {}
        self.records.append(record)
        return record


def children_of(pid: int) -> list[int]:
    """Ids of a process's children, dead ones that nobody has asked for too; none of a process that is gone."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # one that has ended meanwhile
                found += map(int, (thread / "children").read_text().split())
    return sorted(found)


@asynccontextmanager
async def started(module: str, *flags: str, **environment: str) -> AsyncIterator[Service]:
    """`python -m module flags`; killed at the end if it still runs. Variables of Penstock are not inherited."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")}
    # Not by the loop: uvloop forks, and whatever runs in the fork of a process with threads may wait for them for ever.
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env={**inherited, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    log = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(log), process.stderr
    )
    service = Service(process, log)
    try:
        yield service
    finally:
        process.kill()
        await service.ended()
        transport.close()
