"""Databases for tests: clones of a migrated template, emptied after a test and used again, which is cheaper by far.

So are the connections to them, with the statements that SQLAlchemy has compiled; all others end with the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.models import Base
from bpt_store.settings import Settings

TEMPLATE = "bpt_template"
_GROWN_BYTES = 16 << 20  # what was deleted still takes room, and time to pass over

# Whatever changes the schema writes rows of these catalogs anew; what changes data does not.
_SCHEMA = """
    SELECT sum(hashtext(whose || row)) FROM (
        SELECT 'class' AS whose, oid::text || xmin::text AS row FROM pg_class
        UNION ALL SELECT 'attribute', attrelid::text || attnum::text || xmin::text FROM pg_attribute
        UNION ALL SELECT 'constraint', oid::text || xmin::text FROM pg_constraint
        UNION ALL SELECT 'policy', oid::text || xmin::text FROM pg_policy
        UNION ALL SELECT 'procedure', oid::text || xmin::text FROM pg_proc
        UNION ALL SELECT 'trigger', oid::text || xmin::text FROM pg_trigger
    ) AS rows
"""
_KEPT = "kept"
_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name AND application_name <> :kept
"""
_BYTES = "SELECT pg_database_size(current_database())"
# As a replica, so that neither triggers nor foreign keys ask in which order.
_EMPTY = "SET LOCAL session_replication_role = replica; " + "; ".join(
    f"DELETE FROM {table.name}" for table in Base.metadata.sorted_tables
)


class Databases:
    def __init__(self, services: EmbeddedServices) -> None:
        self._url = make_url(services.superuser_url)
        self._engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        self._fresh: dict[str, tuple[int, int]] = {}  # schema and bytes of each, as they were
        self._free: list[str] = []
        self._connected: dict[str, Database] = {}

    def take(self) -> str:
        """The name of an empty one."""
        if self._free:
            return self._free.pop()
        name = f"test_{uuid4().hex}"
        with self._engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER bpt_owner"))
        with self._inside(name) as connection:
            self._fresh[name] = _number(connection, _SCHEMA), _number(connection, _BYTES)
        return name

    def give_back(self, name: str) -> None:
        """Emptied for the next test; dropped where this one changed the schema, or wrote very much."""
        if name in self._connected:
            self._connected[name].long_locks.close()
        with self._engine.connect() as connection:
            connection.execute(text(_END_OTHERS), {"name": name, "kept": _KEPT})
        schema, size = self._fresh[name]
        with self._inside(name) as connection:
            is_as_before = _number(connection, _SCHEMA) == schema
            if is_as_before:
                connection.execute(text(_EMPTY))
                is_as_before = _number(connection, _BYTES) < size + _GROWN_BYTES
        if is_as_before:
            self._free.append(name)
        else:
            if name in self._connected:
                self._connected.pop(name).close()
            with self._engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    def connected(self, settings: Settings) -> Database:
        """To the database of these settings; ask only while it is taken."""
        name = make_url(settings.database_url.get_secret_value()).database
        assert name is not None
        if name not in self._connected:
            kept = {
                "database_url": _kept(settings.database_url),
                "system_database_url": _kept(settings.system_database_url),
            }
            self._connected[name] = Database(settings.model_copy(update=kept))
        return self._connected[name]

    def close(self) -> None:
        for database in self._connected.values():
            database.close()
        self._engine.dispose()

    @contextmanager
    def _inside(self, name: str) -> Iterator[Connection]:
        engine = create_engine(self._url.set(database=name), poolclass=NullPool)
        with engine.begin() as connection:
            yield connection


def _kept(url: SecretStr) -> SecretStr:
    named = make_url(url.get_secret_value()).update_query_dict({"application_name": _KEPT})
    return SecretStr(named.render_as_string(hide_password=False))


def _number(connection: Connection, query: str) -> int:
    return int(connection.scalars(text(query)).one())
