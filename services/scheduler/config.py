"""Configuration of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.kit.config import ServiceConfig, setting

from .reservations import PATTERN


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(ServiceConfig):
    """What a scheduler can be told. `lease_seconds` is also how long a leader lasts that nobody hears of."""

    port: int = setting(8003, "port of the gRPC server; 0 takes a free one")
    grace_seconds: float = setting(
        30.0, "how long workers keep their assignments when half of them or more vanish together"
    )
    reservations: tuple[str, ...] = setting(
        (),
        "capacity kept for tenants on every worker with those labels, such as `acme memory=8GiB gpu=16GiB on zone=a`; "
        "the same for all schedulers",
        pattern=PATTERN,
    )
    settle_seconds: float = setting(0.5, "how long to wait after a worker vanished, to see whether others do too")
