"""The catalogue and the deployments. Does not use tables.py: a migration never changes once it is released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("next_number", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("latest_number", sa.BigInteger, nullable=False),
        sa.Column("version_count", sa.Integer, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("framework", sa.Text, nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("search", sa.Text, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("name", NAME, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("manifest_digest", sa.String(71), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("publisher", sa.String(256), nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("delete_time", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "version_files",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    )
    op.create_index("version_files_by_digest", "version_files", ["digest"])
    op.create_table(
        "tags",
        sa.Column("name", NAME, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(256), nullable=False),
    )
    op.create_index("tags_by_value", "tags", ["key", "value"])
    op.create_table(
        "aliases",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "publish_requests",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("request_key", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "deployments",
        sa.Column("name", NAME, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("default_number", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["name", "default_number"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "deployed_versions",
        sa.Column("name", NAME, sa.ForeignKey("deployments.name"), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("retiring", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    )


def downgrade() -> None:
    for table in (
        "deployed_versions",
        "deployments",
        "publish_requests",
        "aliases",
        "tags",
        "version_files",
        "versions",
        "models",
    ):
        op.drop_table(table)
