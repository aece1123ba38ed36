"""Puts a registry together; decides nothing."""

from __future__ import annotations

import shutil
import sys

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.membership import Membership
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import ReplicaRecord, ServiceRecord
from penstock.kit.confinement import Limits as StepLimits
from penstock.kit.service import Chassis

from . import metrics, rpc
from .blobs import LocalBlobStore
from .build import rpc as build_rpc
from .build.builds import Builds
from .build.job import Bench
from .build.journal import Journal
from .build.metrics import BuildMetrics
from .build.runner import Bell, Runner
from .build.sandbox import Builder
from .build.store import BuildStore
from .catalog import Catalog
from .collector import rpc as collector_rpc
from .collector.cache import Limits
from .collector.collector import Collector
from .collector.references import References
from .collector.rounds import Rounds
from .config import RegistryConfig
from .database import Database
from .deployment_store import DeploymentStore
from .projector import Projector
from .store import Store
from .tenants import rpc as tenant_rpc
from .tenants.store import TenantStore
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
    tenants = TenantStore(database)
    projector = Projector(deployments, tenants, sql, etcd, interval=config.project_seconds)
    replicas = Mirror(etcd, keys.REPLICAS, ReplicaRecord, projector.note_change)
    chassis.start(replicas.run(), "mirror of replicas")
    chassis.start(projector.run(replicas), "projector")

    catalog = Catalog(Store(database), deployments, blobs, sql, projector.note_change)
    builds = _builds(chassis, config, catalog, blobs, database, sql)
    names = rpc.register(
        chassis.server, catalog, blobs, upload_idle=config.upload_idle_seconds, published=builds.of_published
    )
    storage = collector_rpc.register(chassis.server, _rounds(chassis, config, blobs, database))
    callers = tenant_rpc.register(chassis.server, tenants, sql, projector.note_change)
    chassis.reflect((*names, *build_rpc.register(chassis.server, builds), *storage, *callers))
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


def _rounds(chassis: Chassis, config: RegistryConfig, blobs: LocalBlobStore, database: Database) -> Rounds:
    """Collections of what nobody needs, in their time and when they are asked for."""
    references = References(database)
    limits = Limits(config.build_cache_bytes or None, int(config.build_cache_days * 86400e6) or None)
    grace = config.collect_grace_hours * 3600
    collector = Collector(references, blobs, lock=config.folder() / "locks" / "collector", grace=grace, limits=limits)
    rounds = Rounds(collector, references, interval=config.collect_hours * 3600)
    chassis.start(rounds.run(), "collections")
    chassis.on_drain(rounds.leave)
    chassis.on_close(rounds.close)
    return rounds


def _builds(
    chassis: Chassis,
    config: RegistryConfig,
    catalog: Catalog,
    blobs: LocalBlobStore,
    database: Database,
    sql: Threads,
) -> Builds:
    """The build service; a registry that runs no jobs still answers for them."""
    folder = config.folder()
    limits = StepLimits(
        memory_bytes=config.build_memory_bytes,
        cpu_seconds=int(config.build_seconds) * max(1, config.build_threads),
        wall_seconds=config.build_seconds,
        file_bytes=config.build_disk_bytes,
        folder_bytes=config.build_disk_bytes,
    )
    builder = Builder(
        scratch=folder / "builds" / "scratch",
        hidden=folder,
        python=config.build_python or sys.executable,
        limits=limits,
        confined=not config.build_unconfined,
        threads=config.build_threads,
    )
    bell = Bell()
    store = BuildStore(database, most_waiting=config.builds_waiting)
    journal = Journal(folder / "builds" / "logs")
    secrets = folder / "builds" / "keys"
    bench = Bench(store, journal, catalog, blobs, sql, builder, secrets, bell.ring, BuildMetrics())
    cached = References(database).cache_bytes
    runner = Runner(bench, at_once=config.builds, lock=folder / "builds" / "lock", cached=cached)
    if config.builds:
        chassis.start(runner.run(), "builds")
    return Builds(store, journal, catalog, blobs, database, sql, builder, runner, bell)
