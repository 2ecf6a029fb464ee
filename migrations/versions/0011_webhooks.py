"""Webhooks: where a customer wishes to be told, what there is to tell, and how far each telling has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Keys that could do all a customer can still can.
WIDEN_KEYS = """
    UPDATE api_keys SET scopes = scopes || '{webhooks:read,webhooks:write}'::text[]
    WHERE scopes @> '{datasets:read,datasets:write,jobs:read,jobs:write,prompts:read,prompts:write,predict}'::text[]
    AND NOT scopes && '{webhooks:read,webhooks:write}'::text[]
"""
NARROW_KEYS = """
    UPDATE api_keys SET scopes = array_remove(array_remove(scopes, 'webhooks:read'), 'webhooks:write')
"""
TABLES = ("webhook_endpoints", "webhook_events", "webhook_deliveries")


def _time(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _of_customer(table: str) -> tuple[sa.Column[object], sa.ForeignKeyConstraint, sa.UniqueConstraint]:
    return (
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f(f"{table}_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.UniqueConstraint("customer_id", "id", name=op.f(f"{table}_customer_id_id_key")),
    )


def _id() -> sa.Column[object]:
    return sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        _id(),
        *_of_customer("webhook_endpoints"),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("events", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text(), nullable=True),
        _time("old_secret_until"),
        _time("failing_since"),
        _time("disabled_at"),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        _time("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_endpoints_pkey")),
    )
    op.create_table(
        "webhook_events",
        _id(),
        *_of_customer("webhook_events"),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column("once", sa.Text(), nullable=True),
        _time("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_events_pkey")),
        sa.UniqueConstraint("customer_id", "once", name=op.f("webhook_events_customer_id_once_key")),
    )
    op.create_index("webhook_events_age", "webhook_events", ["created_at"])
    op.create_table(
        "webhook_deliveries",
        _id(),
        *_of_customer("webhook_deliveries"),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(length=32), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("next_at", now=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        _time("delivered_at"),
        _time("created_at", now=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
        sa.UniqueConstraint("event_id", "endpoint_id", name=op.f("webhook_deliveries_event_id_endpoint_id_key")),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("webhook_deliveries_deliverystate")),
        *(
            sa.ForeignKeyConstraint(
                ["customer_id", column],
                [f"{table}.customer_id", f"{table}.id"],
                name=op.f(f"webhook_deliveries_customer_id_{column}_fkey"),
                ondelete="CASCADE",
            )
            for column, table in (("endpoint_id", "webhook_endpoints"), ("event_id", "webhook_events"))
        ),
    )
    op.create_index(
        "webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_id", "next_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("webhook_deliveries_of_endpoint", "webhook_deliveries", ["endpoint_id", "id"])
    for table in TABLES:
        _secure(table)
    _change_keys(WIDEN_KEYS)


def _change_keys(statement: str) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(statement)
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def _secure(table: str) -> None:
    """As in 0001."""
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def downgrade() -> None:
    _change_keys(NARROW_KEYS)
    for table in reversed(TABLES):
        op.drop_table(table)
