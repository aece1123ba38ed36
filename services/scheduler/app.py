"""Puts a scheduler together; decides nothing."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cluster import Election, Etcd, Membership, keys
from penstock.internal.v1 import demand_pb2_grpc as demand_rpc
from penstock.internal.v1.records_pb2 import LeaderRecord, ServiceRecord
from penstock.kit.service import Chassis
from penstock.v1 import cluster_pb2_grpc as rpc

from . import metrics
from .absence import Absences
from .alarms import Alarms
from .config import SchedulerConfig
from .controller import Controller
from .fleet import Fleet
from .providers import Provider
from .providers.command import Command
from .providers.kubernetes import Api, Kubernetes
from .reports import DemandService
from .reservations import parse
from .rpc import ClusterService
from .view import ClusterView


async def assemble(chassis: Chassis, config: SchedulerConfig) -> None:
    """Starts everything that a scheduler runs on this chassis."""
    etcd = Etcd.of_service(config.etcd, chassis.etcd_certificates.channel, chassis.etcd_login)
    chassis.on_close(etcd.close)

    chassis.start(Alarms(etcd).run(), "alarms of the store")

    absences = Absences(window=config.lease_seconds, grace=config.grace_seconds, settle=config.settle_seconds)
    reservations = [parse(text) for text in config.reservations]
    view = ClusterView(etcd, absences, grace=config.grace_seconds, reservations=reservations)
    chassis.start(view.run(), "view")
    chassis.ready_check("view", lambda: None if view.known else "the coordination store has not answered yet")
    metrics.expose(lambda: len(view.workers.records), lambda: view.reporters)

    service = ClusterService(view, etcd)
    rpc.add_ClusterServiceServicer_to_server(service, chassis.server)
    demand_rpc.add_DemandServiceServicer_to_server(DemandService(view), chassis.server)
    chassis.reflect(["penstock.v1.ClusterService", "penstock.internal.v1.DemandService"])
    chassis.on_drain(service.close)

    membership = Membership(etcd, config.lease_seconds)
    started = Timestamp()
    started.GetCurrentTime()
    record = ServiceRecord(
        service="scheduler",
        id=chassis.id,
        address=chassis.address,
        admin_address=chassis.admin_address,
        start_time=started,
    )
    await membership.put(keys.service("scheduler", chassis.id), record)
    chassis.start(membership.run(), "membership")
    chassis.on_drain(membership.leave)

    election = Election(etcd, LeaderRecord(id=chassis.id, address=chassis.address), config.lease_seconds)
    fleet = None
    if config.provider:
        fleet = Fleet(
            config.sizes, config.pace, provider_of(config), lambda: view.pools.records, metrics.FleetMetrics()
        )
        chassis.start(fleet.run(), "fleet")
    controller = Controller(view, election, metrics.ControllerMetrics(), fleet)
    chassis.start(controller.run(), "controller")


def provider_of(config: SchedulerConfig) -> Provider | None:
    """The provider that is configured; None where the metric is all that is asked for."""
    match config.provider:
        case "command":
            return Command(config.provider_command)
        case "kubernetes":
            return Kubernetes(Api.of_pod(), config.kubernetes_prefix)
        case _:
            return None
