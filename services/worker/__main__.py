"""`python -m services.worker`."""

from __future__ import annotations

import sys

from penstock.kit import compiled


def main() -> int:
    """Runs a worker and returns its exit status."""
    code = compiled.activate()

    # After it, so that what is compiled is found compiled.
    from penstock.kit.config import load
    from penstock.kit.service import Chassis, run

    from .app import assemble
    from .config import WorkerConfig
    from .rpc import LIMITS

    config = load(WorkerConfig, "worker")

    async def assembled(chassis: Chassis) -> None:
        compiled.tell(code)
        await assemble(chassis, config)

    return run("worker", config, assembled, data_plane=LIMITS)


if __name__ == "__main__":
    sys.exit(main())
