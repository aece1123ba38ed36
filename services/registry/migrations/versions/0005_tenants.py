"""What callers may do. Does not use tables.py: a migration never changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("tenants")
