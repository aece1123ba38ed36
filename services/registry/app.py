"""Puts a registry together; decides nothing."""

from __future__ import annotations

import shutil

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.membership import Membership
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import ReplicaRecord, ServiceRecord
from penstock.kit.service import Chassis

from . import metrics, rpc
from .blobs import LocalBlobStore
from .catalog import Catalog
from .config import RegistryConfig
from .database import Database
from .deployment_store import DeploymentStore
from .projector import Projector
from .store import Store
from .threads import Threads
from .upkeep import DatabaseCheck, sweep


async def assemble(chassis: Chassis, config: RegistryConfig) -> None:
    """Starts everything that a registry runs on this chassis."""
    sql, files = Threads("sql", 12), Threads("files", 8)

    async def close_threads() -> None:
        sql.close()
        files.close()

    chassis.on_close(close_threads)
    folder = config.folder()
    blobs = LocalBlobStore(folder, files, max_bytes=config.max_artifact_bytes, spare_bytes=config.spare_bytes)
    chassis.start(sweep(blobs, config.partial_hours * 3600), "sweep")

    database = Database(config.database())

    async def close_database() -> None:
        await sql.run(database.close)

    chassis.on_close(close_database)
    await sql.run(database.migrate)
    check = DatabaseCheck(database, sql)
    chassis.start(check.run(), "database")
    chassis.ready_check("database", check.reason)

    etcd = Etcd.of_service(config.etcd, chassis.etcd_certificates.channel, chassis.etcd_login)
    chassis.on_close(etcd.close)
    deployments = DeploymentStore(database)
    projector = Projector(deployments, sql, etcd, interval=config.project_seconds)
    replicas = Mirror(etcd, keys.REPLICAS, ReplicaRecord, projector.note_change)
    chassis.start(replicas.run(), "mirror of replicas")
    chassis.start(projector.run(replicas), "projector")

    catalog = Catalog(Store(database), deployments, blobs, sql, projector.note_change)
    chassis.reflect(rpc.register(chassis.server, catalog, blobs, upload_idle=config.upload_idle_seconds))
    metrics.expose(projector.behind, lambda: shutil.disk_usage(folder).free)

    membership = Membership(etcd, config.lease_seconds)
    started = Timestamp()
    started.GetCurrentTime()
    announced = ServiceRecord(
        service="registry",
        id=chassis.id,
        address=chassis.address,
        admin_address=chassis.admin_address,
        start_time=started,
    )
    await membership.put(keys.service("registry", chassis.id), announced)
    chassis.start(membership.run(), "membership")
    chassis.on_drain(membership.leave)
