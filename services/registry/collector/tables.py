"""Collections that were made. Part of the metadata of services/registry/tables.py."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table

from ..tables import metadata

collections = Table(
    "collections",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    # When it began, microseconds since 1970.
    Column("time", BigInteger, nullable=False),
    # A serialised penstock.v1.Collection without its id.
    Column("collection", LargeBinary, nullable=False),
)
