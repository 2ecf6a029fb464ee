"""Every epoch of a tuning job leaves a prompt set that can be published; a version tells what it was continued from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_checkpoints",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("val", postgresql.JSONB(), nullable=False),
        sa.Column("facts", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("job_checkpoints_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "job_id"],
            ["jobs.customer_id", "jobs.id"],
            name=op.f("job_checkpoints_customer_id_job_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "epoch", name=op.f("job_checkpoints_pkey")),
    )
    # As in 0001.
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON job_checkpoints TO {role}")
    op.execute("ALTER TABLE job_checkpoints ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE job_checkpoints FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON job_checkpoints TO bpt_customer USING ({mine}) WITH CHECK ({mine})")
    op.add_column("prompt_set_versions", sa.Column("job_epoch", sa.Integer(), nullable=True))
    op.add_column("prompt_set_versions", sa.Column("continued_from", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    for column in ("continued_from", "job_epoch"):
        op.drop_column("prompt_set_versions", column)
    op.drop_table("job_checkpoints")
