"""Tenants. Part of the metadata of services/registry/tables.py."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, Table

from ..tables import Name, metadata

tenants = Table(
    "tenants",
    metadata,
    Column("name", Name, primary_key=True),
    # When it was set, microseconds since 1970; grows with every change, whatever the clock does.
    Column("update_time", BigInteger, nullable=False),
    # A serialised penstock.v1.Tenant without its name and time.
    Column("tenant", LargeBinary, nullable=False),
)
