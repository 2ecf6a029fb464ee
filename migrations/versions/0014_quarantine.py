"""A version whose stored artifact is not what was published is quarantined."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prompt_set_versions", sa.Column("quarantined_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("prompt_set_versions", sa.Column("quarantine_reason", sa.Text(), nullable=True))
    op.create_index(
        "prompt_set_versions_quarantined",
        "prompt_set_versions",
        ["prompt_set_id", "version"],
        postgresql_where=sa.text("quarantined_at is not null"),
    )


def downgrade() -> None:
    op.drop_index("prompt_set_versions_quarantined", "prompt_set_versions")
    for column in ("quarantine_reason", "quarantined_at"):
        op.drop_column("prompt_set_versions", column)
