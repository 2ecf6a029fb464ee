"""The migrations make exactly the schema of the models, and can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from bpt_store import datasets, roles
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.models import Base, Dataset, DatasetState
from bpt_store.settings import Settings
from migrations.config import alembic_config


def test_models_and_migrations_agree(owner: Engine) -> None:
    with owner.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": False})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_twice_changes_nothing(settings: Settings, owner: Engine) -> None:
    assert settings.owner_database_url is not None
    roles.prepare(settings)
    command.upgrade(alembic_config(settings.owner_database_url.get_secret_value()), "head")
    test_models_and_migrations_agree(owner)


def test_down_to_nothing_and_up_again(settings: Settings, owner: Engine) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    test_models_and_migrations_agree(owner)


def _old_customer(session: Session, name: str) -> UUID:
    """As a schema has it that knows less of customers than the models do."""
    query = text("INSERT INTO customers (name) VALUES (:name) RETURNING id")
    made: UUID = session.scalars(query, {"name": name}).one()
    return made


def _old_key(session: Session, customer_id: UUID | None, scopes: Sequence[str]) -> UUID:
    """Likewise."""
    query = text(
        "INSERT INTO api_keys (customer_id, name, secret_sha256, scopes) "
        "VALUES (:customer, 'k', '', :scopes) RETURNING id"
    )
    made: UUID = session.scalars(query, {"customer": customer_id, "scopes": [*scopes]}).one()
    return made


def _scopes(session: Session, key_id: UUID) -> set[str]:
    return set(session.scalars(text("SELECT unnest(scopes) FROM api_keys WHERE id = :id"), {"id": key_id}))


def test_keys_with_all_scopes_of_a_customer_get_those_that_came_later_and_no_others_do(
    settings: Settings, database: Database
) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    later = (Scope.PROMPTS_WRITE, Scope.WEBHOOKS_READ, Scope.WEBHOOKS_WRITE, Scope.AUDIT_READ, Scope.USAGE_READ)
    before = [scope for scope in CUSTOMER_SCOPES if scope not in later]
    command.downgrade(config, "0001")
    with database.system() as session:
        customer_id = _old_customer(session, "acme")
        keys = [
            _old_key(session, customer_id, before),
            _old_key(session, customer_id, before[:-1]),
            _old_key(session, None, [Scope.ADMIN]),
        ]
    command.upgrade(config, "head")
    with database.system() as session:
        found = [_scopes(session, key_id) for key_id in keys]
    assert found == [{*CUSTOMER_SCOPES}, {*before[:-1]}, {Scope.ADMIN}]
    command.downgrade(config, "0001")
    with database.system() as session:
        assert _scopes(session, keys[0]) == {*before}


OLD_DATASETS = """
    INSERT INTO datasets (customer_id, name, state, task, source_key, source_sha256, source_bytes, class_names, shards,
                          report)
    VALUES
        (:customer, 'ready', 'ready', 'single-label', NULL, 'aa', 7, '["a", "b"]',
         '[{"key": "k", "sha256": "s", "bytes": 11}]',
         '{"images": {"packed": 5}, "counts": {"a": {"train": 2, "val": 1, "test": 0},
                                               "b": {"train": 1, "val": 0, "test": 1}}}'),
        (:customer, 'photos', 'ready', 'unlabelled', NULL, 'bb', 7, '[]', '[]',
         '{"images": {"packed": 4}, "counts": {}}'),
        (:customer, 'validating', 'validating', 'single-label', 'datasets/x/source.zip', 'cc', 9, '[]', '[]', NULL),
        (:customer, 'failed', 'failed', 'single-label', NULL, 'dd', 9, '[]', '[]', '{"images": {"packed": 0}}'),
        (:customer, 'uploading', 'uploading', 'single-label', 'datasets/y/source.zip', NULL, NULL, '[]', '[]', NULL)
"""


def test_datasets_of_before_become_their_first_version_and_back(settings: Settings, database: Database) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    command.downgrade(config, "0003")
    with database.system() as session:
        customer_id = _old_customer(session, "acme")
        session.execute(text(OLD_DATASETS), {"customer": customer_id})
    command.upgrade(config, "head")
    with database.customer(customer_id) as session:
        rows = {row.name: row for row in session.scalars(select(Dataset))}
        versions = {name: datasets.version(session, row.id, 1) for name, row in rows.items()}
        found = {name: (rows[name].state, rows[name].latest, versions[name].splits) for name in rows}
        assert found == {
            "ready": (DatasetState.READY, 1, {"train": 3, "val": 1, "test": 1}),
            "photos": (DatasetState.READY, 1, {"train": 0, "val": 0, "test": 4}),
            "validating": (DatasetState.VALIDATING, None, None),
            "failed": (DatasetState.FAILED, None, None),
        }
        assert datasets.images(versions["ready"]) == 5
        assert (versions["ready"].stored_bytes, versions["ready"].class_names) == (11, ["a", "b"])
        assert versions["validating"].source == {
            "media_type": "application/zip",
            "parts": [{"key": "datasets/x/source.zip", "sha256": "cc", "bytes": 9}],
        }
        assert session.scalars(text("SELECT count(*) FROM doomed_objects")).one() == 1  # what was half sent
    command.downgrade(config, "0003")
    with database.system() as session:
        kept = session.execute(text("SELECT name, class_names, shards FROM datasets WHERE name = 'ready'")).one()
        assert tuple(kept) == ("ready", ["a", "b"], [{"key": "k", "sha256": "s", "bytes": 11}])
