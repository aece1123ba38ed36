"""Builds, their results, engines, gates and overrides. Does not use tables.py: a migration never changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "builds",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.Column("creator", sa.String(256), nullable=False),
        sa.Column("request_key", sa.String(128), nullable=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("result_number", sa.BigInteger, nullable=False),
        sa.Column("gate", sa.Integer, nullable=False),
        sa.Column("failed_checks", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("start_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
    )
    op.create_index("builds_by_request", "builds", ["name", "request_key"], unique=True)
    op.create_index("builds_by_state", "builds", ["state", "turn"])
    op.create_index("builds_by_name", "builds", ["name", "turn"])
    op.create_table(
        "build_steps",
        sa.Column("build_id", sa.String(32), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "build_results",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("status", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "engines",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("build_id", sa.String(32), nullable=False),
        sa.Column("engine", sa.LargeBinary, nullable=False),
    )
    op.create_index("engines_by_build", "engines", ["build_id"])
    op.create_table(
        "version_gates",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("build_id", sa.String(32), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("failed_checks", sa.Text, nullable=False),
    )
    op.create_table(
        "gate_overrides",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("name", NAME, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("build_id", sa.String(32), nullable=False),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("failed_checks", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
    )
    op.create_index("gate_overrides_by_name", "gate_overrides", ["name"])


def downgrade() -> None:
    for table in ("gate_overrides", "version_gates", "engines", "build_results", "build_steps", "builds"):
        op.drop_table(table)
