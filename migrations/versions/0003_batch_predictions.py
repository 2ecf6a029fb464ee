"""Jobs of the kind `batch_predict`."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("jobs_jobkind"), "jobs", type_="check")
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.create_check_constraint(op.f("jobs_jobkind"), "jobs", f"kind IN ({listed})")


def upgrade() -> None:
    _allow("ingest", "tune", "batch_predict")


def downgrade() -> None:
    # Migrations run as the owner, who sees no row while row-level security is forced.
    op.execute("ALTER TABLE jobs NO FORCE ROW LEVEL SECURITY")
    op.execute("DELETE FROM jobs WHERE kind = 'batch_predict'")
    op.execute("ALTER TABLE jobs FORCE ROW LEVEL SECURITY")
    _allow("ingest", "tune")
