"""The audit log, append-only, and the scope `audit:read`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Keys that could do all a customer can still can.
WIDEN_KEYS = """
    UPDATE api_keys SET scopes = array_append(scopes, 'audit:read')
    WHERE scopes @> '{datasets:read,datasets:write,jobs:read,jobs:write,prompts:read,prompts:write,predict}'::text[]
    AND NOT 'audit:read' = ANY (scopes)
"""
NARROW_KEYS = "UPDATE api_keys SET scopes = array_remove(scopes, 'audit:read')"


def _change_keys(statement: str) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(statement)
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=True),
        sa.Column("actor", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=True),
        sa.Column("after", postgresql.JSONB(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_log_pkey")),
    )
    op.create_index("audit_log_of_customer", "audit_log", ["customer_id", "id"])
    # Nobody has the right to change or delete. MAINTAIN is for the lock that a restore takes.
    op.execute("GRANT SELECT, INSERT ON audit_log TO bpt_customer")
    op.execute("GRANT SELECT, INSERT, MAINTAIN ON audit_log TO bpt_system")
    op.execute("ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE audit_log FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON audit_log TO bpt_customer USING ({mine}) WITH CHECK ({mine})")
    # Not even with rights that somebody grants one day, nor as the owner.
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    _change_keys(WIDEN_KEYS)


def downgrade() -> None:
    _change_keys(NARROW_KEYS)
    op.drop_table("audit_log")
    op.execute("DROP FUNCTION refuse_change")
