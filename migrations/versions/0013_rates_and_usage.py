"""Customers have rates of their own; what they have used is told by the day; the scope `usage:read`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

RATES = ("requests_per_minute", "images_per_minute", "upload_bytes_per_day")

# Keys that could do all a customer can still can.
WIDEN_KEYS = """
    UPDATE api_keys SET scopes = array_append(scopes, 'usage:read')
    WHERE scopes @> '{datasets:read,datasets:write,jobs:read,jobs:write,prompts:read,prompts:write,predict}'::text[]
    AND NOT 'usage:read' = ANY (scopes)
"""
NARROW_KEYS = "UPDATE api_keys SET scopes = array_remove(scopes, 'usage:read')"


def _change_keys(statement: str) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(statement)
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def upgrade() -> None:
    for name in RATES:
        op.add_column("customers", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_table(
        "usage_days",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("online_images", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("batch_images", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tuning_seconds", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("batch_seconds", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("usage_days_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("customer_id", "day", name=op.f("usage_days_pkey")),
    )
    op.create_index("usage_days_of_all", "usage_days", ["day", "customer_id"])
    # As in 0001.
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON usage_days TO {role}")
    op.execute("ALTER TABLE usage_days ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE usage_days FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON usage_days TO bpt_customer USING ({mine}) WITH CHECK ({mine})")
    _change_keys(WIDEN_KEYS)


def downgrade() -> None:
    _change_keys(NARROW_KEYS)
    op.drop_table("usage_days")
    for name in RATES:
        op.drop_column("customers", name)
