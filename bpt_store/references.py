"""Which objects the rows refer to: the one place that knows all columns in which keys lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from psycopg import Connection, sql

from bpt_store import ids
from bpt_store.backup_files import ObjectFile

# Documents that hold objects as Objects.put_file describes them, wherever in them; what is given up is taken out of
# them. Other documents may hold what looks like an object, a customer's metadata for example, but nobody reads one that
# is named there.
HOLDING = (
    ("dataset_versions", "objects"),
    ("dataset_versions", "source"),
    ("jobs", "checkpoint"),
    ("jobs", "result"),
)
# Tables whose rows describe an object each. Parts of an upload that is complete are in the `source` of its version.
# (What is in doomed_objects is given up: nothing refers to it.)
ROWS = {"upload_parts": "upload_id IN (SELECT id FROM uploads WHERE dataset_id IS NULL)"}
_DESCRIBED = 'strict $.** ? (@.key.type() == "string" && @.sha256.type() == "string" && @.bytes.type() == "number")'
_OWNERS = {
    "dataset_versions": sql.SQL("dataset_id, number"),
    "jobs": sql.SQL("id, NULL"),
    "upload_parts": sql.SQL("upload_id, NULL"),
}
_KINDS = {"dataset_versions": ids.DATASET, "jobs": ids.JOB, "upload_parts": ids.UPLOAD}
_OLDEST_FIRST = sql.SQL(" ORDER BY 2, 3")
_FETCHED = 1_000


def referred(connection: Connection[Any]) -> Iterator[ObjectFile]:
    """Every object that rows refer to, as this transaction of bpt_system's sees them, each once, as of the oldest."""
    seen: set[str] = set()
    for table, query in _queries():
        with connection.cursor(name="objects") as cursor:
            cursor.itersize = _FETCHED
            for customer_id, owner, number, key, sha256, size in cursor.execute(query + _OLDEST_FIRST):
                if key in seen:
                    continue
                seen.add(key)
                of = ids.public(_KINDS[table], owner) + ("" if number is None else f":{number}")
                customer = ids.public(ids.CUSTOMER, customer_id)
                yield ObjectFile(key=key, sha256=sha256, bytes=size, customer=customer, of=of)


def unreferred(connection: Connection[Any], keys: Iterable[str], most: int) -> list[str]:
    """Those of these keys to which no row refers, `most` at most (bpt_system, in autocommit).

    PostgreSQL compares them, so that memory stays flat however many there are. A row that commits after its last key
    was given is seen.
    """
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE listed (key text) ON COMMIT DROP")
        with cursor.copy("COPY listed FROM STDIN") as copy:
            for key in keys:
                copy.write_row((key,))
        each = sql.SQL("SELECT key FROM ({}) AS each (customer_id, owner, number, key, sha256, bytes)")
        referred = sql.SQL(" UNION ALL ").join(each.format(query) for _, query in _queries())
        query = sql.SQL("SELECT key FROM listed EXCEPT ({}) ORDER BY key LIMIT {}").format(referred, most)
        return [key for (key,) in cursor.execute(query)]


def _queries() -> Iterator[tuple[str, sql.Composed]]:
    for table, column in HOLDING:
        document = sql.SQL(
            "SELECT customer_id, {}, found ->> 'key', found ->> 'sha256', (found ->> 'bytes')::bigint "
            "FROM {}, jsonb_path_query({}, {}) AS found"
        )
        names = (
            _OWNERS[table],
            sql.Identifier(table),
            sql.Identifier(column),
            sql.Literal(_DESCRIBED),
        )
        yield table, document.format(*names)
    for table, condition in ROWS.items():
        row = sql.SQL("SELECT customer_id, {}, key, sha256, bytes FROM {} WHERE {}")
        yield table, row.format(_OWNERS[table], sql.Identifier(table), sql.SQL(condition))
