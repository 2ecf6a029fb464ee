"""Aliases: moves with a history, one after the other, and what `name@alias` means."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from bpt_store import aliases, customers, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Conflict, Invalid, LimitReached, NotFound, StoreError
from bpt_store.models import AliasMove
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Settings


def publish(database: Database, customer_id: UUID, name: str, versions: int) -> UUID:
    """A prompt set with so many versions."""
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, name)
        for _ in range(versions):
            publication = Publication(b"artifact", "backbone", "fingerprint", ["a", "b"], {}, 1, {})
            prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)
        return prompt_set.id


class Birds:
    """A customer's prompt set with versions 1 to 4; every verb is a transaction of its own."""

    def __init__(self, database: Database, customer_id: UUID) -> None:
        self.database, self.customer_id = database, customer_id
        self.id = publish(database, customer_id, "birds", 4)

    def move(self, version: int, alias: str = "production", **more: Any) -> int:
        with self.database.customer(self.customer_id) as session:
            return aliases.move(session, self.id, alias, version, **{"actor": "key_1", **more}).version

    def rollback(self, alias: str = "production") -> int:
        with self.database.customer(self.customer_id) as session:
            return aliases.rollback(session, self.id, alias, actor="key_2", request_id="req_2").version

    def remove(self, alias: str = "production") -> None:
        with self.database.customer(self.customer_id) as session:
            aliases.remove(session, self.id, alias, actor="key_3", request_id="req_3")

    def history(self, alias: str = "production") -> list[AliasMove]:
        """Oldest first."""
        with self.database.customer(self.customer_id) as session:
            moves, has_more = aliases.history(session, self.id, alias, limit=100)
        assert not has_more
        return list(moves)[::-1]

    def steps(self, alias: str = "production") -> list[tuple[int, int | None, int | None]]:
        return [(move.number, move.from_version, move.to_version) for move in self.history(alias)]

    def at(self, time: datetime) -> int:
        """0 where it was not there."""
        try:
            with self.database.customer(self.customer_id) as session:
                return aliases.as_of(session, self.id, "production", time)[0]
        except NotFound:
            return 0

    def meant_by(self, reference: str) -> int:
        with self.database.customer(self.customer_id) as session:
            return prompt_sets.resolve(session, reference)[1].version

    def archive(self, version: int) -> None:
        with self.database.customer(self.customer_id) as session:
            session.execute(
                text("UPDATE prompt_set_versions SET archived_at = now() WHERE version = :version"),
                {"version": version},
            )


@pytest.fixture
def birds(database: Database, customer_id: UUID) -> Birds:
    return Birds(database, customer_id)


@pytest.fixture
def replica(settings: Settings) -> Iterator[Database]:
    """Connections of another process."""
    database = Database(settings)
    yield database
    database.close()


def test_every_move_is_in_the_history_with_who_and_when(birds: Birds) -> None:
    before = datetime.now(UTC)
    birds.move(1, request_id="req_1")
    birds.move(3)
    birds.rollback()
    birds.remove()
    birds.move(2)
    assert birds.steps() == [(1, None, 1), (2, 1, 3), (3, 3, 1), (4, 1, None), (5, None, 2)]
    history = birds.history()
    assert [(move.actor, move.request_id) for move in history] == [
        *[("key_1", "req_1"), ("key_1", None), ("key_2", "req_2"), ("key_3", "req_3"), ("key_1", None)]
    ]
    times = [before, *(move.moved_at for move in history), datetime.now(UTC)]
    assert times == sorted(times)


def test_an_alias_says_when_it_was_moved(birds: Birds) -> None:
    birds.move(1)
    birds.move(2)
    with birds.database.customer(birds.customer_id) as session:
        found = aliases.get(session, birds.id, "production")
    assert (found.version, found.moved_at) == (2, birds.history()[-1].moved_at)


def test_a_move_to_where_it_is_writes_nothing(birds: Birds) -> None:
    birds.move(2)
    first = birds.history()
    assert birds.move(2) == 2
    assert birds.move(2, expected_version=2) == 2
    assert [(move.number, move.moved_at) for move in birds.history()] == [(1, first[0].moved_at)]
    with birds.database.customer(birds.customer_id) as session:
        assert aliases.get(session, birds.id, "production").moved_at == first[0].moved_at


@pytest.mark.parametrize(("there", "expected"), [(None, 1), (1, None), (1, 2), (3, 2)])
def test_a_move_of_what_was_moved_meanwhile_is_refused_and_says_where_it_is(
    birds: Birds, there: int | None, expected: int | None
) -> None:
    if there is not None:
        birds.move(there)
    with pytest.raises(Conflict, match="does not exist" if there is None else f"is at version {there}") as caught:
        birds.move(4, expected_version=expected)
    assert caught.value.code == "alias_moved"
    assert birds.move(4, expected_version=there) == 4


def test_expecting_counts_also_where_the_alias_is_to_go(birds: Birds) -> None:
    birds.move(2)
    with pytest.raises(Conflict):
        birds.move(2, expected_version=1)


@pytest.mark.parametrize("version", [0, 5, -1])
def test_a_version_that_is_not_there_is_not_found(birds: Birds, version: int) -> None:
    with pytest.raises(NotFound):
        birds.move(version)
    with pytest.raises(NotFound, match="never was"):
        birds.history()


def test_a_version_of_another_prompt_set_is_not_found(birds: Birds) -> None:
    publish(birds.database, birds.customer_id, "cars", 9)
    with pytest.raises(NotFound):
        birds.move(9)


def test_an_archived_version_is_not_found(birds: Birds) -> None:
    birds.archive(3)
    with pytest.raises(NotFound, match="archived"):
        birds.move(3)


def test_an_alias_stays_where_it_is_when_its_version_is_archived(birds: Birds) -> None:
    birds.move(3)
    birds.archive(3)
    assert birds.meant_by("birds@production") == 3
    birds.move(2)
    with pytest.raises(NotFound, match="archived"):
        birds.rollback()


@pytest.mark.parametrize("alias", ["", "Production", "a b", "a@b", "a:1", "-a", "a/b", "x" * 65, "nul\x00", "a\n"])
def test_a_name_no_alias_can_have_is_refused(birds: Birds, alias: str) -> None:
    with pytest.raises(Invalid) as caught:
        birds.move(1, alias)
    assert caught.value.code == "invalid_request"


def test_latest_is_reserved(birds: Birds) -> None:
    with pytest.raises(Invalid, match="newest version") as caught:
        birds.move(1, "latest")
    assert caught.value.code == "alias_reserved"


def test_a_prompt_set_has_so_many_aliases_and_no_more(birds: Birds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MOST_ALIASES", 2)
    birds.move(1, "one")
    birds.move(1, "two")
    with pytest.raises(LimitReached) as caught:
        birds.move(1, "three")
    assert caught.value.code == "alias_limit"
    birds.move(2, "two")
    birds.remove("one")
    birds.move(1, "three")


def test_a_rollback_goes_to_the_version_before_the_last_move_and_twice_is_where_it_began(birds: Birds) -> None:
    for version in (1, 4, 2):
        birds.move(version)
    assert [birds.rollback(), birds.rollback()] == [4, 2]
    assert birds.steps()[3:] == [(4, 2, 4), (5, 4, 2)]


def test_a_rollback_of_what_has_been_nowhere_else_is_refused(birds: Birds) -> None:
    with pytest.raises(NotFound):
        birds.rollback()
    birds.move(1)
    for _ in range(2):
        with pytest.raises(Conflict) as caught:
            birds.rollback()
        assert caught.value.code == "alias_no_history"
        birds.move(2)
        birds.remove()
        with pytest.raises(NotFound):
            birds.rollback()
        birds.move(3)


def test_what_was_removed_means_nothing_and_keeps_its_history(birds: Birds) -> None:
    birds.move(1)
    birds.remove()
    for verb in (birds.remove, lambda: birds.meant_by("birds@production")):
        with pytest.raises(NotFound):
            verb()
    with birds.database.customer(birds.customer_id) as session:
        assert aliases.of_prompt_set(session, birds.id) == []
        assert aliases.versions(session, [birds.id]) == {}
    assert birds.steps() == [(1, None, 1), (2, 1, None)]
    assert birds.move(2, expected_version=None) == 2


def test_a_condition_is_on_the_number_of_the_last_move(birds: Birds) -> None:
    def code(verb: Callable[..., object], *given: object, **more: object) -> str:
        with pytest.raises(Conflict) as caught, birds.database.customer(birds.customer_id) as session:
            verb(session, birds.id, "production", *given, actor="key", **more)
        return caught.value.code

    assert birds.move(1, condition=lambda number: number is None) == 1
    for version in (2, 1):
        birds.move(version)
    with birds.database.customer(birds.customer_id) as session:
        row, number = aliases.state(session, birds.id, "production")
        assert (row.version, number) == (1, 3)
    # It is where it was after the first move; whoever saw that one saw another state.
    refused: Any = {"condition": lambda number: number == 1}
    assert code(aliases.move, 2, **refused) == "precondition_failed"
    assert code(aliases.rollback, **refused) == code(aliases.remove, **refused) == "precondition_failed"
    assert code(aliases.rollback, expected_version=2) == "alias_moved"
    assert birds.move(4, condition=lambda number: number == 3) == 4
    birds.remove()
    with pytest.raises(Conflict, match="does not exist"):
        birds.move(1, condition=lambda number: number == 5)
    assert birds.steps()[3:] == [(4, 1, 4), (5, 4, None)]


def test_history_comes_in_pages_newest_first(birds: Birds) -> None:
    for version in (1, 2, 3):
        birds.move(version)
    birds.move(4, "staging")
    pages = []
    with birds.database.customer(birds.customer_id) as session:
        for after in (None, 2, 1):
            moves, has_more = aliases.history(session, birds.id, "production", after=after, limit=2)
            pages.append(([move.number for move in moves], has_more))
    assert pages == [([3, 2], True), ([1], False), ([], False)]


def test_where_an_alias_was_at_a_time(birds: Birds) -> None:
    birds.move(1)
    birds.move(3)
    birds.remove()
    birds.move(2)
    times = [move.moved_at for move in birds.history()]
    moment = timedelta(microseconds=1)
    assert [birds.at(time) for time in times] == [1, 3, 0, 2]
    assert [birds.at(time - moment) for time in times] == [0, 1, 3, 0]
    assert birds.at(datetime.now(UTC) + timedelta(days=1)) == 2
    with birds.database.customer(birds.customer_id) as session:
        assert aliases.as_of(session, birds.id, "production", times[2] - moment) == (3, times[1])


def test_a_time_is_that_of_the_move_and_not_that_of_the_transaction(birds: Birds) -> None:
    """A transaction that began first and moved last must not change the past."""
    with birds.database.customer(birds.customer_id) as session:
        session.execute(text("SELECT now()"))
        birds.move(1)
        aliases.move(session, birds.id, "production", 2, actor="key")
    first, second = birds.history()
    assert first.moved_at < second.moved_at
    assert birds.at(first.moved_at) == 1


def test_aliases_are_told_by_prompt_set(birds: Birds) -> None:
    cars = publish(birds.database, birds.customer_id, "cars", 1)
    trees = publish(birds.database, birds.customer_id, "trees", 1)
    birds.move(3, "staging")
    birds.move(1)
    with birds.database.customer(birds.customer_id) as session:
        aliases.move(session, cars, "staging", 1, actor="key")
        assert aliases.versions(session, [birds.id, cars, trees]) == {
            birds.id: {"production": 1, "staging": 3},
            cars: {"staging": 1},
        }
        assert [(each.name, each.version) for each in aliases.of_prompt_set(session, birds.id)] == [
            ("production", 1),
            ("staging", 3),
        ]


def test_a_reference_names_an_alias_a_version_or_the_newest(birds: Birds) -> None:
    publish(birds.database, birds.customer_id, "cars", 2)
    birds.move(2)
    with birds.database.customer(birds.customer_id) as session:
        cars = prompt_sets.get(session, "cars").id
        aliases.move(session, cars, "production", 1, actor="key")
    references = ("birds", "birds:3", "birds@latest", "birds@production", "cars@production")
    assert [birds.meant_by(reference) for reference in references] == [4, 3, 4, 2, 1]
    birds.archive(4)
    assert [birds.meant_by(reference) for reference in references] == [3, 3, 3, 2, 1]


@pytest.mark.parametrize(
    "reference",
    ["birds@staging", "cars@production", "birds@", "@production", "birds@production:1", "birds:1@production"],
)
def test_a_reference_to_no_alias_is_not_found(birds: Birds, reference: str) -> None:
    birds.move(1)
    with pytest.raises(NotFound):
        birds.meant_by(reference)


def test_a_reference_is_resolved_in_one_query(birds: Birds) -> None:
    birds.move(1)
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with birds.database.customer(birds.customer_id) as session:
        session.execute(text("SELECT 1"))
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        for reference in ("birds", "birds:1", "birds@latest", "birds@production"):
            prompt_sets.resolve(session, reference)
        event.remove(engine, "before_cursor_execute", note)
    assert len(statements) == 4


def test_a_move_counts_from_the_next_look_on_in_every_process(birds: Birds, replica: Database) -> None:
    for version in (1, 3, 2):
        birds.move(version)
        for database in (birds.database, replica):
            with database.customer(birds.customer_id) as session:
                assert prompt_sets.resolve(session, "birds@production")[1].version == version
    # Even within one transaction.
    with replica.customer(birds.customer_id) as session:
        assert prompt_sets.resolve(session, "birds@production")[1].version == 2
        birds.move(4)
        assert prompt_sets.resolve(session, "birds@production")[1].version == 4


def test_moves_at_once_come_one_after_the_other(birds: Birds) -> None:
    """Eight threads, 48 moves: each goes on from where the one before left the alias."""
    start = threading.Barrier(8)
    broken: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            start.wait()
            for step in range(6):
                birds.move((thread + step) % 4 + 1, actor=f"key_{thread}")
        except BaseException as error:
            broken.append(error)

    in_threads(work)
    assert broken == []
    steps = birds.steps()
    assert [number for number, _, _ in steps] == list(range(1, len(steps) + 1))
    assert [before for _, before, _ in steps] == [None, *[after for _, _, after in steps[:-1]]]
    assert all(before != after for _, before, after in steps)
    assert birds.meant_by("birds@production") == steps[-1][2]
    times = [move.moved_at for move in birds.history()]
    assert times == sorted(times)


@pytest.mark.parametrize("there", [None, 1])
def test_of_moves_at_once_that_expect_the_same_one_succeeds(birds: Birds, there: int | None) -> None:
    if there is not None:
        birds.move(there)
    start = threading.Barrier(8)
    ends: list[str] = []

    def work(thread: int) -> None:
        start.wait()
        try:
            birds.move(2 + thread % 3, expected_version=there)
            ends.append("moved")
        except StoreError as error:
            ends.append(error.code)

    in_threads(work)
    assert sorted(ends) == ["alias_moved"] * 7 + ["moved"]


def in_threads(work: Any, count: int = 8) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_move_judges_by_what_is_stored_and_not_by_what_the_session_saw(birds: Birds) -> None:
    birds.move(1)
    with birds.database.customer(birds.customer_id) as session:
        seen = aliases.get(session, birds.id, "production")  # and is kept by the session as long as it is kept here
        birds.move(3)
        assert seen.version == 1
        assert aliases.rollback(session, birds.id, "production", actor="key").version == 1
    assert birds.steps() == [(1, None, 1), (2, 1, 3), (3, 3, 1)]


def test_somebody_elses_aliases_are_not_there(birds: Birds) -> None:
    birds.move(1)
    with birds.database.system() as session:
        other = customers.create(session, "other").id
    later = datetime.now(UTC)
    with birds.database.customer(other) as session:
        for verb in (
            lambda: aliases.move(session, birds.id, "production", 2, actor="key"),
            lambda: aliases.rollback(session, birds.id, "production", actor="key"),
            lambda: aliases.remove(session, birds.id, "production", actor="key"),
            lambda: aliases.get(session, birds.id, "production"),
            lambda: aliases.history(session, birds.id, "production"),
            lambda: aliases.as_of(session, birds.id, "production", later),
            lambda: prompt_sets.resolve(session, "birds@production"),
        ):
            with pytest.raises(NotFound):
                verb()
        assert aliases.of_prompt_set(session, birds.id) == []
        assert aliases.versions(session, [birds.id]) == {}
    assert birds.steps() == [(1, None, 1)]


def test_an_alias_cannot_point_at_somebody_elses_version_nor_at_none(birds: Birds) -> None:
    with birds.database.system() as session:
        other = customers.create(session, "other").id
    theirs = publish(birds.database, other, "birds", 9)
    insert = text("INSERT INTO prompt_set_aliases VALUES (:prompt_set, 'a', :customer, :version, now())")
    for prompt_set, version in ((theirs, 9), (birds.id, 9)):
        with pytest.raises(DBAPIError, match="foreign key"), birds.database.customer(birds.customer_id) as session:
            session.execute(insert, {"prompt_set": prompt_set, "customer": birds.customer_id, "version": version})


def test_a_version_that_an_alias_points_at_cannot_be_deleted(birds: Birds) -> None:
    birds.move(2)
    delete = text("DELETE FROM prompt_set_versions WHERE version = :version")
    with pytest.raises(DBAPIError, match="foreign key"), birds.database.customer(birds.customer_id) as session:
        session.execute(delete, {"version": 2})
    with birds.database.customer(birds.customer_id) as session:
        session.execute(delete, {"version": 3})


@pytest.mark.parametrize("change", ["UPDATE alias_moves SET actor = 'nobody'", "DELETE FROM alias_moves"])
def test_a_customer_cannot_rewrite_history(birds: Birds, change: str) -> None:
    birds.move(1)
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        birds.database.customer(birds.customer_id) as session,
    ):
        session.execute(text(change))


def test_a_deleted_prompt_set_takes_aliases_and_history_along(birds: Birds) -> None:
    birds.move(1)
    with birds.database.customer(birds.customer_id) as session:
        session.execute(text("DELETE FROM prompt_sets"))
    with birds.database.system() as session:
        assert session.scalar(text("SELECT count(*) FROM prompt_set_aliases")) == 0
        assert session.scalar(text("SELECT count(*) FROM alias_moves")) == 0
