"""Customers have limits of their own and can be suspended and deleted; keys tell when they were used last."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

OF_CUSTOMERS: dict[str, sa.types.TypeEngine[Any]] = {
    "suspended_at": sa.DateTime(timezone=True),
    "queued_jobs_limit": sa.Integer(),
    "quota_datasets": sa.Integer(),
    "quota_images": sa.BigInteger(),
    "quota_bytes": sa.BigInteger(),
}


def upgrade() -> None:
    for name, kind in OF_CUSTOMERS.items():
        op.add_column("customers", sa.Column(name, kind, nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "doomed_objects",
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.create_index("doomed_objects_next", "doomed_objects", ["not_before", "id"])


def downgrade() -> None:
    op.drop_index("doomed_objects_next", "doomed_objects")
    op.drop_column("doomed_objects", "not_before")
    op.drop_column("api_keys", "last_used_at")
    for name in OF_CUSTOMERS:
        op.drop_column("customers", name)
