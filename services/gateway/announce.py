"""Says in etcd that the gateway is there: once, by its only process or by the supervisor of several."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.membership import Membership
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.kit.life import Life
from penstock.kit.supervision.supervisor import Supervisor

from .config import GatewayConfig


async def announce(life: Life, etcd: Etcd, config: GatewayConfig) -> None:
    """Keeps the gateway's record from now until the drain."""
    membership = Membership(etcd, config.lease_seconds)
    started = Timestamp()
    started.GetCurrentTime()
    record = ServiceRecord(
        service="gateway",
        id=life.id,
        address=life.address,
        admin_address=life.admin_address,
        start_time=started,
    )
    await membership.put(keys.service("gateway", life.id), record)
    life.start(membership.run(), "membership")
    life.on_drain(membership.leave)


def announced(config: GatewayConfig) -> Callable[[Supervisor], Awaitable[None]]:
    """What a supervisor of gateway processes assembles: the record alone."""

    async def assemble(supervisor: Supervisor) -> None:
        etcd = Etcd.of_service(config.etcd, supervisor.etcd_certificates.channel, supervisor.etcd_login)
        supervisor.on_close(etcd.close)
        await announce(supervisor, etcd, config)

    return assemble
