"""Collections, and when results and engines were last used. Does not use tables.py: a migration never changes."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "collections",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("collection", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "version_inputs",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(71), primary_key=True),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"]),
    )
    op.create_index("version_inputs_by_digest", "version_inputs", ["digest"])
    for table in ("build_results", "engines"):
        op.add_column(table, sa.Column("use_time", sa.BigInteger, nullable=False, server_default="0"))
        # Nothing is known of their use so far; counting from now spares what is needed.
        op.execute(sa.text(f"UPDATE {table} SET use_time = :now").bindparams(now=time.time_ns() // 1000))
    op.create_index("versions_by_manifest_digest", "versions", ["manifest_digest"])


def downgrade() -> None:
    op.drop_index("versions_by_manifest_digest", "versions")
    for table in ("engines", "build_results"):
        op.drop_column(table, "use_time")
    op.drop_table("version_inputs")
    op.drop_table("collections")
