"""Customers may have rates of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

RATES = ("requests_per_minute", "images_per_minute", "upload_bytes_per_day")


def upgrade() -> None:
    for name in RATES:
        op.add_column("customers", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in RATES:
        op.drop_column("customers", name)
