"""Models, versions and aliases in SQL. The truth about what was published.

Versions never change and their numbers are never taken twice; an alias moves atomically, under the caller's condition.
Methods block: call them from a thread. tests/contract/test_registry_store.py holds on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from penstock import names
from penstock.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound
from penstock.v1 import manifest_pb2, models_pb2

from . import pages
from .database import Database, insert_if_absent
from .rows import models_of, versions_of
from .tables import aliases, deployed_versions, models, publish_requests, tags, version_files, version_inputs, versions

MAX_NUMBER: Final = 10**15
_PAGE_BYTES: Final = 16 << 20
"""Manifests in one answer; a page ends early rather than outgrow a message."""


def now_microseconds() -> int:
    """The wall clock, which is what people want to read in a record."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What to publish.

    number: 0 for the next; seal: stores the version's manifest artifact for the number it got, and gives its digest.
    """

    manifest: manifest_pb2.Manifest
    files: Mapping[str, models_pb2.Artifact]
    publisher: str
    seal: Callable[[int], str]
    number: int = 0
    request_key: str = ""
    fingerprint: str = ""


class Store:
    """The catalogue.

    Args:
        database: migrated.
        clock: microseconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], int] = now_microseconds) -> None:
        self._database = database
        self._clock = clock

    def publish(self, new: NewVersion) -> models_pb2.ModelVersion:
        """Takes a number and stores the version, or finds the one that the same request stored before.

        Raises AlreadyExists for a number that was ever taken, Conflict for a request key used for something else.
        """
        name = new.manifest.name
        with self._database.write() as connection:
            insert_if_absent(connection, models, name=name, create_time=self._clock(), **_NO_VERSION)
            model = lock_model(connection, name)
            if new.request_key and (earlier := _earlier(connection, new)):
                return version_of(connection, name, earlier)
            number = new.number or model.next_number
            _require_free(connection, name, number)
            self._insert(connection, new, number, new.seal(number))
            _refresh(connection, name, max(model.next_number, number + 1))
            return version_of(connection, name, number)

    def get(self, name: str, version: int | str | None) -> models_pb2.ModelVersion:
        """A version by number or alias, None for the newest; raises NotFound."""
        with self._database.read() as connection:
            return version_of(connection, name, find_number(connection, name, version))

    def get_model(self, name: str) -> models_pb2.Model:
        """A model with its aliases; raises NotFound when it has no version."""
        with self._database.read() as connection:
            statement = sa.select(models).where(models.c.name == name, models.c.version_count > 0)
            row = connection.execute(statement).one_or_none()
            if row is None:
                raise _no_model(name)
            return models_of(connection, [row])[0]

    def list_versions(self, name: str, page_size: int, page_token: str) -> tuple[list[models_pb2.ModelVersion], str]:
        """Versions, newest first, and the token of the next page; raises NotFound, InvalidArgument."""
        size, asked = pages.size(page_size), pages.question("versions", name)
        last = pages.last_of(asked, page_token)
        below = int(last) if last.isascii() and last.isdigit() and len(last) <= 18 else MAX_NUMBER + 1
        with self._database.read() as connection:
            find_number(connection, name, None)
            rows = connection.execute(
                sa.select(versions.c.number, sa.func.length(versions.c.manifest))
                .where(versions.c.name == name, versions.c.delete_time.is_(None), versions.c.number < below)
                .order_by(versions.c.number.desc())
                .limit(size + 1)
            ).all()
            numbers = _within(_PAGE_BYTES, rows[:size])
            found = versions_of(connection, name, numbers)
        return found, pages.token(asked, str(numbers[-1])) if len(rows) > len(numbers) else ""

    def list_models(
        self, query: str, wanted: Mapping[str, str], page_size: int, page_token: str
    ) -> tuple[list[models_pb2.Model], str]:
        """Models by name that hold every word of the query and every tag, and the next page's token."""
        words = query.casefold().split()
        size, asked = pages.size(page_size), pages.question("models", " ".join(words), wanted)
        last = pages.last_of(asked, page_token)
        statement = sa.select(models).where(models.c.version_count > 0, models.c.name > last)
        for word in words:
            statement = statement.where(models.c.search.contains(word, autoescape=True))
        for key, value in sorted(wanted.items()):
            holding = sa.select(tags.c.name).where(tags.c.key == key, tags.c.value == value)
            statement = statement.where(models.c.name.in_(holding))
        with self._database.read() as connection:
            rows = connection.execute(statement.order_by(models.c.name).limit(size + 1)).all()
            found = models_of(connection, rows[:size])
        return found, pages.token(asked, rows[size - 1].name) if len(rows) > size else ""

    def delete(self, name: str, number: int) -> None:
        """Deletes a version; raises NotFound, and InUse while it is deployed or an alias names it."""
        with self._database.write() as connection:
            model = lock_model(connection, name)
            find_number(connection, name, number)
            if _column(connection, deployed_versions.c.number, deployed_versions, name, number):
                raise InUse(f"model {name!r}: version {number} is deployed; undeploy it first", field="version")
            if pointing := _column(connection, aliases.c.alias, aliases, name, number):
                shown = ", ".join(map(repr, sorted(pointing)[:8]))
                raise InUse(
                    f"model {name!r}: version {number} is named by {shown}; move the alias first", field="version"
                )
            this = sa.and_(versions.c.name == name, versions.c.number == number)
            connection.execute(versions.update().where(this).values(delete_time=self._clock()))
            # Its files stay named for the sake of builds that began from it, until the next collection.
            of_this = sa.and_(version_inputs.c.name == name, version_inputs.c.number == number)
            connection.execute(version_inputs.delete().where(of_this))
            _refresh(connection, name, model.next_number)

    def set_alias(self, name: str, alias: str, number: int, expected: int | None) -> int:
        """Points an alias at a version; where it pointed before, 0 for nowhere.

        expected: where it must point now, 0 for nowhere, None for anywhere. Raises NotFound, Conflict.
        """
        with self._database.write() as connection:
            lock_model(connection, name)
            find_number(connection, name, number)
            current = _expected(connection, name, alias, expected)
            if current == number:
                return current
            values = {"number": number, "update_time": self._clock()}
            if current:
                this = sa.and_(aliases.c.name == name, aliases.c.alias == alias)
                connection.execute(aliases.update().where(this).values(values))
            else:
                connection.execute(aliases.insert().values(name=name, alias=alias, **values))
            _tell_cluster(connection, name, (current, number))
            return current

    def delete_alias(self, name: str, alias: str, expected: int | None) -> None:
        """Removes an alias under the same condition; raises NotFound, Conflict."""
        with self._database.write() as connection:
            lock_model(connection, name)
            current = _expected(connection, name, alias, expected)
            if not current:
                raise _no_alias(name, alias)
            connection.execute(aliases.delete().where(aliases.c.name == name, aliases.c.alias == alias))
            _tell_cluster(connection, name, (current,))

    def _insert(self, connection: Connection, new: NewVersion, number: int, digest: str) -> None:
        name = new.manifest.name
        connection.execute(
            versions.insert().values(
                name=name,
                number=number,
                manifest=new.manifest.SerializeToString(deterministic=True),
                format=new.manifest.format,
                manifest_digest=digest,
                memory_bytes=new.manifest.resources.memory_bytes,
                publisher=new.publisher,
                create_time=self._clock(),
            )
        )
        files = [
            {"name": name, "number": number, "role": role, "digest": file.digest, "size_bytes": file.size_bytes}
            for role, file in new.files.items()
        ]
        connection.execute(version_files.insert(), files)
        if inputs := build_inputs(new.manifest):
            rows = [{"name": name, "number": number, "digest": digest} for digest in sorted(inputs)]
            connection.execute(version_inputs.insert(), rows)
        if new.request_key:
            connection.execute(
                publish_requests.insert().values(
                    name=name,
                    request_key=new.request_key,
                    fingerprint=new.fingerprint,
                    number=number,
                    create_time=self._clock(),
                )
            )


def build_inputs(manifest: manifest_pb2.Manifest) -> set[str]:
    """Digests of the artifacts beside its files that a manifest's build reads."""
    named = {text for step in manifest.build.steps for text in step.inputs.values()}
    return {text for text in named if names.is_digest(text)}


_NO_VERSION: Final[dict[str, Any]] = {
    "next_number": 1,
    "generation": 0,
    "latest_number": 0,
    "version_count": 0,
    "update_time": 0,
    "description": "",
    "author": "",
    "framework": "",
    "format": "",
    "search": "",
}


def lock_model(connection: Connection, name: str) -> sa.Row[Any]:
    """The model's row, held against other writers until the transaction ends; raises NotFound."""
    row = connection.execute(sa.select(models).where(models.c.name == name).with_for_update()).one_or_none()
    if row is None:
        raise _no_model(name)
    return row


def find_number(connection: Connection, name: str, version: int | str | None) -> int:
    """The number of a version that is there: itself, by alias, or the newest (None); raises NotFound."""
    latest = connection.scalar(sa.select(models.c.latest_number).where(models.c.name == name))
    if not latest:
        raise _no_model(name)
    if version is None:
        return int(latest)
    if isinstance(version, str):
        this = sa.and_(aliases.c.name == name, aliases.c.alias == version)
        number = connection.scalar(sa.select(aliases.c.number).where(this))
        if number is None:
            raise _no_alias(name, version)
        return int(number)
    this = sa.and_(versions.c.name == name, versions.c.number == version, versions.c.delete_time.is_(None))
    if connection.scalar(sa.select(versions.c.number).where(this)) is None:
        raise NotFound(f"model {name!r} has no version {version}; its newest is {latest}", field="version")
    return version


def version_of(connection: Connection, name: str, number: int) -> models_pb2.ModelVersion:
    """One version that is known to be there."""
    return versions_of(connection, name, [number])[0]


def _no_model(name: str) -> NotFound:
    return NotFound(f"model {name!r} is not known here", field="name")


def _no_alias(name: str, alias: str) -> NotFound:
    return NotFound(f"model {name!r} has no alias {alias!r}", field="alias")


def _earlier(connection: Connection, new: NewVersion) -> int:
    """Number of the version that this request key has published, 0 for none; a deleted one leaves the key free."""
    this = sa.and_(publish_requests.c.name == new.manifest.name, publish_requests.c.request_key == new.request_key)
    row = connection.execute(sa.select(publish_requests).where(this)).one_or_none()
    if row is None:
        return 0
    if row.fingerprint != new.fingerprint:
        raise Conflict("request_key: was used to publish something else; choose a new one", field="request_key")
    try:
        return find_number(connection, new.manifest.name, int(row.number))
    except NotFound:
        connection.execute(publish_requests.delete().where(this))
        return 0


def _require_free(connection: Connection, name: str, number: int) -> None:
    if number > MAX_NUMBER:
        raise InvalidArgument(f"version: {number} is more than {MAX_NUMBER}", field="version")
    this = sa.and_(versions.c.name == name, versions.c.number == number)
    row = connection.execute(sa.select(versions.c.delete_time).where(this)).one_or_none()
    if row is not None:
        state = "exists" if row.delete_time is None else "was deleted, and numbers are not taken twice"
        raise AlreadyExists(f"model {name!r}: version {number} {state}; send 0 for the next number", field="version")


def _refresh(connection: Connection, name: str, next_number: int) -> None:
    """Makes the model's row and tags those of its newest version."""
    this = sa.and_(versions.c.name == name, versions.c.delete_time.is_(None))
    count = connection.scalar(sa.select(sa.func.count()).select_from(versions).where(this)) or 0
    newest = connection.execute(
        sa.select(versions).where(this).order_by(versions.c.number.desc()).limit(1)
    ).one_or_none()
    values = dict(_NO_VERSION)
    del values["generation"]
    connection.execute(tags.delete().where(tags.c.name == name))
    if newest is not None:
        manifest = manifest_pb2.Manifest.FromString(newest.manifest)
        values = {
            "latest_number": newest.number,
            "version_count": count,
            "update_time": newest.create_time,
            "description": manifest.description,
            "author": manifest.author,
            "framework": manifest.framework,
            "format": manifest.format,
            "search": _search_text(manifest),
        }
        if manifest.tags:
            rows = [{"name": name, "key": key, "value": value} for key, value in sorted(manifest.tags.items())]
            connection.execute(tags.insert(), rows)
    connection.execute(models.update().where(models.c.name == name).values(values | {"next_number": next_number}))


def _search_text(manifest: manifest_pb2.Manifest) -> str:
    words = [manifest.name, manifest.description, manifest.author, manifest.framework]
    words += [f"{key}={value}" for key, value in sorted(manifest.tags.items())]
    return "\n".join(words).casefold()


def _expected(connection: Connection, name: str, alias: str, expected: int | None) -> int:
    """Where the alias points now, 0 for nowhere; raises Conflict when that is not what the caller thinks."""
    this = sa.and_(aliases.c.name == name, aliases.c.alias == alias)
    current = int(connection.scalar(sa.select(aliases.c.number).where(this)) or 0)
    if expected is not None and expected != current:
        where = f"points at version {current}" if current else "does not exist"
        raise Conflict(f"alias {alias!r} of model {name!r} {where}; read again, then decide", field="expected_version")
    return current


def _tell_cluster(connection: Connection, name: str, numbers: Iterable[int]) -> None:
    """Counts a change of the deployment's record when one of these versions is deployed."""
    deployed = sa.exists().where(deployed_versions.c.name == name, deployed_versions.c.number.in_(list(numbers)))
    connection.execute(
        models.update().where(models.c.name == name, deployed).values(generation=models.c.generation + 1)
    )


def _column(connection: Connection, column: sa.Column[Any], table: sa.Table, name: str, number: int) -> Sequence[Any]:
    return connection.scalars(sa.select(column).where(table.c.name == name, table.c.number == number)).all()


def _within(limit: int, rows: Sequence[Any]) -> list[int]:
    """As many numbers from the front as fit, one at least; rows of (number, bytes)."""
    numbers: list[int] = []
    for number, length in rows:
        limit -= length
        if numbers and limit < 0:
            break
        numbers.append(number)
    return numbers
