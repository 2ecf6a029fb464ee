"""Prompt sets and versions have descriptions and metadata, versions tell what made them, numbers are never reused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prompt_sets", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("prompt_sets", sa.Column("last_deleted", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("prompt_set_versions", sa.Column("description", sa.Text(), nullable=True))
    op.add_column(
        "prompt_set_versions",
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.add_column("prompt_set_versions", sa.Column("code_version", sa.Text(), nullable=True))


def downgrade() -> None:
    for column in ("code_version", "metadata", "description"):
        op.drop_column("prompt_set_versions", column)
    for column in ("last_deleted", "description"):
        op.drop_column("prompt_sets", column)
