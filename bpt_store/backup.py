"""`python -m bpt_store.backup DESTINATION [--data-dir DIR]`: save the whole service while it goes on.

All tables as one moment saw them, then every object that their rows refer to. Exit status 0; 1 if the backup is
finished but objects are missing from it, each of which is told; 2 if there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from psycopg import Connection, Copy, IsolationLevel, sql
from sqlalchemy import Table

from bpt_store import command
from bpt_store.backup_files import (
    BLOCK_BYTES,
    GZIP,
    LOCK,
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
from bpt_store.models import Base
from bpt_store.objects import Objects
from bpt_store.references import referred
from bpt_store.settings import Settings
from migrations.config import alembic_config

_MIGRATIONS_LOCK = "bpt migrations"  # as migrations/env.py takes it


def make(settings: Settings, destination: Place) -> Manifest:
    """A complete backup; what could not be saved is in its list `missing`. BackupError, and errors of the stores."""
    objects = Objects(settings.objects_url)
    with command.connect(settings.system_database_url) as connection:
        # Before the snapshot: from now on, what its rows refer to stays.
        connection.execute("SELECT pg_advisory_lock_shared(hashtext(%s))", [LOCK])
        snapshot = _save_rows(settings, connection, destination)
        command.say(f"tables: {len(snapshot.tables)} saved, {snapshot.rows:,} rows")
        saved = _save_objects(objects, destination, snapshot.objects)
    manifest = Manifest(
        name=snapshot.name,
        taken_at=snapshot.taken_at,
        revision=snapshot.revision,
        counts={
            "rows": snapshot.rows,
            "objects": len(saved.objects),
            "bytes": sum(each.bytes for each in saved.objects),
            "missing": len(saved.missing),
        },
        tables=snapshot.tables,
        objects=saved.objects,
        missing=saved.missing,
    )
    destination.write_manifest(manifest)
    return manifest


# --- rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Snapshot:
    name: str
    taken_at: datetime
    revision: str
    tables: list[TableFile]
    objects: list[ObjectFile]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


def _save_rows(settings: Settings, connection: Connection[Any], destination: Place) -> _Snapshot:
    with _no_migration(connection):
        revision = _revision(settings)
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            [(now,)] = connection.execute("SELECT now()")
            name = f"{now.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
            kept = [table for table in Base.metadata.sorted_tables if not table.info.get("derived")]
            tables = [_save_table(connection, destination, name, table) for table in kept]
            return _Snapshot(name, now, revision, tables, list(referred(connection)))


@contextmanager
def _no_migration(connection: Connection[Any]) -> Iterator[None]:
    connection.execute("SELECT pg_advisory_lock_shared(hashtext(%s))", [_MIGRATIONS_LOCK])
    yield
    connection.execute("SELECT pg_advisory_unlock_shared(hashtext(%s))", [_MIGRATIONS_LOCK])


def _revision(settings: Settings) -> str:
    """Of the schema, which must be the one this software knows: it could not tell where keys lie in another."""
    assert settings.owner_database_url is not None
    url = settings.owner_database_url
    known = ScriptDirectory.from_config(alembic_config(url.get_secret_value())).get_current_head()
    found = command.schema_revision(url)
    if known is None or found != known:
        raise BackupError(
            f"the database is at revision {found or 'none'} and this software at {known}: migrate it first, "
            "or use the software that runs the service"
        )
    return known


def _save_table(connection: Connection[Any], destination: Place, name: str, table: Table) -> TableFile:
    columns = [column.name for column in table.columns]
    statement = sql.SQL("COPY {} ({}) TO STDOUT").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    file = f"{name}/tables/{table.name}.copy.gz"
    packed = _Packed()
    with connection.cursor() as cursor:
        with cursor.copy(statement) as rows:
            asyncio.run(destination.put_stream(file, packed.blocks(rows)))
        count = cursor.rowcount
    return TableFile(
        name=table.name,
        columns=columns,
        file=file,
        sha256=packed.digest.hexdigest(),
        bytes=packed.bytes,
        rows=count,
    )


class _Packed:
    """Rows as blocks of a gzip file, whose hash and size are known once all have gone through."""

    def __init__(self) -> None:
        self.digest, self.bytes = hashlib.sha256(), 0

    async def blocks(self, rows: Copy) -> AsyncIterator[bytes]:
        packer = zlib.compressobj(wbits=GZIP)
        block = bytearray()
        for row in rows:
            block += packer.compress(row)
            if len(block) >= BLOCK_BYTES:
                yield self._counted(block)
                block = bytearray()
        yield self._counted(block + packer.flush())

    def _counted(self, block: bytearray) -> bytes:
        self.digest.update(block)
        self.bytes += len(block)
        return bytes(block)


# --- objects ---------------------------------------------------------------------------------------------------


@dataclass
class _Saved:
    objects: list[ObjectFile] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    copied: int = 0
    copied_bytes: int = 0


def _save_objects(objects: Objects, destination: Place, wanted: Sequence[ObjectFile]) -> _Saved:
    there = dict(destination.sizes(OBJECTS))
    verified = _newest_hashes(destination)
    saved = _Saved()
    with command.bar("objects", sum(each.bytes for each in wanted)) as advance:

        async def save(one: ObjectFile) -> None:
            key = OBJECTS + one.key
            if key in there and verified.get(one.key) == one.sha256 and there[key] == one.bytes:
                wrong = None
                advance(one.bytes)
            elif key in there and verified.get(one.key) != one.sha256:
                # Left by a backup that was not finished, or of another life of this service: one that was restored
                # from an earlier backup may give the same name to other bytes. Those belong to the other backup.
                wrong = await asyncio.to_thread(destination.verify, key, one.sha256)
                wrong = None if wrong is None else "the destination has other bytes under this key: use another one"
                advance(one.bytes)
            else:
                wrong = await copy(objects, one.key, destination, key, sha256=one.sha256, advance=advance)
                saved.copied += wrong is None
                saved.copied_bytes += one.bytes if wrong is None else 0
            if wrong is None:
                saved.objects.append(one)
            else:
                saved.missing.append(Problem(**one.model_dump(), what=wrong))

        asyncio.run(for_each(wanted, save))
    old = len(saved.objects) - saved.copied
    command.say(f"objects: {saved.copied} saved, {saved.copied_bytes:,} bytes; {old} were there already")
    return saved


def _newest_hashes(destination: Place) -> dict[str, str]:
    """Of the objects in the newest backup: these are known to be what they should."""
    try:
        return {each.key: each.sha256 for each in destination.manifest().objects}
    except BackupError:  # there is none yet, or it is damaged: objects are read instead
        return {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bpt backup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("destination", help="a directory, or a URL of object storage")
    parser.add_argument("--data-dir", type=Path, help="of `bpt up`; without it the settings decide")
    options = parser.parse_args(arguments)
    with command.ending("bpt backup"):
        if options.data_dir is not None and not (options.data_dir / "postgres").is_dir():
            raise BackupError(f"no service has its data in {options.data_dir}")
        with command.service(options.data_dir) as settings:
            manifest = make(settings, Place.at(options.destination))
    for problem in manifest.missing:
        command.warn(f"not saved: {problem}")
    command.say(f"backup {manifest.name} is complete" + (", but for these objects" if manifest.missing else ""))
    if manifest.missing:
        raise SystemExit(command.INCOMPLETE)


if __name__ == "__main__":
    os.umask(0o077)  # a copy of what customers entrusted to us is nobody else's to read
    main()
