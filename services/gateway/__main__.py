"""`python -m services.gateway`."""

from __future__ import annotations

import sys

from penstock.kit import compiled


def main() -> int:
    """Runs a gateway, as one process or as several, and returns its exit status."""
    code = compiled.activate()

    # After it, so that what is compiled is found compiled.
    from penstock.kit.config import load
    from penstock.kit.service import Chassis, run
    from penstock.kit.supervision import cores, supervise, supervised

    from .announce import announced
    from .config import PORTS, GatewayConfig

    config = load(GatewayConfig, "gateway")
    count = config.processes or cores()
    if count > 1 and not supervised():
        return supervise("gateway", config, announced(config), count=count, ports=PORTS)

    # What only a process that serves needs; the supervisor stays small.
    from .app import assemble
    from .rpc import LIMITS

    async def assembled(chassis: Chassis) -> None:
        compiled.tell(code)
        await assemble(chassis, config)

    return run("gateway", config, assembled, data_plane=LIMITS, ports=PORTS)


if __name__ == "__main__":
    sys.exit(main())
