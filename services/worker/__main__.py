"""`python -m services.worker`."""

from __future__ import annotations

import sys

from penstock.kit.config import load
from penstock.kit.service import Chassis, run

from .app import assemble
from .config import WorkerConfig
from .rpc import LIMITS


def main() -> int:
    """Runs a worker and returns its exit status."""
    config = load(WorkerConfig, "worker")

    async def assembled(chassis: Chassis) -> None:
        await assemble(chassis, config)

    return run("worker", config, assembled, data_plane=LIMITS)


if __name__ == "__main__":
    sys.exit(main())
