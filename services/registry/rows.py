"""Rows of the database as public messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from penstock.v1 import manifest_pb2, models_pb2

from .tables import aliases, deployed_versions, tags, version_files, versions


def versions_of(connection: Connection, name: str, numbers: Sequence[int]) -> list[models_pb2.ModelVersion]:
    """Those versions, newest first."""

    def rows(table: sa.Table) -> Sequence[sa.Row[Any]]:
        return connection.execute(sa.select(table).where(table.c.name == name, table.c.number.in_(numbers))).all()

    found = {}
    for row in rows(versions):
        found[row.number] = models_pb2.ModelVersion(
            name=name,
            version=row.number,
            manifest=manifest_pb2.Manifest.FromString(row.manifest),
            manifest_digest=row.manifest_digest,
            create_time=_stamp(row.create_time),
            publisher=row.publisher,
            memory_bytes=row.memory_bytes,
        )
    for row in rows(version_files):
        found[row.number].artifacts[row.role].CopyFrom(
            models_pb2.Artifact(digest=row.digest, size_bytes=row.size_bytes)
        )
    for row in sorted(rows(aliases), key=lambda row: str(row.alias)):
        found[row.number].aliases.append(row.alias)
    for row in rows(deployed_versions):
        found[row.number].deployed = True
    return [found[number] for number in sorted(found, reverse=True)]


def models_of(connection: Connection, rows: Sequence[sa.Row[Any]]) -> list[models_pb2.Model]:
    found = {
        row.name: models_pb2.Model(
            name=row.name,
            description=row.description,
            latest_version=row.latest_number,
            version_count=row.version_count,
            create_time=_stamp(row.create_time),
            update_time=_stamp(row.update_time),
            format=row.format,
            framework=row.framework,
            author=row.author,
        )
        for row in rows
    }
    for row in connection.execute(sa.select(aliases).where(aliases.c.name.in_(list(found)))):
        found[row.name].aliases[row.alias] = row.number
    for row in connection.execute(sa.select(tags).where(tags.c.name.in_(list(found)))):
        found[row.name].tags[row.key] = row.value
    return list(found.values())


def _stamp(microseconds: int) -> Timestamp:
    """A time of the database as a message."""
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made
