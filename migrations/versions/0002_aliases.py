"""Aliases of prompt sets, the history of their moves, and the scope `prompts:write`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# What bpt_customer may do. Without UPDATE and DELETE the history is append-only; it goes with its prompt set, for
# cascades run with the rights of the tables' owner.
CUSTOMER_RIGHTS = {"prompt_set_aliases": "SELECT, INSERT, UPDATE, DELETE", "alias_moves": "SELECT, INSERT"}
# Keys that could do all a customer can still can.
WIDEN_KEYS = """
    UPDATE api_keys SET scopes = array_append(scopes, 'prompts:write')
    WHERE scopes @> '{datasets:read,datasets:write,jobs:read,jobs:write,prompts:read,predict}'::text[]
    AND NOT 'prompts:write' = ANY (scopes)
"""
NARROW_KEYS = "UPDATE api_keys SET scopes = array_remove(scopes, 'prompts:write')"


def _secure(table: str) -> None:
    """As in 0001."""
    op.execute(f"GRANT {CUSTOMER_RIGHTS[table]} ON {table} TO bpt_customer")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO bpt_system")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def _change_keys(statement: str) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    op.execute("ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY")
    op.execute(statement)
    op.execute("ALTER TABLE api_keys FORCE ROW LEVEL SECURITY")


def upgrade() -> None:
    op.create_unique_constraint(
        op.f("prompt_set_versions_customer_id_prompt_set_id_version_key"),
        "prompt_set_versions",
        ["customer_id", "prompt_set_id", "version"],
    )
    op.create_table(
        "prompt_set_aliases",
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"],
            ["prompt_sets.customer_id", "prompt_sets.id"],
            name=op.f("prompt_set_aliases_customer_id_prompt_set_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id", "version"],
            ["prompt_set_versions.customer_id", "prompt_set_versions.prompt_set_id", "prompt_set_versions.version"],
            name=op.f("prompt_set_aliases_customer_id_prompt_set_id_version_fkey"),
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("prompt_set_aliases_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("prompt_set_id", "name", name=op.f("prompt_set_aliases_pkey")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=True),
        sa.Column("to_version", sa.Integer(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"],
            ["prompt_sets.customer_id", "prompt_sets.id"],
            name=op.f("alias_moves_customer_id_prompt_set_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("alias_moves_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("prompt_set_id", "alias", "number", name=op.f("alias_moves_pkey")),
    )
    for table in CUSTOMER_RIGHTS:
        _secure(table)
    _change_keys(WIDEN_KEYS)


def downgrade() -> None:
    _change_keys(NARROW_KEYS)
    op.drop_table("alias_moves")
    op.drop_table("prompt_set_aliases")
    op.drop_constraint(op.f("prompt_set_versions_customer_id_prompt_set_id_version_key"), "prompt_set_versions")
