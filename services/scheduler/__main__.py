"""`python -m services.scheduler`."""

from __future__ import annotations

import sys

from penstock.kit.config import load
from penstock.kit.service import Chassis, run

from .app import assemble
from .config import SchedulerConfig


def main() -> int:
    """Runs a scheduler and returns its exit status."""
    config = load(SchedulerConfig, "scheduler")

    async def assembled(chassis: Chassis) -> None:
        await assemble(chassis, config)

    return run("scheduler", config, assembled)


if __name__ == "__main__":
    sys.exit(main())
