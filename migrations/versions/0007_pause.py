"""Jobs can be paused, and tried again after they have failed; the time they have worked is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _allow(*states: str) -> None:
    op.drop_constraint(op.f("jobs_jobstate"), "jobs", type_="check")
    listed = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f("jobs_jobstate"), "jobs", f"state IN ({listed})")


def _index_held(*states: str) -> None:
    op.drop_index("jobs_held", table_name="jobs")
    listed = ", ".join(f"'{state}'" for state in states)
    op.create_index("jobs_held", "jobs", ["lease_expires_at"], postgresql_where=sa.text(f"state in ({listed})"))


def _execute(*statements: str) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    tables = ("jobs", "queue_shares")  # a trigger on the one writes to the other
    for table in tables:
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    for statement in statements:
        op.execute(statement)
    for table in tables:
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def upgrade() -> None:
    _allow("queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")
    _index_held("running", "pausing", "cancelling")
    seconds = sa.Column("worked_seconds", sa.Float(), server_default=sa.text("0"), nullable=False)
    op.add_column("jobs", seconds)
    op.add_column("jobs", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("log_tail", postgresql.ARRAY(sa.Text()), nullable=True))
    op.create_index(
        "jobs_kept_checkpoints",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("state in ('failed', 'cancelled') and checkpoint is not null"),
    )
    # So far every end gave the checkpoint up, but left its name in the row.
    _execute("UPDATE jobs SET checkpoint = NULL WHERE state IN ('succeeded', 'failed', 'cancelled')")


def downgrade() -> None:
    # Nobody's work is lost: what is paused is done after all.
    _execute(
        "UPDATE jobs SET state = 'queued', available_at = now() WHERE state = 'paused'",
        "UPDATE jobs SET state = 'running' WHERE state = 'pausing'",
    )
    op.drop_index("jobs_kept_checkpoints", table_name="jobs")
    for column in ("log_tail", "claimed_at", "worked_seconds"):
        op.drop_column("jobs", column)
    _index_held("running", "cancelling")
    _allow("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
