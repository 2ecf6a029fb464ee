"""`python -m migrations`: roles and database if a superuser's URL is given, then the newest schema."""

from __future__ import annotations

from alembic import command

from bpt_store import roles
from bpt_store.settings import load_settings
from migrations.config import alembic_config


def main() -> None:
    settings = load_settings()
    if settings.owner_database_url is None:
        raise SystemExit("BPT_OWNER_DATABASE_URL is needed to migrate")
    if settings.superuser_database_url is not None:
        roles.prepare(settings)
    command.upgrade(alembic_config(settings.owner_database_url.get_secret_value()), "head")


if __name__ == "__main__":
    main()
