"""Datasets have versions, uploads have parts, jobs have reports."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NEW_TABLES = ("dataset_versions", "uploads", "upload_parts")
MOVED_TABLES = ("datasets", "dataset_versions", "jobs", "prompt_set_versions", "doomed_objects")


def _secure(table: str) -> None:
    """As in 0001."""
    for role in ("bpt_customer", "bpt_system"):
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    mine = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
    op.execute(f"CREATE POLICY own_rows ON {table} TO bpt_customer USING ({mine}) WITH CHECK ({mine})")


def _force(forced: bool) -> None:
    """Migrations run as the owner, who sees no row while row-level security is forced."""
    for table in MOVED_TABLES:
        op.execute(f"ALTER TABLE {table} {'' if forced else 'NO '}FORCE ROW LEVEL SECURITY")


def _created_at() -> sa.Column[datetime]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _allow_states(*states: str) -> None:
    op.drop_constraint(op.f("datasets_datasetstate"), "datasets", type_="check")
    listed = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f("datasets_datasetstate"), "datasets", f"state IN ({listed})")


def upgrade() -> None:
    json = postgresql.JSONB()
    op.create_table(
        "dataset_versions",
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("base", sa.Integer(), nullable=True),
        sa.Column("source", json, nullable=True),
        sa.Column("source_sha256", sa.Text(), nullable=True),
        sa.Column("source_bytes", sa.BigInteger(), nullable=True),
        sa.Column("changes", json, nullable=True),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("class_names", json, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("objects", json, nullable=True),
        sa.Column("images", sa.Integer(), nullable=True),
        sa.Column("splits", json, nullable=True),
        sa.Column("counts", json, nullable=True),
        sa.Column("stored_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("report", json, nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("error", json, nullable=True),
        _created_at(),
        sa.CheckConstraint("state IN ('validating', 'ready', 'failed')", name=op.f("dataset_versions_datasetstate")),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("dataset_versions_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "dataset_id"],
            ["datasets.customer_id", "datasets.id"],
            name=op.f("dataset_versions_customer_id_dataset_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "number", name=op.f("dataset_versions_pkey")),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("intent", json, nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("part_bytes", sa.BigInteger(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("dataset_id", sa.Uuid(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        _created_at(),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("uploads_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("uploads_pkey")),
        sa.UniqueConstraint("customer_id", "id", name=op.f("uploads_customer_id_id_key")),
    )
    op.create_index("uploads_expiry", "uploads", ["expires_at"])
    op.create_index("uploads_of_customer", "uploads", ["customer_id", "id"])
    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name=op.f("upload_parts_customer_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["customer_id", "upload_id"],
            ["uploads.customer_id", "uploads.id"],
            name=op.f("upload_parts_customer_id_upload_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("upload_parts_pkey")),
    )
    for table in NEW_TABLES:
        _secure(table)
    op.add_column("datasets", sa.Column("options", json, server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.add_column("datasets", sa.Column("latest", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("dataset_version", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("report", json, nullable=True))
    op.add_column("prompt_set_versions", sa.Column("dataset_version", sa.Integer(), nullable=True))
    _force(False)
    _move_down_to_versions()
    _force(True)
    op.drop_index("datasets_uploading", table_name="datasets")
    for column in (
        *("task", "source_key", "source_sha256", "source_bytes"),
        *("class_names", "shards", "report", "error"),
    ):
        op.drop_column("datasets", column)
    _allow_states("validating", "ready", "failed")


def _move_down_to_versions() -> None:
    """What a dataset was becomes its version 1. Uploads that are under way begin again."""
    op.execute(
        "INSERT INTO doomed_objects (customer_id, key) "
        "SELECT customer_id, 'datasets/' || replace(id::text, '-', '') || '/' FROM datasets WHERE state = 'uploading'"
    )
    op.execute("DELETE FROM datasets WHERE state = 'uploading'")
    op.execute("""
        INSERT INTO dataset_versions (dataset_id, number, customer_id, state, source, source_sha256, source_bytes,
                                      task, class_names, objects, images, splits, counts, stored_bytes, report, error,
                                      created_at)
        SELECT id, 1, customer_id, state,
               CASE WHEN source_key IS NOT NULL THEN jsonb_build_object(
                   'media_type', 'application/zip', 'parts', jsonb_build_array(jsonb_build_object(
                       'key', source_key, 'sha256', source_sha256, 'bytes', source_bytes))) END,
               source_sha256, source_bytes, task, class_names,
               CASE WHEN state = 'ready' THEN jsonb_build_object('shards', shards) END,
               (report -> 'images' ->> 'packed')::integer,
               CASE WHEN state <> 'ready' THEN NULL
                    WHEN task = 'unlabelled'
                    THEN jsonb_build_object('train', 0, 'val', 0, 'test', report -> 'images' -> 'packed')
                    ELSE (SELECT jsonb_object_agg(split, images) FROM (
                        SELECT split, sum(n::integer) AS images
                        FROM jsonb_each(report -> 'counts') class, jsonb_each_text(class.value) AS per(split, n)
                        GROUP BY split) AS sums) END,
               CASE WHEN state = 'ready' THEN report -> 'counts' END,
               coalesce((SELECT sum((shard ->> 'bytes')::bigint) FROM jsonb_array_elements(shards) shard), 0),
               report, error, created_at
        FROM datasets
    """)
    op.execute(
        "UPDATE datasets SET options = jsonb_build_object('task', task), latest = CASE WHEN state = 'ready' THEN 1 END"
    )
    op.execute("UPDATE jobs SET dataset_version = 1 WHERE dataset_id IS NOT NULL")
    op.execute("UPDATE prompt_set_versions SET dataset_version = 1 WHERE dataset_id IS NOT NULL")


def downgrade() -> None:
    json = postgresql.JSONB()
    op.add_column("datasets", sa.Column("task", sa.Text(), server_default="single-label", nullable=False))
    op.add_column("datasets", sa.Column("source_key", sa.Text(), nullable=True))
    op.add_column("datasets", sa.Column("source_sha256", sa.Text(), nullable=True))
    op.add_column("datasets", sa.Column("source_bytes", sa.BigInteger(), nullable=True))
    for name in ("class_names", "shards"):
        op.add_column("datasets", sa.Column(name, json, server_default=sa.text("'[]'::jsonb"), nullable=False))
    for name in ("report", "error"):
        op.add_column("datasets", sa.Column(name, json, nullable=True))
    _force(False)
    op.execute("""
        UPDATE datasets SET task = coalesce(kept.task, 'single-label'), class_names = kept.class_names,
               shards = coalesce(kept.objects -> 'shards', '[]'::jsonb), report = kept.report, error = kept.error,
               source_key = kept.source -> 'parts' -> 0 ->> 'key',
               source_sha256 = kept.source_sha256, source_bytes = kept.source_bytes
        FROM dataset_versions kept
        WHERE kept.dataset_id = datasets.id AND kept.number = coalesce(datasets.latest, 1)
    """)
    _force(True)
    _allow_states("uploading", "validating", "ready", "failed")
    op.create_index("datasets_uploading", "datasets", ["created_at"], postgresql_where=sa.text("state = 'uploading'"))
    op.drop_column("prompt_set_versions", "dataset_version")
    for column in ("report", "dataset_version"):
        op.drop_column("jobs", column)
    for column in ("latest", "options"):
        op.drop_column("datasets", column)
    for table in reversed(NEW_TABLES):
        op.drop_table(table)
