"""The migrations make exactly the schema of the models, and can be repeated."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from bpt_store import roles
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
