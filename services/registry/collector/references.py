"""What names artifacts, read from the database: versions, builds that wait or run, results and plans, collections.

Methods block: call them from a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from penstock import names
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2
from penstock.v1.storage_pb2 import Collection

from .. import pages
from ..build.tables import build_results, build_steps, builds, engines
from ..database import Database
from ..store import now_microseconds
from ..tables import version_files, version_inputs, versions
from .cache import PLANS, RESULTS, Entry, kept_bytes
from .tables import collections

T = TypeVar("T")

KEPT_COLLECTIONS: Final = 1000
_AT_ONCE: Final = 500
"""Digests of one question, which every database takes."""
_ACTIVE: Final = (pb.BUILD_STATE_PENDING, pb.BUILD_STATE_RUNNING)
_TABLES: Final = {RESULTS: build_results, PLANS: engines}


@dataclass(frozen=True, slots=True)
class Wanted:
    """builds: digests that builds which wait or run name: what they read, and what their steps have made. entries: what
    the cache holds."""

    builds: frozenset[str]
    entries: tuple[Entry, ...]


class References:
    """The database as the collector sees it. clock: microseconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_microseconds) -> None:
        self._database = database
        self._clock = clock

    def wanted(self) -> Wanted:
        """What builds and the cache name, as of one moment."""
        with self._database.read() as connection:
            digests, keys = _of_builds(connection)
            entries = [
                replace(entry, busy=entry.key in keys or not digests.isdisjoint(entry.files))
                for entry in _entries(connection)
            ]
        return Wanted(frozenset(digests), tuple(entries))

    def cache_bytes(self) -> dict[str, int]:
        """Bytes of the files of results and of plans that the cache holds now."""
        with self._database.read() as connection:
            return {str(kind): count for kind, count in kept_bytes(_entries(connection)).items()}

    def of_versions(self, digests: Iterable[str]) -> set[str]:
        """Those of them that a version which is not deleted names."""
        found: set[str] = set()
        there = versions.c.delete_time.is_(None)
        same = sa.and_(versions.c.name == version_files.c.name, versions.c.number == version_files.c.number)
        files = sa.select(version_files.c.digest).join(versions, same)
        inputs = sa.select(version_inputs.c.digest)
        for part in _parts(digests):
            with self._database.read() as connection:
                found.update(connection.scalars(files.where(there, version_files.c.digest.in_(part))))
                found.update(connection.scalars(inputs.where(version_inputs.c.digest.in_(part))))
                manifests = sa.select(versions.c.manifest_digest).where(there, versions.c.manifest_digest.in_(part))
                found.update(connection.scalars(manifests))
        return found

    def evict(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Forgets these, but for those that were used meanwhile; which that were."""
        gone = []
        for part in _parts(entries):
            with self._database.write() as connection:
                for entry in part:
                    table = _TABLES[entry.kind]
                    this = sa.and_(table.c.key == entry.key, table.c.use_time == entry.used)
                    if connection.execute(table.delete().where(this)).rowcount:
                        gone.append(entry)
        return tuple(gone)

    def forget_deleted(self) -> None:
        """Drops the names that deleted versions gave to files for the sake of a build which is over."""
        deleted = sa.exists().where(
            versions.c.name == version_files.c.name,
            versions.c.number == version_files.c.number,
            versions.c.delete_time.is_not(None),
        )
        needed = sa.exists().where(
            builds.c.name == version_files.c.name, builds.c.number == version_files.c.number, _active()
        )
        with self._database.write() as connection:
            connection.execute(version_files.delete().where(deleted, ~needed))

    # --- the record of collections ------------------------------------------------------------------------------------

    def record(self, made: Collection) -> None:
        """Writes a collection down and gives it its id; the oldest go."""
        row = {"time": made.time.ToMicroseconds(), "collection": made.SerializeToString(deterministic=True)}
        with self._database.write() as connection:
            key = connection.execute(collections.insert().values(row)).inserted_primary_key
            made.id = key[0] if key is not None else 0
            connection.execute(collections.delete().where(collections.c.id <= made.id - KEPT_COLLECTIONS))

    def listed(self, page_size: int) -> list[Collection]:
        """The newest collections."""
        newest = sa.select(collections).order_by(collections.c.id.desc()).limit(pages.size(page_size))
        with self._database.read() as connection:
            rows = connection.execute(newest).all()
        found = []
        for row in rows:
            made = Collection.FromString(row.collection)
            made.id = row.id
            found.append(made)
        return found

    def microseconds_since_last(self) -> int | None:
        """How long ago the last collection began that the registry made by itself or somebody asked for."""
        with self._database.read() as connection:
            last = connection.scalar(sa.select(sa.func.max(collections.c.time)))
        return None if last is None else self._clock() - last

    def now(self) -> Timestamp:
        """The time of the records."""
        made = Timestamp()
        made.FromMicroseconds(self._clock())
        return made


def _parts(things: Iterable[T]) -> Iterator[list[T]]:
    """Lists of so many that one statement takes them."""
    left = iter(things)
    while part := list(islice(left, _AT_ONCE)):
        yield part


def _active() -> sa.ColumnElement[bool]:
    return builds.c.state.in_(_ACTIVE)


def _of_builds(connection: Connection) -> tuple[set[str], set[str]]:
    """Digests that builds which wait or run name, and the keys of the results that they have used."""
    digests: set[str] = set()
    keys: set[str] = set()
    for row in connection.execute(sa.select(builds.c.spec).where(_active())):
        spec = manifest_pb2.BuildSpec.FromString(row.spec)
        digests.update(spec.files.values())
        digests.update(text for step in spec.steps for text in step.inputs.values() if names.is_digest(text))
    of_step = sa.select(build_steps.c.status).join(builds, builds.c.id == build_steps.c.build_id)
    for data in connection.scalars(of_step.where(_active())):
        status = pb.StepStatus.FromString(data)
        digests.update(artifact.digest for artifact in status.outputs.values())
        keys.add(status.key)
    # Of the version that each began from, deleted meanwhile or not.
    same = sa.and_(builds.c.name == version_files.c.name, builds.c.number == version_files.c.number)
    digests.update(connection.scalars(sa.select(version_files.c.digest).join(builds, same).where(_active())))
    return digests, keys


def _entries(connection: Connection) -> Iterator[Entry]:
    for row in connection.execute(sa.select(build_results)):
        outputs = pb.StepStatus.FromString(row.status).outputs
        yield Entry(RESULTS, row.key, {one.digest: one.size_bytes for one in outputs.values()}, row.use_time)
    for row in connection.execute(sa.select(engines)):
        engine = pb.Engine.FromString(row.engine)
        files = {one.digest: one.size_bytes for one in (engine.artifact, *engine.files.values())}
        yield Entry(PLANS, row.key, files, row.use_time)
