"""Puts a gateway together; decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.reports import Reports
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, ServiceRecord
from penstock.kit.log import get_logger
from penstock.kit.service import Chassis
from penstock.wire.client import Peer

from . import metrics, rpc
from .access import AccessLog
from .announce import announce
from .backend import Backend
from .config import GatewayConfig
from .control import Control
from .inference import Inference
from .probe import probe_held
from .region_table import RegionTable
from .reporting import report
from .repository import Repository
from .rest import serve_rest
from .room import Room
from .routes import RoutingTable
from .shared_memory import SharedMemory
from .upstream import Upstreams

WAITING_SHARE: Final = 0.9
"""Part of the drain time in which a request may still wait for a version; in the rest it is told why it was in vain."""


async def assemble(chassis: Chassis, config: GatewayConfig) -> None:
    """Starts everything that a gateway runs on this chassis."""
    etcd = Etcd.of_service(config.etcd, chassis.etcd_certificates.channel, chassis.etcd_login)
    chassis.on_close(etcd.close)

    routes = RoutingTable()
    deployments = Mirror(etcd, keys.DEPLOYMENTS, DeploymentRecord, routes.note_change)
    replicas = Mirror(etcd, keys.REPLICAS, ReplicaRecord, routes.note_change)
    registries = Mirror(etcd, keys.services_of("registry"), ServiceRecord)
    schedulers = Mirror(etcd, keys.services_of("scheduler"), ServiceRecord)
    for mirror in (deployments, replicas, registries, schedulers):
        chassis.start(mirror.run(), f"mirror {mirror.prefix}")
    chassis.start(routes.run(deployments, replicas), "routes")
    chassis.ready_check("routes", routes.ready)

    certificates = chassis.certificates
    tls = certificates.client if certificates.calls else None
    upstreams = Upstreams(
        lambda address: Peer(
            address,
            token=chassis.token,
            tls=tls,
            unix_socket=lambda: routes.table.unix_sockets.get(address, ""),
        ),
        on_lost=routes.disprove,
        on_ejected=metrics.ejected,
    )
    chassis.start(upstreams.run(), "upstreams")
    chassis.start(upstreams.watch(), "watch for gray replicas")
    chassis.start(follow_routes(routes, upstreams), "upstream addresses")
    chassis.start(probe_held(routes, upstreams), "probes")
    chassis.on_close(upstreams.close)

    registry = Backend("registry", registries, credentials=certificates.channel, tls=tls)
    scheduler = Backend("scheduler", schedulers, credentials=certificates.channel)
    chassis.on_close(registry.close)
    chassis.on_close(scheduler.close)
    control = Control(registry, scheduler, token=chassis.token, default_timeout=config.default_timeout)

    access = AccessLog(config.access_log) if config.access_log else None
    if access is not None:
        chassis.start(access.run(), "access log")
    room = _waiting_room(chassis, config, routes, upstreams, schedulers)
    inference = Inference(
        routes,
        upstreams,
        Repository(routes, control),
        max_body_bytes=config.max_body_bytes,
        shared_memory=_shared_memory(chassis, config),
        retries=config.retries,
        not_ready=chassis.not_ready,
        room=room,
        access=access,
    )
    metrics.expose(routes, upstreams, lambda: len(room))
    rpc.register(chassis, inference, control, default_timeout=config.default_timeout)
    listener = chassis.sockets["http_port"]

    def rest() -> Coroutine[Any, Any, None]:
        return serve_rest(
            sock=listener,
            share=chassis.share,
            inference=inference,
            control=control,
            ready=chassis.not_ready,
            max_body_bytes=config.max_body_bytes,
            default_timeout=config.default_timeout,
            authenticate=chassis.authenticator.authenticate,
            tls=certificates.server("http/1.1"),
            drain_seconds=config.drain_seconds,
            listening=lambda port: get_logger().info("rest_started", address=f"{config.host}:{port}"),
        )

    chassis.serve_beside(rest, "rest")
    if not chassis.supervised:
        await announce(chassis, etcd, config)


def _waiting_room(
    chassis: Chassis,
    config: GatewayConfig,
    routes: RoutingTable,
    upstreams: Upstreams,
    schedulers: Mirror[ServiceRecord],
) -> Room:
    """The room, and the reports by which schedulers hear of those who wait in it."""
    reports = Reports(
        chassis.id,
        schedulers,
        partial(report, routes, upstreams),
        heard=lambda answer: room.told(answer),
        token=chassis.token,
        credentials=chassis.certificates.channel,
    )
    room = Room(
        routes,
        upstreams.demand,
        most=config.waiting_requests,
        most_each=config.waiting_requests_per_version,
        share=chassis.share,
        wish=reports.soon,
    )
    chassis.start(reports.run(), "reports of demand")
    chassis.on_close(reports.close)

    async def end_waiting() -> None:
        room.close_at(asyncio.get_running_loop().time() + config.drain_seconds * WAITING_SHARE)

    chassis.on_drain(end_waiting)
    return room


def _shared_memory(chassis: Chassis, config: GatewayConfig) -> SharedMemory:
    """The extension; its table ends with the service, whose processes share it."""
    if not config.shared_memory:
        return SharedMemory()
    table = RegionTable(chassis.runtime_dir)

    async def forget() -> None:
        table.close()

    chassis.on_close(forget)
    return SharedMemory(table, max_bytes=config.max_body_bytes)


async def follow_routes(routes: RoutingTable, upstreams: Upstreams) -> None:
    """Lets go of what no route needs any more, connections and what was held against replicas, until cancelled."""
    while True:
        news, table = routes.news, routes.table
        upstreams.keep(table.addresses)
        for address, served, _ in list(upstreams.gray()):
            if table.replica_at(address, *served) is None:
                upstreams.pardon(address, served)
        await news.wait()
