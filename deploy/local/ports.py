"""Ports of a local run: deploy/ports.env, where the environment may move each."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

LOWEST = 10_000
"""Of the ports that `free_ports` gives."""
TABLE = Path(__file__).resolve().parent.parent / "ports.env"


class Ports:
    """Port by name, such as `gateway_rest`; raises KeyError for a name that the table lacks."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = dict(numbers)

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    def items(self) -> list[tuple[str, int]]:
        """Names and numbers in the table's order."""
        return list(self._numbers.items())

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Ports:
        """The table, overridden by environment; raises ValueError for one that is no port, or another's."""
        numbers: dict[str, int] = {}
        for line in TABLE.read_text().splitlines():
            if line.startswith("#") or "=" not in line:
                continue
            key, _, default = line.partition("=")
            text = environ.get(key, default)
            if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
                raise ValueError(f"{key}={text!r} is not a port")
            if int(text) in numbers.values():
                raise ValueError(f"{key}={text}: another port of the table has that number")
            numbers[key.removeprefix("PENSTOCK_PORT_").lower()] = int(text)
        return cls(numbers)

    @classmethod
    def free(cls, more: Iterable[str] = ()) -> Ports:
        """The same names and `more` on free ports, for tests that run side by side."""
        names = [*cls.read({})._numbers, *more]
        return cls(dict(zip(names, free_ports(len(names)), strict=True)))

    def taken(self) -> list[tuple[str, int]]:
        """Those that somebody listens on already."""
        return [(name, number) for name, number in self.items() if _listens(number)]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has, each another. None is one that the kernel gives to connections, as far as
    there are others: such a one may belong to anybody's connection before its process listens there, or while that is
    down, and then the process cannot have it (again)."""
    below = range(LOWEST, _first_of_connections())
    numbers = chain(random.SystemRandom().sample(below, len(below)), repeat(0))
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            held.append(socket.socket())
            try:
                held[-1].bind(("127.0.0.1", next(numbers)))
            except OSError:
                held.pop().close()
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def _first_of_connections() -> int:
    """The lowest port that the kernel gives to a connection."""
    with suppress(OSError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 32_768


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
