"""Prompt sets and versions have labels, versions tell what made them, and aliases of a prompt set may have a gate."""

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
    op.add_column("alias_moves", sa.Column("override_reason", sa.Text(), nullable=True))
    op.create_table(
        "gates",
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("dataset_version", sa.Integer(), nullable=False),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("floor", sa.Float(), nullable=False),
        sa.Column("aliases", postgresql.JSONB(), nullable=True),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("gates_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"],
            ["prompt_sets.customer_id", "prompt_sets.id"],
            name=op.f("gates_customer_id_prompt_set_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "dataset_id"],
            ["datasets.customer_id", "datasets.id"],
            name=op.f("gates_customer_id_dataset_id_fkey"),
        ),
        sa.PrimaryKeyConstraint("prompt_set_id", name=op.f("gates_pkey")),
    )
    op.create_index("gates_of_dataset", "gates", ["dataset_id"])
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("dataset_version", sa.Integer(), nullable=False),
        sa.Column("split", sa.Text(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("evaluations_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id", "version"],
            ["prompt_set_versions.customer_id", "prompt_set_versions.prompt_set_id", "prompt_set_versions.version"],
            name=op.f("evaluations_customer_id_prompt_set_id_version_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("evaluations_pkey")),
    )
    op.create_index("evaluations_of_version", "evaluations", ["prompt_set_id", "version", "id"])
    for table in ("gates", "evaluations"):
        _secure(table)


def _secure(table: str) -> None:
    """As in 0001."""
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def downgrade() -> None:
    for table in ("evaluations", "gates"):
        op.drop_table(table)
    op.drop_column("alias_moves", "override_reason")
    for column in ("code_version", "metadata", "description"):
        op.drop_column("prompt_set_versions", column)
    for column in ("last_deleted", "description"):
        op.drop_column("prompt_sets", column)
