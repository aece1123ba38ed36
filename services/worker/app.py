"""Puts a worker together; decides nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.membership import Membership
from penstock.cluster.reports import Reports
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import AssignmentRecord, ServiceRecord, WorkerRecord
from penstock.kit.service import Chassis
from penstock.plans import public_keys

from . import devices, memory, rpc
from .artifacts import Artifacts
from .config import WorkerConfig
from .departure import Departure
from .engines.catalogue import probe_all
from .engines.engine import Means
from .fencing import keep_fence
from .inference import Inference
from .loading import Loader, Machine
from .losses import Losses
from .plans.cache import PlanCache
from .plans.compiler import Compiler, missing
from .plans.own_key import own_key
from .plans.plans import Plans
from .plans.starting import Starter
from .registry import Registries
from .replica import Surroundings
from .replicas import Replicas

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


async def assemble(chassis: Chassis, config: WorkerConfig) -> None:
    """Starts everything that a worker runs on this chassis."""
    etcd = Etcd.of_service(config.etcd, chassis.etcd_certificates.channel, chassis.etcd_login)
    chassis.on_close(etcd.close)
    membership = Membership(etcd, config.lease_seconds, lambda: replicas.note_change())
    registry_records = Mirror(etcd, keys.services_of("registry"), ServiceRecord)
    registries = Registries(
        registry_records.synced,
        lambda: [record.address for record in registry_records.records.values()],
        token=chassis.token,
        credentials=chassis.certificates.channel,
    )
    chassis.on_close(registries.close)
    artifacts = Artifacts(config.cache_dir, registries, capacity_bytes=config.cache_bytes)
    artifacts.open()

    async def close_cache() -> None:
        artifacts.close()

    chassis.on_close(close_cache)

    own = keys.assignment(chassis.id)
    replicas = Replicas(
        chassis.id,
        chassis.address,
        membership,
        # A mirror of one key may miss that the store was restored, when its revisions have grown past ours since.
        lambda: (assignments.records.get(own), assignments.rewinds + membership.anew),
        lambda: assignments.synced(),
        unix_socket=chassis.listen_unix(),
    )
    assignments = Mirror(etcd, own, AssignmentRecord, replicas.note_change)
    key, no_compiler = await asyncio.to_thread(_compiles, config)
    means = _means(config, key)
    record = await _record(chassis, config, means)
    ledger = memory.Ledger(record.memory_bytes, {device.index: device.memory_bytes for device in record.devices})
    workers = Mirror(etcd, keys.WORKERS, WorkerRecord, lambda: departure.note_change())
    departure = Departure(record, membership, replicas, workers.records, config.drain_seconds)

    rpc.register(chassis, Inference(chassis.id, replicas, chassis.not_ready))
    await membership.put(keys.worker(chassis.id), record)
    machine = await asyncio.to_thread(Machine.found, record.devices)
    loader = Loader(threads=config.threads, load_timeout=config.load_timeout, means=means, machine=machine)
    plans = await asyncio.to_thread(_plans, config, means, key, no_compiler, machine, artifacts, registries)
    surroundings = Surroundings(
        artifacts=artifacts,
        ledger=ledger,
        start=Starter(loader.start, plans).start,
        announce=replicas.announce,
        told=membership.settled,
        run_timeout=config.run_timeout,
        grace_seconds=config.grace_seconds,
        drain_seconds=config.drain_seconds,
        device_bytes=devices.used_by,
        lost=Losses(record, membership).note,
    )
    schedulers = Mirror(etcd, keys.services_of("scheduler"), ServiceRecord)
    reports = Reports(
        chassis.id, schedulers, replicas.report, token=chassis.token, credentials=chassis.certificates.channel
    )
    chassis.on_close(reports.close)
    # Once the store has answered, the worker stays ready without it: what is loaded serves on.
    chassis.ready_check(
        "cluster", lambda: None if assignments.revision else "the coordination store has not answered yet"
    )
    chassis.start(membership.run(), "membership")
    chassis.start(keep_fence(membership, chassis.front), "fence")
    chassis.start(registry_records.run(), "mirror of registries")
    chassis.start(assignments.run(), "mirror of my assignment")
    chassis.start(workers.run(), "mirror of workers")
    chassis.start(schedulers.run(), "mirror of schedulers")
    chassis.start(replicas.run(surroundings), "replicas")
    chassis.start(reports.run(), "reports of work")
    chassis.on_drain(departure.run)
    chassis.on_drain(membership.leave)
    # Once more, for a drain that ran out of time.
    chassis.on_close(membership.leave)


def _compiles(config: WorkerConfig) -> tuple[Ed25519PrivateKey | None, str]:
    """The key for what is compiled here, or None and why nothing is."""
    no_compiler = missing() if config.compile_plans else "compile_plans is off"
    return (None, no_compiler) if no_compiler else (own_key(Path(config.cache_dir).absolute() / "keys"), "")


def _means(config: WorkerConfig, key: Ed25519PrivateKey | None) -> Means:
    """What the operator lends to engines, and trust in what was compiled here."""
    return Means(
        plan_keys=public_keys(Path(config.plan_keys)) if config.plan_keys else (),
        own_key=key.public_key().public_bytes_raw() if key is not None else b"",
        python=config.python_engine,
        python_seconds=config.python_seconds,
    )


def _plans(
    config: WorkerConfig,
    means: Means,
    key: Ed25519PrivateKey | None,
    no_compiler: str,
    machine: Machine,
    artifacts: Artifacts,
    registries: Registries,
) -> Plans:
    """Where plans come from that a version does not bring. Blocks."""
    folder = Path(config.cache_dir).absolute()
    trusted = (*means.plan_keys, *filter(None, [means.own_key]))
    cache = PlanCache(folder / "plans", capacity_bytes=config.plan_cache_bytes, trusted_keys=trusted)
    cache.open()
    compiler = Compiler(
        folder,
        seconds=config.compile_seconds,
        memory_bytes=config.compile_memory_bytes,
        threads=config.threads or max(1, len(os.sched_getaffinity(0)) // 2),
        names=machine.names,
    )
    compiler.open()
    return Plans(
        cache,
        artifacts,
        registries.find_engine,
        compiler=compiler if key is not None else None,
        key=key,
        no_compiler=no_compiler,
    )


async def _record(chassis: Chassis, config: WorkerConfig, means: Means) -> WorkerRecord:
    """What the cluster is told of this worker."""
    engines, missing = await asyncio.to_thread(probe_all, means)
    started = Timestamp()
    started.GetCurrentTime()
    labels = dict(label.split("=", 1) for label in config.labels)
    return WorkerRecord(
        id=chassis.id,
        address=chassis.address,
        admin_address=chassis.admin_address,
        memory_bytes=memory.offered(config.memory_bytes),
        engines=engines,
        missing_engines=missing,
        start_time=started,
        devices=await asyncio.to_thread(devices.devices, config.devices),
        labels=labels,
        taints=config.taints,
        failure_domain=labels.get("zone") or socket.gethostname(),
    )
