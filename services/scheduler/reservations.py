"""Capacity that is kept for tenants: what the configuration says, and what of it a worker keeps. Pure.

One reservation is one text: `acme memory=8GiB gpu=16GiB on zone=a disk=ssd` keeps 8 GiB of memory and 16 GiB of every
gpu for tenant acme on each worker that has both labels; without `on` on every worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from .snapshot import Reserved

_SIZE: Final = r"[0-9]{1,15}(?:KiB|MiB|GiB|TiB)?"
_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
PATTERN: Final = (
    rf"[a-z0-9](?:[a-z0-9._-]{{0,62}}[a-z0-9])?(?: [a-z][a-z0-9-]{{0,30}}={_SIZE})+(?: on(?: {_WORD}={_WORD})+)?"
)
"""What `parse` reads, as a regular expression."""
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Reservation:
    """For each worker with these labels. devices: bytes of every device, by kind."""

    tenant: str
    memory_bytes: int = 0
    devices: Mapping[str, int] | None = None
    selector: Mapping[str, str] | None = None


def parse(text: str) -> Reservation:
    """A reservation from a text that PATTERN matches."""
    said, _, labels = text.partition(" on ")
    tenant, *sizes = said.split()
    by_kind = {kind: _bytes(size) for kind, _, size in (entry.partition("=") for entry in sizes)}
    selector = dict(label.split("=", 1) for label in labels.split())
    return Reservation(tenant, by_kind.pop("memory", 0), by_kind, selector)


def kept_on(labels: Mapping[str, str], reservations: Iterable[Reservation]) -> tuple[Reserved, ...]:
    """What a worker with these labels keeps: one entry for each tenant, the sum of all that match."""
    memory: dict[str, int] = {}
    devices: dict[str, dict[str, int]] = {}
    for entry in reservations:
        if any(labels.get(key) != value for key, value in (entry.selector or {}).items()):
            continue
        memory[entry.tenant] = memory.get(entry.tenant, 0) + entry.memory_bytes
        by_kind = devices.setdefault(entry.tenant, {})
        for kind, size in (entry.devices or {}).items():
            by_kind[kind] = by_kind.get(kind, 0) + size
    return tuple(Reserved(tenant, memory[tenant], tuple(sorted(devices[tenant].items()))) for tenant in sorted(memory))


def _bytes(text: str) -> int:
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    return int(text.removesuffix(unit)) * _UNITS.get(unit, 1)
