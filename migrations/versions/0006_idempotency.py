"""Answers to requests that carried an Idempotency-Key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _secure(table: str) -> None:
    """As in 0001."""
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def upgrade() -> None:
    op.create_table(
        "idempotency_records",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=True),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        # Or a customer could take a key away from another one.
        sa.CheckConstraint("owner_id = customer_id OR customer_id IS NULL", name=op.f("idempotency_records_owner")),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("idempotency_records_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "key_sha256", name=op.f("idempotency_records_pkey")),
    )
    op.create_index("idempotency_records_expiry", "idempotency_records", ["expires_at"])
    op.create_index("idempotency_records_of_customer", "idempotency_records", ["customer_id"])
    _secure("idempotency_records")


def downgrade() -> None:
    op.drop_table("idempotency_records")
