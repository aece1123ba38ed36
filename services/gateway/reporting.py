"""What a gateway process reports to the schedulers: what it is asked for, and which replicas it keeps away from."""

from __future__ import annotations

from penstock.internal.v1 import demand_pb2 as pb

from .routes import RoutingTable
from .upstream import Upstreams


def report(routes: RoutingTable, upstreams: Upstreams, now: float) -> pb.ReportDemandRequest:
    """The interval since the last report, which is over with this; now: on the loop's clock."""
    table = routes.table
    made = upstreams.demand.taken(now, table)
    for address, (name, version), reason in upstreams.gray():
        replica = table.replica_at(address, name, version)
        if replica is not None:
            made.gray.add(worker=replica.worker, name=name, version=version, reason=reason)
    return made
