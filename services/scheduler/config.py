"""Configuration of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.kit.config import BadConfig, ServiceConfig, setting

from .machines import Pace, Pool
from .reservations import PATTERN

_POOL = r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?:[0-9]{1,4}:[0-9]{1,4}(:[0-9]{1,2})?"


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
    provider: str = setting(
        "",
        "who starts and stops workers: command, kubernetes, or metric (somebody who reads it); empty for nobody",
        one_of=("", "command", "kubernetes", "metric"),
    )
    pools: tuple[str, ...] = setting(
        (),
        "NAME:LEAST:MOST or NAME:LEAST:MOST:PERCENT each, asked in this order; workers of a pool have the label "
        "pool=NAME; PERCENT of what they offer is kept free",
        pattern=_POOL,
    )
    pool_rise_seconds: float = setting(2.0, "how long something must lack a place before a pool grows for it", low=0)
    pool_fall_seconds: float = setting(300.0, "how long a pool must have had too many before it shrinks", low=1)
    provider_command: tuple[str, ...] = setting(
        (), "for provider command: program and arguments; `size POOL` or `resize POOL COUNT [WORKER ...]` follow"
    )
    kubernetes_prefix: str = setting(
        "penstock-worker-",
        "for provider kubernetes: a pool's Deployment has this and the pool's name as its name",
        pattern=r"[a-z0-9][a-z0-9.-]{0,100}",
    )

    def __post_init__(self) -> None:
        """Raises BadConfig for settings that do not go together."""
        if bool(self.provider) != bool(self.pools):
            raise BadConfig("provider and pools: set both, or neither")
        if (self.provider == "command") != bool(self.provider_command):
            raise BadConfig("provider_command: set it with provider command, and only then")
        names = [pool.name for pool in self.sizes]
        if len(set(names)) < len(names):
            raise BadConfig("pools: a name stands there twice")
        for pool in self.sizes:
            if pool.least > pool.most:
                raise BadConfig(f"pools: {pool.name} has at least {pool.least} and at most {pool.most} workers")

    @property
    def sizes(self) -> tuple[Pool, ...]:
        """The pools, in order."""
        parts = (text.split(":") for text in self.pools)
        return tuple(
            Pool(name, int(least), int(most), int(spare[0]) / 100 if spare else 0.0)
            for name, least, most, *spare in parts
        )

    @property
    def pace(self) -> Pace:
        """How quickly pools follow."""
        return Pace(self.pool_rise_seconds, self.pool_fall_seconds)
