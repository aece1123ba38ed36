"""A host of its own for one process, on this machine: a network namespace with a cable to etcd's side and another to
the gateways' side, each of which can be cut, in one direction or both.

Nothing in it is reached but through forwarders at the cables' ends: services listen on loopback alone. What is cut is
cut by the kernel, silently: packets are dropped, as where a cable or a switch fails.

`python -m tests.fault.island HOST:PORT=TARGET:PORT …` is what forwards inside.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deploy.local.suite import ROOT
from tests.fault.result import Impossible

NAME = f"penstock-{os.getpid()}"
NET = f"10.{64 + os.getpid() % 128}"


class Cable:
    """Two ends in one small network: `.1` here, `.2` on the island."""

    def __init__(self, letter: str, number: int) -> None:
        self.here, self.there = f"pn{letter}{os.getpid()}", f"pm{letter}{os.getpid()}"
        self.near, self.far = f"{NET}.{number}.1", f"{NET}.{number}.2"

    def lay(self) -> None:
        """From here to the island."""
        _ip("link", "add", self.here, "type", "veth", "peer", "name", self.there, "netns", NAME)
        _ip("addr", "add", f"{self.near}/30", "dev", self.here)
        _ip("link", "set", self.here, "up")
        _ip("-n", NAME, "addr", "add", f"{self.far}/30", "dev", self.there)
        _ip("-n", NAME, "link", "set", self.there, "up")

    def cut(self, *, to_island: bool = True, from_island: bool = True) -> None:
        """No packet gets through in these directions."""
        # A queue that holds nothing: whatever is to be sent is dropped.
        if to_island:
            _run("tc", "qdisc", "replace", "dev", self.here, "root", "pfifo", "limit", "0")
        if from_island:
            _run("tc", "-n", NAME, "qdisc", "replace", "dev", self.there, "root", "pfifo", "limit", "0")

    def heal(self) -> None:
        """As a cable again."""
        for where, device in (((), self.here), (("-n", NAME), self.there)):
            with suppress(Impossible):  # it was not cut in this direction
                _run("tc", *where, "qdisc", "del", "dev", device, "root")


class Island:
    """Made by `island`. before: words that run a command on it."""

    def __init__(self, folder: Path) -> None:
        self.etcd, self.gateways = Cable("e", 1), Cable("g", 2)
        self._folder = folder
        # Files of its own where sockets are put: a gateway would go by the file system what it cannot go by the cable.
        private = 'mount -t tmpfs tmpfs "$TMPDIR" && exec "$@"'
        self.before = ["env", f"TMPDIR={folder}", "ip", "netns", "exec", NAME, "sh", "-c", private, "sh"]

    def lay(self) -> None:
        """The island and its cables."""
        _ip("netns", "add", NAME)
        _ip("-n", NAME, "link", "set", "lo", "up")
        self.etcd.lay()
        self.gateways.lay()

    @contextmanager
    def forwarding(self, ways: Mapping[str, str]) -> Iterator[None]:
        """On the island, from addresses to addresses."""
        words = [f"{source}={target}" for source, target in ways.items()]
        command = ["ip", "netns", "exec", NAME, sys.executable, "-m", "tests.fault.island", *words]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield
            finally:
                process.stdin.close()


@contextmanager
def island() -> Iterator[Island]:
    """Raises Impossible where no network namespace can be made."""
    with ExitStack() as held:
        made = Island(Path(held.enter_context(tempfile.TemporaryDirectory(prefix="island-"))))
        held.callback(subprocess.run, ["ip", "netns", "del", NAME], capture_output=True, check=False)
        made.lay()
        yield made


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Impossible(f"there is no `{words[0]}` here") from None
    if done.returncode:
        raise Impossible(f"`{' '.join(words[:3])} …` is not allowed here: {done.stderr.strip()[:80]}")


async def _forward(source: str, target: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*_split(target))
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer), return_exceptions=True)
        for each in (writer, far_writer):
            each.transport.abort()

    await asyncio.start_server(connected, *_split(source))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def _main() -> None:
    for way in sys.argv[1:]:
        await _forward(*way.split("="))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
