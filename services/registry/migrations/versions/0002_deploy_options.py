"""What a deployment may say besides its replicas. Does not use tables.py: a released migration never changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("deployed_versions", sa.Column("scaling", sa.LargeBinary, nullable=True))
    op.add_column("deployed_versions", sa.Column("placement", sa.LargeBinary, nullable=True))
    op.add_column("deployed_versions", sa.Column("tenant", NAME, nullable=False, server_default=""))


def downgrade() -> None:
    for column in ("tenant", "placement", "scaling"):
        op.drop_column("deployed_versions", column)
