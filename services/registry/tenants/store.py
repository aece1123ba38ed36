"""Tenants in SQL: what each may do, and the records by which gateways know. Methods block: call them from a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from penstock.errors import NotFound
from penstock.internal.v1.records_pb2 import TenantRecord
from penstock.v1 import tenants_pb2 as pb

from .. import pages
from ..database import LOCK_OF_TENANTS, Database, take_turns
from ..store import now_microseconds
from .tables import tenants


class TenantStore:
    """What every tenant may do.

    Args:
        database: migrated.
        clock: microseconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], int] = now_microseconds) -> None:
        self._database = database
        self._clock = clock

    def set(self, tenant: pb.Tenant, who: str) -> pb.Tenant:
        """Keeps what was checked, in place of what was said before; the same again changes nothing."""
        values = pb.Tenant()
        values.CopyFrom(tenant)
        values.ClearField("name")
        values.who = who
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_TENANTS)
            row = _row(connection, tenant.name)
            if row is not None and _limits(_message(row)) == _limits(values):
                return _message(row)
            now = self._clock() if row is None else max(self._clock(), row.update_time + 1)
            connection.execute(tenants.delete().where(tenants.c.name == tenant.name))
            packed = values.SerializeToString(deterministic=True)
            connection.execute(tenants.insert().values(name=tenant.name, update_time=now, tenant=packed))
        values.name = tenant.name
        values.update_time.FromMicroseconds(now)
        return values

    def get(self, name: str) -> pb.Tenant:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = _row(connection, name)
        if row is None:
            raise NotFound(f"nothing is said of tenant {name!r}", field="name")
        return _message(row)

    def list(self, page_size: int, page_token: str) -> tuple[list[pb.Tenant], str]:
        """Tenants by name, and the next page's token."""
        size, asked = pages.size(page_size), pages.question("tenants", "")
        last = pages.last_of(asked, page_token)
        statement = sa.select(tenants).where(tenants.c.name > last).order_by(tenants.c.name).limit(size + 1)
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
        token = pages.token(asked, rows[size - 1].name) if len(rows) > size else ""
        return [_message(row) for row in rows[:size]], token

    def delete(self, name: str) -> None:
        """Forgets it; what is not there is fine."""
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_TENANTS)
            connection.execute(tenants.delete().where(tenants.c.name == name))

    def records(self) -> dict[str, TenantRecord]:
        """What the gateways are told, by name."""
        with self._database.read() as connection:
            rows: Sequence[sa.Row[Any]] = connection.execute(sa.select(tenants)).all()
        return {row.name: _record(row) for row in rows}


def _row(connection: Connection, name: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(tenants).where(tenants.c.name == name)).one_or_none()


def _message(row: sa.Row[Any]) -> pb.Tenant:
    tenant = pb.Tenant.FromString(row.tenant)
    tenant.name = row.name
    tenant.update_time.FromMicroseconds(row.update_time)
    return tenant


def _limits(tenant: pb.Tenant) -> tuple[list[str], float, int, int]:
    return list(tenant.models), tenant.rate, tenant.burst, tenant.concurrent


def _record(row: sa.Row[Any]) -> TenantRecord:
    tenant = pb.Tenant.FromString(row.tenant)
    return TenantRecord(
        name=row.name,
        generation=row.update_time,
        models=tenant.models,
        rate=tenant.rate,
        burst=tenant.burst,
        concurrent=tenant.concurrent,
    )
