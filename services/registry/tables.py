"""The tables of the registry's database. migrations/versions/ builds them; a test keeps the two equal.

Times are microseconds since 1970. A deleted version keeps its row, so that its number is never taken again.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

# Names sort by their bytes on every database, whatever its locale.
Name = String(64).with_variant(String(64, collation="C"), "postgresql")

metadata = MetaData()

models = Table(
    "models",
    metadata,
    Column("name", Name, primary_key=True),
    Column("create_time", BigInteger, nullable=False),
    # The next free version number; only grows.
    Column("next_number", BigInteger, nullable=False),
    # Changes of what the cluster should know of this model; only grows, also when it is undeployed and deployed again.
    Column("generation", BigInteger, nullable=False),
    # Of the newest version that is not deleted; 0 while there is none.
    Column("latest_number", BigInteger, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("framework", Text, nullable=False),
    Column("format", String(32), nullable=False),
    # All words to search for, case-folded.
    Column("search", Text, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("name", Name, ForeignKey("models.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    # A serialised penstock.v1.Manifest.
    Column("manifest", LargeBinary, nullable=False),
    Column("format", String(32), nullable=False),
    Column("manifest_digest", String(71), nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("publisher", String(256), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("delete_time", BigInteger, nullable=True),
    Index("versions_by_manifest_digest", "manifest_digest"),
)

# A deleted version keeps its rows while a build that began from it goes on; the next collection drops them.
version_files = Table(
    "version_files",
    metadata,
    Column("name", Name, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("role", String(64), primary_key=True),
    Column("digest", String(71), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    Index("version_files_by_digest", "digest"),
)

# Artifacts beside its files that a version's own build reads; a deleted version has none.
version_inputs = Table(
    "version_inputs",
    metadata,
    Column("name", Name, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(71), primary_key=True),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    Index("version_inputs_by_digest", "digest"),
)

# Of the newest version.
tags = Table(
    "tags",
    metadata,
    Column("name", Name, ForeignKey("models.name"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
    Index("tags_by_value", "key", "value"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", Name, primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)

publish_requests = Table(
    "publish_requests",
    metadata,
    Column("name", Name, primary_key=True),
    Column("request_key", String(128), primary_key=True),
    # Hash of what was asked, so that a key used for something else is noticed.
    Column("fingerprint", String(64), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)

deployments = Table(
    "deployments",
    metadata,
    Column("name", Name, ForeignKey("models.name"), primary_key=True),
    Column("default_number", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["name", "default_number"], ["versions.name", "versions.number"]),
)

deployed_versions = Table(
    "deployed_versions",
    metadata,
    Column("name", Name, ForeignKey("deployments.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("replicas", Integer, nullable=False),
    Column("retiring", Boolean, nullable=False),
    # A serialised penstock.v1.Scaling and penstock.v1.Placement, where the deployment says so.
    Column("scaling", LargeBinary, nullable=True),
    Column("placement", LargeBinary, nullable=True),
    Column("tenant", Name, nullable=False, server_default=""),
    ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
)
