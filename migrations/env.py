"""Alembic's entry: one connection as bpt_owner, one transaction, one migrator at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text

from bpt_store.models import Base


def run() -> None:
    engine = create_engine(context.config.attributes["url"])
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bpt migrations'))"))
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
        context.run_migrations()
    engine.dispose()


run()
