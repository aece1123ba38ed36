"""What should run, in SQL: the same database and locks as store.py, the rules of deployments.py.

`generation` counts every change of what the cluster should know of a model; it never goes back, not even when the
model is undeployed and deployed again. Methods block: call them from a thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from penstock import sources
from penstock.errors import Unsupported
from penstock.internal.v1 import records_pb2
from penstock.v1 import manifest_pb2, models_pb2

from .build.overrides import NONE, Override, require
from .database import Database, insert_if_absent
from .deployments import NOTHING, Plan, Wanted, deploy, undeploy, without
from .manifest import ENGINES
from .store import find_number, lock_model, now_microseconds
from .tables import aliases, deployed_versions, deployments, models, versions


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment as read."""

    plan: Plan
    record: records_pb2.DeploymentRecord


class DeploymentStore:
    """What is wanted of every model."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_microseconds) -> None:
        self._database = database
        self._clock = clock

    def deploy(
        self,
        name: str,
        version: int | str | None,
        wanted: Wanted | None,
        *,
        keep_others: bool,
        override: Override = NONE,
    ) -> models_pb2.Deployment:
        """Wants a version, None for the newest; wanted: None to keep what was said of it.

        Raises NotFound, Unsupported for a format that no engine runs, GateFailed unless its gate is overridden.
        """
        with self._database.write() as connection:
            lock_model(connection, name)
            number = find_number(connection, name, version)
            _require_engine(connection, name, number)
            require(connection, name, number, override, self._clock())
            plan = _plan(connection, name)
            self._save(connection, name, plan, deploy(plan, number, wanted, keep_others=keep_others))
            return message(_records(connection, name)[name])

    def undeploy(self, name: str, number: int) -> None:
        """Wants a version gone, 0 for all of the model; fine when it is not deployed; raises NotFound."""
        with self._database.write() as connection:
            lock_model(connection, name)
            plan = _plan(connection, name)
            self._save(connection, name, plan, undeploy(plan, number))

    def prune(self, name: str, generation: int, numbers: tuple[int, ...]) -> bool:
        """Drops retiring versions if nothing has changed since `generation` was read; whether it did."""
        with self._database.write() as connection:
            if lock_model(connection, name).generation != generation:
                return False
            plan = _plan(connection, name)
            return self._save(connection, name, plan, without(plan, numbers))

    def read_all(self) -> dict[str, Deployed]:
        """Every deployment by name, in order."""
        with self._database.read() as connection:
            return _records(connection)

    def _save(self, connection: Connection, name: str, before: Plan, after: Plan) -> bool:
        if before == after:
            return False
        connection.execute(deployed_versions.delete().where(deployed_versions.c.name == name))
        if after.versions:
            values = {"default_number": after.default, "update_time": self._clock()}
            insert_if_absent(connection, deployments, name=name, **values)
            connection.execute(deployments.update().where(deployments.c.name == name).values(values))
            rows = [{"name": name, "number": number, **asdict(wanted)} for number, wanted in after.versions.items()]
            connection.execute(deployed_versions.insert(), rows)
        else:
            connection.execute(deployments.delete().where(deployments.c.name == name))
        connection.execute(models.update().where(models.c.name == name).values(generation=models.c.generation + 1))
        return True


def _require_engine(connection: Connection, name: str, number: int) -> None:
    this = sa.and_(versions.c.name == name, versions.c.number == number)
    format = connection.execute(sa.select(versions.c.format).where(this)).scalar_one()
    if format not in ENGINES:
        raise Unsupported(
            f"model {name!r}: version {number} has the format {format}, which no engine runs; deploy what its build "
            f"made (penstock builds {name}), or have it built: {sources.command(name, number, format)}",
            field="version",
        )


def message(deployed: Deployed) -> models_pb2.Deployment:
    """The public picture of a deployment."""
    record = deployed.record
    return models_pb2.Deployment(
        name=record.name,
        versions=[_deployed_version(number, wanted) for number, wanted in deployed.plan.versions.items()],
        default_version=record.default_version,
        generation=record.generation,
        aliases=dict(record.aliases),
    )


def _deployed_version(number: int, wanted: Wanted) -> models_pb2.DeployedVersion:
    shown = models_pb2.DeployedVersion(
        version=number, replicas=wanted.replicas, retiring=wanted.retiring, tenant=wanted.tenant
    )
    if wanted.scaling is not None:
        shown.scaling.MergeFromString(wanted.scaling)
    if wanted.placement is not None:
        shown.placement.SetInParent()
        shown.placement.MergeFromString(wanted.placement)
    return shown


def _plan(connection: Connection, name: str) -> Plan:
    default = connection.scalar(sa.select(deployments.c.default_number).where(deployments.c.name == name))
    if default is None:
        return NOTHING
    rows = connection.execute(sa.select(deployed_versions).where(deployed_versions.c.name == name))
    return Plan({row.number: _wish(row) for row in rows}, default)


def _wish(row: sa.Row[Any]) -> Wanted:
    return Wanted(row.replicas, row.retiring, row.scaling, row.placement, row.tenant)


def _records(connection: Connection, name: str | None = None) -> dict[str, Deployed]:
    """Deployments by name, one or all."""

    def rows(statement: sa.Select[Any], table: sa.Table) -> Sequence[sa.Row[Any]]:
        return connection.execute(statement if name is None else statement.where(table.c.name == name)).all()

    wanted: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    joined = sa.select(
        deployed_versions, versions.c.memory_bytes, versions.c.manifest_digest, versions.c.format, versions.c.manifest
    ).join_from(
        deployed_versions,
        versions,
        sa.and_(versions.c.name == deployed_versions.c.name, versions.c.number == deployed_versions.c.number),
    )
    for row in rows(joined.order_by(deployed_versions.c.number), deployed_versions):
        wanted[row.name].append(row)
    pointing: dict[str, dict[str, int]] = defaultdict(dict)
    named = sa.select(aliases).join(
        deployed_versions,
        sa.and_(aliases.c.name == deployed_versions.c.name, aliases.c.number == deployed_versions.c.number),
    )
    for row in rows(named, aliases):
        pointing[row.name][row.alias] = row.number
    heads = sa.select(deployments.c.name, deployments.c.default_number, models.c.generation).join(models)
    return {
        row.name: _deployed(row, wanted[row.name], pointing[row.name])
        for row in rows(heads.order_by(deployments.c.name), deployments)
    }


def _deployed(head: sa.Row[Any], rows: Sequence[sa.Row[Any]], pointing: dict[str, int]) -> Deployed:
    record = records_pb2.DeploymentRecord(
        name=head.name,
        generation=head.generation,
        default_version=head.default_number,
        aliases=pointing,
        versions=[_wanted(row) for row in rows],
    )
    plan = Plan({row.number: _wish(row) for row in rows}, head.default_number)
    return Deployed(plan, record)


def _wanted(row: sa.Row[Any]) -> records_pb2.WantedVersion:
    """What the cluster is told of a version. Bytes in a manifest are those of one instance, in a record those of a
    replica."""
    manifest = manifest_pb2.Manifest.FromString(row.manifest)
    # Manifests from before there were instances say 0.
    instances = max(1, manifest.instances)
    wanted = records_pb2.WantedVersion(
        version=row.number,
        replicas=row.replicas,
        memory_bytes=row.memory_bytes * instances,
        manifest_digest=row.manifest_digest,
        engine=ENGINES[row.format],
        retiring=row.retiring,
        tenant=row.tenant,
    )
    if manifest.resources.HasField("devices"):
        wanted.devices.CopyFrom(manifest.resources.devices)
        wanted.devices.memory_bytes *= instances
    if row.placement is not None:
        # Also where it is empty: that takes back what the manifest asks for.
        wanted.placement.SetInParent()
        wanted.placement.MergeFromString(row.placement)
    elif manifest.HasField("placement"):
        wanted.placement.CopyFrom(manifest.placement)
    if row.scaling is not None:
        wanted.scaling.MergeFromString(row.scaling)
    return wanted
