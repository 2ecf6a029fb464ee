"""The migrations make exactly the schema of the models, and can be repeated."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from bpt_store import customers, roles
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.models import Base
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


def test_keys_with_all_scopes_of_a_customer_get_the_one_for_aliases_and_no_others_do(
    settings: Settings, database: Database
) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    before = [scope for scope in CUSTOMER_SCOPES if scope is not Scope.PROMPTS_WRITE]
    command.downgrade(config, "0001")
    with database.system() as session:
        customer_id = customers.create(session, "acme").id
        tokens = [
            customers.create_key(session, customer_id, "default", before)[1],
            customers.create_key(session, customer_id, "reader", before[:-1])[1],
            customers.create_key(session, None, "administrator", [Scope.ADMIN])[1],
        ]
    command.upgrade(config, "head")
    with database.system() as session:
        found = [customers.authenticate(session, token).scopes for token in tokens]
    assert found == [{*CUSTOMER_SCOPES}, {*before[:-1]}, {Scope.ADMIN}]
    command.downgrade(config, "0001")
    with database.system() as session:
        assert customers.authenticate(session, tokens[0]).scopes == {*before}
