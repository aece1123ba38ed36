"""The transport as a process of its own, so that what an attack costs can be read from /proc:
`python -m tests.harness.http2_port`. It prints its port, serves until its input ends, and knows a few methods."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.wire.call import Answer, Call
from penstock.wire.http2 import Method, Server
from tests.harness.http2_services import Service

MAX_HELD = 48 << 20
"""Bytes that all connections together may make it hold."""
MAX_CONNECTIONS = 200


async def large(call: Call) -> Answer:
    """As many bytes as the payload says."""
    return Answer(b"x" * int(call.payload))


class Port:
    """address: host:port. The numbers are bytes of resident memory."""

    def __init__(self, pid: int, address: str) -> None:
        self._pid, self.address = pid, address

    @property
    def resident(self) -> int:
        """Now."""
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """The most since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Measures anew (proc(5), clear_refs)."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
        raise AssertionError(f"no {name}")


@contextmanager
def port() -> Iterator[Port]:
    """A process that serves."""
    with subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Port(process.pid, f"127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.stdin.close()
    assert process.returncode == 0


async def main() -> None:
    """Serves until the input ends."""
    methods = {**Service().methods(), "/t.T/Large": Method("Large", large)}
    server = Server(methods, max_held=MAX_HELD, max_connections=MAX_CONNECTIONS)
    print(await server.start("127.0.0.1", 0), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.close()


if __name__ == "__main__":
    asyncio.run(main())
