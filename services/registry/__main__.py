"""`python -m services.registry`."""

from __future__ import annotations

import sys

from penstock.kit.config import load
from penstock.kit.service import Chassis, run

from .app import assemble
from .config import RegistryConfig


def main() -> int:
    """Runs a registry and returns its exit status."""
    config = load(RegistryConfig, "registry")

    async def assembled(chassis: Chassis) -> None:
        await assemble(chassis, config)

    return run("registry", config, assembled)


if __name__ == "__main__":
    sys.exit(main())
