"""`python -m services.gateway`."""

from __future__ import annotations

import sys

from penstock.kit.config import load
from penstock.kit.service import Chassis, run

from .app import assemble
from .config import GatewayConfig
from .rpc import LIMITS


def main() -> int:
    """Runs a gateway and returns its exit status."""
    config = load(GatewayConfig, "gateway")

    async def assembled(chassis: Chassis) -> None:
        await assemble(chassis, config)

    return run("gateway", config, assembled, data_plane=LIMITS)


if __name__ == "__main__":
    sys.exit(main())
