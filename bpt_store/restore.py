"""`python -m bpt_store.restore SOURCE [--data-dir DIR] [--backup NAME]`: bring a saved service back, into an empty one.

Rows come last and at once, so that a restore that was interrupted can be begun again. Exit status 0; 1 if all is back
but objects, each of which is told; 2 if nothing was restored.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import psycopg
from alembic import command as alembic
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import Connection, Copy, sql

from bpt_store import command, roles
from bpt_store.backup_files import (
    BLOCK_BYTES,
    GZIP,
    OBJECTS,
    BackupError,
    Manifest,
    ObjectFile,
    Place,
    Problem,
    TableFile,
    copy,
    for_each,
)
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from migrations.config import alembic_config

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def verify(source: Place, manifest: Manifest) -> None:
    """BackupError where this software cannot read the backup, or a table of it is not what was saved."""
    _refuse_unknown(_scripts(), manifest.revision, "the backup")
    with command.bar("verifying tables", sum(table.bytes for table in manifest.tables)) as advance:
        for table in manifest.tables:
            wrong = source.verify(table.file, table.sha256)
            if wrong is not None:
                raise BackupError(f"{table.file}: {wrong}; nothing was restored")
            advance(table.bytes)


def restore(settings: Settings, source: Place, manifest: Manifest) -> list[Problem]:
    """Everything of a backup that `verify` has passed -> the objects that could not be brought back.

    Rows are there whole or not at all. BackupError, and errors of the stores.
    """
    schema = _Schema(settings)
    _make_database(settings)
    with command.connect(settings.system_database_url) as connection:
        _refuse_unless_empty(connection)
    schema.become(manifest.revision)
    problems = [*manifest.missing, *_restore_objects(source, Objects(settings.objects_url), manifest.objects)]
    with command.connect(settings.system_database_url) as connection, connection.transaction():
        _lock_tables(connection)
        _refuse_unless_empty(connection)  # whoever was faster than us
        for table in manifest.tables:
            _fill(connection, source, table)
    schema.become("head")
    command.say(f"tables: {len(manifest.tables)} restored, {sum(table.rows for table in manifest.tables):,} rows")
    return problems


class _Schema:
    """The schema's revision, changed while no row is there."""

    def __init__(self, settings: Settings) -> None:
        assert settings.owner_database_url is not None
        self._url = settings.owner_database_url
        self._config: Config = alembic_config(self._url.get_secret_value())

    def become(self, revision: str) -> None:
        current = command.schema_revision(self._url)
        if current is not None and revision != "head":
            scripts = _scripts()
            _refuse_unknown(scripts, current, "the database")
            if revision in {each.revision for each in scripts.iterate_revisions(current, "base")}:
                alembic.downgrade(self._config, revision)
                return
        alembic.upgrade(self._config, revision)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config(""))


def _refuse_unknown(scripts: ScriptDirectory, revision: str, whose: str) -> None:
    if revision not in {each.revision for each in scripts.walk_revisions()}:
        raise BackupError(
            f"{whose} is of revision {revision!r}, which this software does not know: use a newer version of it"
        )


def _make_database(settings: Settings) -> None:
    """Roles and database, if the service has none yet. They are not touched where they work."""
    try:
        command.connect(settings.system_database_url).close()
    except psycopg.OperationalError:
        if settings.superuser_database_url is None:
            raise
        try:
            roles.prepare(settings)
        except ValueError as error:
            raise BackupError(f"the database cannot be made: {error}") from error


# --- rows ------------------------------------------------------------------------------------------------------


def _tables(connection: Connection[Any]) -> list[sql.Identifier]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [sql.Identifier(name) for (name,) in rows if name != "alembic_version"]


def _refuse_unless_empty(connection: Connection[Any]) -> None:
    for table in _tables(connection):
        [(is_filled,)] = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table))
        if is_filled:
            raise BackupError(
                f"the service is not empty, there are rows in {table.as_string()}: restore into a new one; "
                "nothing was restored"
            )


def _lock_tables(connection: Connection[Any]) -> None:
    """Nobody writes from now on."""
    tables = sql.SQL(", ").join(_tables(connection))
    connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables))


def _fill(connection: Connection[Any], source: Place, table: TableFile) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    with connection.cursor() as cursor:
        try:
            with cursor.copy(statement) as rows:
                # Verified once more: the file may have changed since.
                source.copy_to(cast(BinaryIO, _Unpacked(rows)), table.file, sha256=table.sha256)
        except (ValueError, zlib.error) as error:
            raise BackupError(f"{table.file}: {error}; nothing was restored") from error
        if cursor.rowcount != table.rows:
            raise BackupError(f"{table.file} has {cursor.rowcount} rows, not {table.rows}; nothing was restored")


class _Unpacked(io.RawIOBase):
    """A gzip file is written into it, rows come out; what one block holds is never in memory whole."""

    def __init__(self, rows: Copy) -> None:
        super().__init__()
        self._rows, self._unpacker = rows, zlib.decompressobj(wbits=GZIP)

    def write(self, data: ReadableBuffer, /) -> int:
        packed = memoryview(data).tobytes()
        while packed:
            self._rows.write(self._unpacker.decompress(packed, BLOCK_BYTES))
            packed = self._unpacker.unconsumed_tail
        return memoryview(data).nbytes


# --- objects ---------------------------------------------------------------------------------------------------


def _restore_objects(source: Place, objects: Objects, wanted: Sequence[ObjectFile]) -> list[Problem]:
    problems: list[Problem] = []
    with command.bar("objects", sum(each.bytes for each in wanted)) as advance:

        async def put_back(one: ObjectFile) -> None:
            wrong = await copy(source, OBJECTS + one.key, objects, one.key, sha256=one.sha256, advance=advance)
            if wrong is not None:
                problems.append(Problem(**one.model_dump(), what=wrong))

        asyncio.run(for_each(wanted, put_back))
    command.say(f"objects: {len(wanted) - len(problems)} restored")
    return problems


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bpt restore", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="where backups lie: a directory, or a URL of object storage")
    parser.add_argument("--data-dir", type=Path, help="of `bpt up`, which may be a new one; without it settings decide")
    parser.add_argument("--backup", help="its name; without one it is the newest")
    options = parser.parse_args(arguments)
    with command.ending("bpt restore"):
        source = Place.at(options.source, to_read=True)
        manifest = source.manifest(options.backup)
        verify(source, manifest)  # before a database is started, let alone written to
        with command.service(options.data_dir) as settings:
            problems = restore(settings, source, manifest)
    for problem in problems:
        command.warn(f"not restored: {problem}")
    command.say(f"backup {manifest.name} is restored" + (", but for these objects" if problems else ""))
    if problems:
        raise SystemExit(command.INCOMPLETE)


if __name__ == "__main__":
    main()
