"""Row-level security, the second wall: proven for every table with customer data, as the roles that are really used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from bpt_store import aliases, audit, customers, datasets, idempotency, jobs, prompt_sets, uploads, usage, webhooks
from bpt_store.audit import Actor
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.errors import NotFound
from bpt_store.idempotency import Reply, Sender
from bpt_store.models import Base, Evaluation, Gate, JobCheckpoint
from bpt_store.prompt_sets import Publication
from bpt_store.quotas import Limits
from bpt_store.settings import Settings
from bpt_store.uploads import Intent, Part

TABLES = sorted(table.name for table in Base.metadata.tables.values())
SECRET = ("api_keys",)  # customers have no right to this table at all
PLENTY = Limits(datasets=9, images=9, stored_bytes=9)
APPEND_ONLY = ("alias_moves", "audit_log")  # customers may read and add, not change


@pytest.fixture
def fill(database: Database) -> Callable[[str], UUID]:
    """fill(name): a customer with a row in every table."""

    def make(name: str) -> UUID:
        with database.system() as session:
            customer_id = customers.create(session, name).id
            customers.create_key(session, customer_id, "key", [Scope.PREDICT])
        with database.customer(customer_id) as session:
            dataset, job = datasets.create(session, customer_id, "d", {}, {"parts": []})
            part = Part(1, "key", "sha256", 1)
            upload = uploads.begin(
                session, customer_id, Intent(name="d"), "application/zip", limits=PLENTY, seconds=60, part_bytes=1
            )
            uploads.keep_part(session, upload.id, part, PLENTY, most=1, seconds=60)
            prompt_set = prompt_sets.get_or_create(session, customer_id, "p")
            publication = Publication(b"artifact", "backbone", "fingerprint", ["a", "b"], {}, 1, {})
            prompt_sets.publish(session, prompt_set.id, publication, job_id=job.id, dataset_id=dataset.id)
            audit.act_as(session, Actor(uuid4(), "req_1"))
            aliases.move(session, prompt_set.id, "production", 1, actor="key")
            left: dict[str, Any] = {"artifact": b"a", "sha256": "", "bytes": 1, "score": 0.5, "val": {}, "facts": {}}
            on: dict[str, Any] = {"prompt_set_id": prompt_set.id, "dataset_id": dataset.id, "dataset_version": 1}
            session.add(Gate(customer_id=customer_id, metric="top1", floor=0.5, **on))
            session.add(Evaluation(customer_id=customer_id, version=1, metrics={}, job_id=job.id, **on))
            session.add(JobCheckpoint(customer_id=customer_id, job_id=job.id, epoch=1, attempt=1, **left))
            jobs.doom(session, customer_id, "key")
            usage.add(session, customer_id, online_images=1)
            idempotency.keep(session, Sender.customer(customer_id), "key", b"request", Reply(201, b"{}"), 24)
            webhooks.test(session, webhooks.create(session, customer_id, "https://example.com/hook").id)
        return customer_id

    return make


def assert_isolated(database: Database, table: str, one: UUID, other: UUID) -> None:
    """What `one` may read and write of a table in which both have rows, `one` first."""
    column = "id" if table == "customers" else "customer_id"
    with database.customer(one) as session:
        owners = set(session.scalars(text(f"SELECT {column} FROM {table}")))
    assert owners == {one}
    if table in APPEND_ONLY:
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET {column} = {column}"):
            with pytest.raises(ProgrammingError, match="permission denied"), database.customer(one) as session:
                session.execute(text(change))
        columns = [each.name for each in Base.metadata.tables[table].columns]
        theirs = ", ".join(":other" if name == column else name for name in columns)
        insert = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {theirs} FROM {table}"
        with pytest.raises(DBAPIError, match="row-level security"), database.customer(one) as session:
            session.execute(text(insert), {"other": other})
    elif table != "customers":
        with database.customer(one) as session:
            session.execute(text(f"DELETE FROM {table} WHERE {column} = :other"), {"other": other})
            session.execute(text(f"UPDATE {table} SET {column} = {column} WHERE {column} = :other"), {"other": other})
        with pytest.raises(DBAPIError, match="row-level security"), database.customer(one) as session:
            session.execute(text(f"UPDATE {table} SET {column} = :other"), {"other": other})
    with database.system() as session:
        owners = set(session.scalars(text(f"SELECT {column} FROM {table}")))
    assert owners == {one, other}


@pytest.mark.parametrize("table", [table for table in TABLES if table not in SECRET])
def test_a_customer_sees_and_changes_own_rows_only(database: Database, fill: Callable[[str], UUID], table: str) -> None:
    assert_isolated(database, table, fill("one"), fill("other"))


MINE = "customer_id = nullif(current_setting('app.customer_id', true), '')::uuid"
CHECKS_NOTHING = "a policy that lets through what is written"
WITHOUT_WALL = {
    "no policy": ["DROP POLICY own_rows ON {table}"],
    "a policy that shows everything": ["CREATE POLICY own_rows ON {table} TO bpt_customer USING (true)"],
    "no row-level security": ["ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"],
    # The last one: what a customer gives away here is gone.
    CHECKS_NOTHING: [
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER POLICY own_rows ON {{table}} USING ({MINE}) WITH CHECK (true)",
    ],
}


def test_the_wall_of_each_table_is_needed_without_it_the_check_above_is_red(
    database: Database, owner: Engine, fill: Callable[[str], UUID]
) -> None:
    """One table after another, in one database: another's fallen wall is nothing to the check of this one."""
    one, other = fill("one"), fill("other")
    for table in TABLES:
        with owner.begin() as connection:
            if table in SECRET:  # the wall stands there, too, should somebody give that right one day
                connection.execute(text(f"GRANT SELECT, UPDATE, DELETE ON {table} TO bpt_customer"))
        assert_isolated(database, table, one, other)
        for fault, statements in WITHOUT_WALL.items():
            if fault == CHECKS_NOTHING and table == "customers":
                continue  # customers write nothing there
            with owner.begin() as connection:
                for statement in statements:
                    connection.execute(text(statement.format(table=table)))
            assert_red(database, table, one, other, fault)


def assert_red(database: Database, table: str, one: UUID, other: UUID, fault: str) -> None:
    try:
        assert_isolated(database, table, one, other)
    except (AssertionError, pytest.fail.Exception):
        return
    raise AssertionError(f"with {fault} on {table} nobody notices")


def unguarded(connection: Connection) -> list[str]:
    """Tables without row-level security, forced on their owner, too, and those of customers without a policy."""
    return list(
        connection.scalars(
            text("""
                SELECT relname FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname <> 'alembic_version'
                AND NOT (
                    relrowsecurity AND relforcerowsecurity AND EXISTS (
                        SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND polname = 'own_rows'
                        AND polroles = ARRAY['bpt_customer'::regrole::oid]
                    )
                )
                ORDER BY relname
            """)
        )
    )


def test_every_table_is_guarded_even_against_its_owner(owner: Engine, fill: Callable[[str], UUID]) -> None:
    fill("one")
    with owner.connect() as connection:
        assert unguarded(connection) == []
        for table in TABLES:
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0, table


@pytest.mark.parametrize(
    "statements",
    [
        [],
        ["ENABLE ROW LEVEL SECURITY"],
        ["ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY"],
    ],
)
def test_a_new_table_that_is_not_guarded_is_noticed(owner: Engine, statements: list[str]) -> None:
    with owner.begin() as connection:
        connection.execute(text("CREATE TABLE fresh (customer_id uuid)"))
        for statement in statements:
            connection.execute(text(f"ALTER TABLE fresh {statement}"))
        assert unguarded(connection) == ["fresh"]


@pytest.mark.parametrize("table", TABLES)
def test_without_a_customer_nothing_is_seen(settings: Settings, fill: Callable[[str], UUID], table: str) -> None:
    fill("one")
    engine = create_engine(settings.database_url.get_secret_value())
    with engine.connect() as connection:
        if table in SECRET:
            with pytest.raises(ProgrammingError, match="permission denied"):
                connection.execute(text(f"SELECT * FROM {table}"))
        else:
            # A pooled connection on which a customer was once set reads '' afterwards.
            connection.execute(text("SELECT set_config('app.customer_id', '', false)"))
            assert list(connection.execute(text(f"SELECT * FROM {table}"))) == []
    engine.dispose()


def test_the_customer_of_one_transaction_is_forgotten_in_the_next(
    database: Database, fill: Callable[[str], UUID]
) -> None:
    one, other = fill("one"), fill("other")
    for customer_id in (one, other, one):
        with database.customer(customer_id) as session:
            assert set(session.scalars(text("SELECT customer_id FROM datasets"))) == {customer_id}


def test_a_row_cannot_be_made_for_somebody_else(database: Database, fill: Callable[[str], UUID]) -> None:
    one, other = fill("one"), fill("other")
    with pytest.raises(DBAPIError, match="row-level security"), database.customer(one) as session:
        prompt_sets.get_or_create(session, other, "stolen")


def test_a_row_cannot_point_at_somebody_elses(database: Database, fill: Callable[[str], UUID]) -> None:
    one, other = fill("one"), fill("other")
    with database.system() as session:
        theirs = session.scalar(text("SELECT id FROM prompt_sets WHERE customer_id = :other"), {"other": other})
    insert = text(
        "INSERT INTO prompt_set_versions (prompt_set_id, version, customer_id, artifact, artifact_sha256, "
        "artifact_bytes, backbone, backbone_fingerprint, class_names, recipe, parameters, metrics) "
        "VALUES (:theirs, 9, :one, '', '', 0, '', '', '[]', '{}', 0, '{}')"
    )
    with pytest.raises(DBAPIError, match="foreign key"), database.customer(one) as session:
        session.execute(insert, {"theirs": theirs, "one": one})


def test_the_serving_roles_are_no_superusers_and_own_nothing(owner: Engine) -> None:
    with owner.connect() as connection:
        roles = {
            row.rolname: (row.rolsuper, row.rolbypassrls)
            for row in connection.execute(text("SELECT * FROM pg_roles WHERE rolname LIKE 'bpt_%'"))
        }
        owners = set(connection.scalars(text("SELECT tableowner FROM pg_tables WHERE schemaname = 'public'")))
    assert roles == {"bpt_owner": (False, False), "bpt_customer": (False, False), "bpt_system": (False, True)}
    assert owners == {"bpt_owner"}


def test_a_deleted_customer_takes_every_row_along_but_what_is_to_be_deleted_still(
    database: Database, fill: Callable[[str], UUID]
) -> None:
    one = fill("one")
    with database.system() as session:
        session.execute(text("DELETE FROM customers WHERE id = :one"), {"one": one})
        left = {table: session.scalar(text(f"SELECT count(*) FROM {table}")) for table in TABLES}
    assert {table for table, count in left.items() if count} == {"doomed_objects", "audit_log"}


def test_one_customer_cannot_see_that_anothers_dataset_exists(database: Database, fill: Callable[[str], UUID]) -> None:
    one, other = fill("one"), fill("other")
    with database.customer(other) as session:
        theirs = session.scalars(text("SELECT id FROM datasets")).one()
    messages = []
    for identifier in (theirs, uuid4()):
        with pytest.raises(NotFound) as caught, database.customer(one) as session:
            datasets.get(session, identifier)
        messages.append(str(caught.value).replace(identifier.hex, ""))
    assert messages[0] == messages[1]
