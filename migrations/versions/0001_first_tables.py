"""The first tables, the rights of the three roles, and row-level security."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Tables with customer data, and the column that says whose a row is.
OWNED = {
    "customers": "id",
    "api_keys": "customer_id",
    "datasets": "customer_id",
    "jobs": "customer_id",
    "job_events": "customer_id",
    "prompt_sets": "customer_id",
    "prompt_set_versions": "customer_id",
    "doomed_objects": "customer_id",
}
# Customers and their keys are the administrators' business.
CUSTOMER_RIGHTS = {"customers": "SELECT", "api_keys": None}


def _secure(table: str, column: str) -> None:
    all_rights = "SELECT, INSERT, UPDATE, DELETE"
    if rights := CUSTOMER_RIGHTS.get(table, all_rights):
        op.execute(f"GRANT {rights} ON {table} TO bpt_customer")
    op.execute(f"GRANT {all_rights} ON {table} TO bpt_system")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    # FORCE: the owner is no exception.
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    # nullif: on a pooled connection a setting that was once set reads as '' and not as NULL.
    mine = f"{column} = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def upgrade() -> None:
    op.create_table(
        "customers",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("customers_pkey")),
        sa.UniqueConstraint("name", name=op.f("customers_name_key")),
    )
    op.create_table(
        "doomed_objects",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("doomed_objects_pkey")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("api_keys_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "uploading",
                "validating",
                "ready",
                "failed",
                name="datasetstate",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("task", sa.Text(), server_default="single-label", nullable=False),
        sa.Column("source_key", sa.Text(), nullable=True),
        sa.Column("source_sha256", sa.Text(), nullable=True),
        sa.Column("source_bytes", sa.BigInteger(), nullable=True),
        sa.Column(
            "class_names",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "shards", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("datasets_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("datasets_pkey")),
        sa.UniqueConstraint("customer_id", "id", name=op.f("datasets_customer_id_id_key")),
    )
    op.create_index(
        "datasets_uploading", "datasets", ["created_at"], unique=False, postgresql_where=sa.text("state = 'uploading'")
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("ingest", "tune", name="jobkind", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "cancelling",
                "succeeded",
                "failed",
                "cancelled",
                name="jobstate",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("prompt_set_id", sa.Uuid(), nullable=True),
        sa.Column(
            "payload", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_event", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("checkpoint", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("jobs_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        sa.UniqueConstraint("customer_id", "id", name=op.f("jobs_customer_id_id_key")),
    )
    op.create_index(
        "jobs_held",
        "jobs",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("state in ('running', 'cancelling')"),
    )
    op.create_index("jobs_of_customer", "jobs", ["customer_id", "kind", "id"], unique=False)
    op.create_index("jobs_of_dataset", "jobs", ["dataset_id"], unique=False)
    op.create_index(
        "jobs_queued", "jobs", ["kind", "created_at"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_table(
        "prompt_sets",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("prompt_sets_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("prompt_sets_pkey")),
        sa.UniqueConstraint("customer_id", "id", name=op.f("prompt_sets_customer_id_id_key")),
        sa.UniqueConstraint("customer_id", "name", name=op.f("prompt_sets_customer_id_name_key")),
    )
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "job_id"],
            ["jobs.customer_id", "jobs.id"],
            name=op.f("job_events_customer_id_job_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("job_events_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("job_events_pkey")),
    )
    op.create_table(
        "prompt_set_versions",
        sa.Column("prompt_set_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.Column("artifact_sha256", sa.Text(), nullable=False),
        sa.Column("artifact_bytes", sa.Integer(), nullable=False),
        sa.Column("backbone", sa.Text(), nullable=False),
        sa.Column("backbone_fingerprint", sa.Text(), nullable=False),
        sa.Column("class_names", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parameters", sa.Integer(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"],
            ["prompt_sets.customer_id", "prompt_sets.id"],
            name=op.f("prompt_set_versions_customer_id_prompt_set_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("prompt_set_versions_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("prompt_set_id", "version", name=op.f("prompt_set_versions_pkey")),
    )
    for table, column in OWNED.items():
        _secure(table, column)


def downgrade() -> None:
    op.drop_table("prompt_set_versions")
    op.drop_table("job_events")
    op.drop_table("prompt_sets")
    op.drop_index("jobs_queued", table_name="jobs", postgresql_where=sa.text("state = 'queued'"))
    op.drop_index("jobs_of_dataset", table_name="jobs")
    op.drop_index("jobs_of_customer", table_name="jobs")
    op.drop_index("jobs_held", table_name="jobs", postgresql_where=sa.text("state in ('running', 'cancelling')"))
    op.drop_table("jobs")
    op.drop_index("datasets_uploading", table_name="datasets", postgresql_where=sa.text("state = 'uploading'"))
    op.drop_table("datasets")
    op.drop_table("api_keys")
    op.drop_table("doomed_objects")
    op.drop_table("customers")
