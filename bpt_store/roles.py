"""The three database roles, made by a superuser once and kept in step with the passwords in the settings.

bpt_owner owns the tables and runs migrations; bpt_customer works under row-level security; bpt_system bypasses it.
"""

from __future__ import annotations

from sqlalchemy import Connection, create_engine, make_url, text

from bpt_store.settings import Settings

_ATTRIBUTES = {"bpt_owner": "NOBYPASSRLS", "bpt_customer": "NOBYPASSRLS", "bpt_system": "BYPASSRLS"}


def prepare(settings: Settings) -> None:
    """Create or update roles and database; safe to repeat. ValueError where a URL names another role than it must."""
    assert settings.superuser_database_url is not None
    assert settings.owner_database_url is not None
    urls = {
        "bpt_owner": make_url(settings.owner_database_url.get_secret_value()),
        "bpt_customer": make_url(settings.database_url.get_secret_value()),
        "bpt_system": make_url(settings.system_database_url.get_secret_value()),
    }
    superuser = create_engine(settings.superuser_database_url.get_secret_value(), isolation_level="AUTOCOMMIT")
    with superuser.connect() as connection:
        for role, url in urls.items():
            if url.username != role:
                raise ValueError(f"the URL of {role} logs in as {url.username}")
            if not _exists(connection, "pg_roles", "rolname", role):
                _execute(connection, "CREATE ROLE %I", role)
            _execute(connection, f"ALTER ROLE %I LOGIN NOSUPERUSER {_ATTRIBUTES[role]} PASSWORD %L", role, url.password)
        database = urls["bpt_owner"].database
        assert database is not None
        if not _exists(connection, "pg_database", "datname", database):
            _execute(connection, "CREATE DATABASE %I OWNER bpt_owner", database)
    superuser.dispose()


def _exists(connection: Connection, catalogue: str, column: str, name: str) -> bool:
    query = text(f"SELECT 1 FROM {catalogue} WHERE {column} = :name")  # noqa: S608  # both are ours
    return connection.scalar(query, {"name": name}) is not None


def _execute(connection: Connection, template: str, *values: object) -> None:
    """Role and database names cannot be bound; PostgreSQL's own format() quotes them."""
    marks = "".join(f", CAST(:v{index} AS text)" for index in range(len(values)))
    statement = connection.scalar(
        text(f"SELECT format(:template{marks})"),
        {"template": template, **{f"v{index}": value for index, value in enumerate(values)}},
    )
    assert statement is not None
    connection.exec_driver_sql(statement)
