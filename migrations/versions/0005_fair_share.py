"""Customers have weights and limits, jobs priorities; the database counts what waits and runs of each customer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A state that comes later may be named here already.
COUNT = """
CREATE FUNCTION count_job() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    queued_more integer := 0;
    running_more integer := 0;
    of_customer uuid;
    of_kind text;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        queued_more := queued_more - (OLD.state = 'queued')::integer;
        running_more := running_more - (OLD.state IN ('running', 'cancelling', 'pausing'))::integer;
        of_customer := OLD.customer_id;
        of_kind := OLD.kind;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        queued_more := queued_more + (NEW.state = 'queued')::integer;
        running_more := running_more + (NEW.state IN ('running', 'cancelling', 'pausing'))::integer;
        of_customer := NEW.customer_id;
        of_kind := NEW.kind;
    END IF;
    IF queued_more = 0 AND running_more = 0 THEN
        RETURN NULL;
    END IF;
    UPDATE queue_shares SET queued = queued + queued_more, running = running + running_more
        WHERE customer_id = of_customer AND kind = of_kind;
    IF NOT FOUND AND TG_OP <> 'DELETE' THEN
        INSERT INTO queue_shares (customer_id, kind, queued, running)
            VALUES (of_customer, of_kind, queued_more, running_more)
            ON CONFLICT (customer_id, kind) DO UPDATE
            SET queued = queue_shares.queued + queued_more, running = queue_shares.running + running_more;
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.add_column("customers", sa.Column("weight", sa.Float(), server_default=sa.text("1"), nullable=False))
    op.add_column("customers", sa.Column("running_jobs_limit", sa.Integer(), nullable=True))
    op.create_check_constraint(op.f("customers_weight"), "customers", "weight > 0")
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index(
        "jobs_next",
        "jobs",
        ["customer_id", "kind", sa.text("priority DESC"), "created_at"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "queue_shares",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("queued", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("began", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("served", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("kind IN ('ingest', 'tune', 'batch_predict')", name=op.f("queue_shares_jobkind")),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("queue_shares_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("customer_id", "kind", name=op.f("queue_shares_pkey")),
    )
    op.create_index(
        "queue_shares_waiting",
        "queue_shares",
        ["kind", "served", "customer_id"],
        postgresql_where=sa.text("queued > 0"),
    )
    op.create_index("queue_shares_began", "queue_shares", ["kind", "began"])
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON queue_shares TO {role}")
    op.execute("ALTER TABLE queue_shares ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE queue_shares FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON queue_shares TO bpt_customer USING ({mine}) WITH CHECK ({mine})")
    _count_what_is_there()
    op.execute(COUNT)
    op.execute("CREATE TRIGGER count_new AFTER INSERT OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION count_job()")
    op.execute(
        "CREATE TRIGGER count_moved AFTER UPDATE OF state ON jobs FOR EACH ROW "
        "WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION count_job()"
    )


def _count_what_is_there() -> None:
    # Migrations run as the owner, who sees no row while row-level security is forced.
    for table in ("jobs", "queue_shares"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute(
        "INSERT INTO queue_shares (customer_id, kind, queued, running) "
        "SELECT customer_id, kind, count(*) FILTER (WHERE state = 'queued'), "
        "count(*) FILTER (WHERE state IN ('running', 'cancelling')) FROM jobs GROUP BY customer_id, kind"
    )
    for table in ("jobs", "queue_shares"):
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


def downgrade() -> None:
    op.execute("DROP TRIGGER count_moved ON jobs")
    op.execute("DROP TRIGGER count_new ON jobs")
    op.execute("DROP FUNCTION count_job")
    op.drop_table("queue_shares")
    op.drop_index("jobs_next", "jobs")
    op.drop_column("jobs", "priority")
    op.drop_constraint(op.f("customers_weight"), "customers", type_="check")
    op.drop_column("customers", "running_jobs_limit")
    op.drop_column("customers", "weight")
