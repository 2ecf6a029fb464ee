"""Uploads: parts in any order, once or again, and nothing that stays behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from bpt_store import customers, datasets, jobs, uploads
from bpt_store.db import Database
from bpt_store.errors import Conflict, Invalid, LimitReached, NotFound, StoreError
from bpt_store.models import DatasetState, DatasetVersion, JobKind, Upload, UploadPart
from bpt_store.quotas import Limits
from bpt_store.uploads import Intent, Made, Part

PLENTY = Limits(datasets=100, images=100, stored_bytes=1_000_000)
NEW = Intent(name="birds", options={"task": "auto"}, custom={"k": "v"})
MOST = 1_000


class Sender:
    """One customer's uploads in parts of 10 bytes, a transaction for each step."""

    def __init__(self, database: Database, customer_id: UUID) -> None:
        self.database, self.customer_id = database, customer_id

    def run(self, action: Callable[[Session], Any]) -> Any:
        with self.database.customer(self.customer_id) as session:
            return action(session)

    def begin(self, intent: Intent = NEW, limits: Limits = PLENTY, seconds: float = 60, **more: Any) -> UUID:
        upload: Upload = self.run(
            lambda session: uploads.begin(
                session,
                self.customer_id,
                intent,
                "application/zip",
                **{"limits": limits, "seconds": seconds, "part_bytes": 10, **more},
            )
        )
        return upload.id

    def put(
        self, upload_id: UUID, number: int, sha256: str = "a", size: int = 10, limits: Limits = PLENTY, most: int = MOST
    ) -> UploadPart:
        part = Part(number, uploads.new_key(upload_id, f"{number}-{sha256}"), sha256, size)
        kept: UploadPart = self.run(
            lambda session: uploads.keep_part(session, upload_id, part, limits, most=most, seconds=60)
        )
        return kept

    def complete(self, upload_id: UUID, sha256: str | None = None) -> tuple[Made, bool]:
        done: tuple[Made, bool] = self.run(
            lambda session: uploads.complete(session, upload_id, sha256=sha256, seconds=60)
        )
        return done

    def keys(self, upload_id: UUID) -> list[str]:
        return [part.key for part in self.run(lambda session: uploads.parts_of(session, upload_id))]

    def version(self, made: Made) -> DatasetVersion:
        found: DatasetVersion = self.run(
            lambda session: datasets.version(session, made.dataset_id, made.version, whole=True)
        )
        return found

    def doomed(self) -> list[str]:
        return list(self.run(lambda session: session.scalars(text("SELECT key FROM doomed_objects ORDER BY id")).all()))

    def count(self, table: str) -> int:
        return int(self.run(lambda session: session.scalar(text(f"SELECT count(*) FROM {table}"))))

    def expire(self, upload_id: UUID) -> None:
        expired = text("UPDATE uploads SET expires_at = now() - interval '1 second' WHERE id = :id")
        self.run(lambda session: session.execute(expired, {"id": upload_id}))

    def ready(self) -> UUID:
        """A dataset with a ready version 1."""
        made = self.complete_small(self.begin())
        self.publish(made)
        return made.dataset_id

    def complete_small(self, upload_id: UUID) -> Made:
        self.put(upload_id, 1, size=3)
        return self.complete(upload_id)[0]

    def publish(self, made: Made) -> None:
        """As the ingest job does at its end."""
        with self.database.system() as session:
            job = jobs.claim(session, JobKind.INGEST, "w", 30)
        assert job is not None
        report = {"images": {"packed": 2}, "splits": {"train": 2}, "counts": {}, "verdict": "good to tune"}
        contents = datasets.Contents("single-label", ["a"], {"shards": []}, report)

        def finish(session: Session) -> None:
            jobs.succeed(session, jobs.fence_of(job), {})
            datasets.become_ready(session, made.dataset_id, made.version, contents, PLENTY)

        self.run(finish)


@pytest.fixture
def sender(database: Database, customer_id: UUID) -> Sender:
    return Sender(database, customer_id)


def refused(error: type[StoreError], action: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        action()
    return caught.value.code


# --- parts -----------------------------------------------------------------------------------------------------


def test_parts_in_any_order_become_one_dataset_with_its_job(sender: Sender) -> None:
    upload_id = sender.begin(size_bytes=23)
    for number, size in ((3, 3), (1, 10), (2, 10)):
        sender.put(upload_id, number, f"hash{number}", size)
    made, is_new = sender.complete(upload_id, sha256="whole")
    version = sender.version(made)
    assert is_new
    assert version.source is not None
    assert version.source["media_type"] == "application/zip"
    assert version.source["sha256"] == version.source_sha256 == "whole"
    assert [(part["sha256"], part["bytes"]) for part in version.source["parts"]] == [
        *(("hash1", 10), ("hash2", 10), ("hash3", 3))
    ]
    assert [part["key"] for part in version.source["parts"]] == sender.keys(upload_id)
    assert version.source_bytes == 23
    dataset = sender.run(lambda session: datasets.get(session, made.dataset_id))
    assert (dataset.name, dataset.options, dataset.custom) == ("birds", {"task": "auto"}, {"k": "v"})
    with sender.database.system() as session:
        job = jobs.claim(session, JobKind.INGEST, "w", 30)
    assert job is not None
    assert (job.dataset_id, job.dataset_version) == (made.dataset_id, 1)


def test_the_same_part_again_keeps_the_first_and_gives_up_the_second(sender: Sender) -> None:
    upload_id = sender.begin()
    first = sender.put(upload_id, 1)
    again = Part(1, uploads.new_key(upload_id, "1-a"), "a", 10)
    kept = sender.run(lambda s: uploads.keep_part(s, upload_id, again, PLENTY, most=MOST, seconds=60))
    assert kept.key == first.key
    assert sender.doomed() == [again.key]
    assert sender.keys(upload_id) == [first.key]


def test_another_part_takes_the_place_of_the_one_before_which_is_given_up(sender: Sender) -> None:
    upload_id = sender.begin()
    first = sender.put(upload_id, 1, "a", 10).key
    second = sender.put(upload_id, 1, "b", 4)
    assert sender.doomed() == [first]
    assert (second.sha256, second.bytes) == ("b", 4)
    assert sender.keys(upload_id) == [second.key]


def test_a_part_put_back_after_another_never_has_a_key_that_is_to_be_deleted(sender: Sender) -> None:
    upload_id = sender.begin()
    for sha256 in ("a", "b", "a", "b"):
        sender.put(upload_id, 1, sha256)
    assert not {*sender.keys(upload_id)} & {*sender.doomed()}
    assert len(sender.doomed()) == 3


def test_of_two_that_put_one_part_at_once_one_wins_and_the_other_is_given_up(sender: Sender) -> None:
    upload_id = sender.begin()
    barrier = Barrier(2)

    def put(sha256: str) -> str:
        part = Part(1, uploads.new_key(upload_id, f"1-{sha256}"), sha256, 10)
        barrier.wait()
        sender.run(lambda session: uploads.keep_part(session, upload_id, part, PLENTY, most=MOST, seconds=60))
        return part.key

    with ThreadPoolExecutor(2) as pool:
        written = [*pool.map(put, ("a", "b"))]
    kept = sender.keys(upload_id)
    assert len(kept) == 1
    assert sorted([*kept, *sender.doomed()]) == sorted(written)


def test_of_two_parts_that_come_at_once_the_second_knows_of_the_first(sender: Sender) -> None:
    upload_id = sender.begin()
    barrier = Barrier(2)

    def put(number: int) -> str:
        barrier.wait()
        try:
            sender.put(upload_id, number, most=15)
        except Invalid as error:
            return error.code
        return "kept"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(put, (2, 1))) == ["kept", "payload_too_large"]
    assert len(sender.keys(upload_id)) == 1


def test_a_part_waits_for_who_holds_the_upload_and_a_look_before_it_does_not(sender: Sender) -> None:
    upload_id = sender.begin()

    def impatient(action: Callable[[Session], Any]) -> Any:
        def run(session: Session) -> Any:
            session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            return action(session)

        return sender.run(run)

    part = Part(1, uploads.new_key(upload_id, "1-a"), "a", 10)
    with sender.database.customer(sender.customer_id) as other:
        other.execute(text("SELECT FROM uploads WHERE id = :id FOR UPDATE"), {"id": upload_id})
        found = impatient(lambda session: uploads.find_part(session, upload_id, 1, "a", 10, PLENTY, MOST))
        assert found == (None, 10)
        with pytest.raises(OperationalError, match="lock timeout"):
            impatient(lambda session: uploads.keep_part(session, upload_id, part, PLENTY, most=MOST, seconds=60))
    assert not sender.keys(upload_id)


def test_a_part_that_has_room_costs_one_query_before_its_bytes_and_three_after_them(sender: Sender) -> None:
    upload_id = sender.begin(size_bytes=20)
    part = Part(2, uploads.new_key(upload_id, "2-a"), "a", 10)

    def asked(action: Callable[[Session], Any]) -> list[str]:
        """The first words of what is asked, but for whose rows are meant."""
        told: list[str] = []

        def tell(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            told.append(statement.split()[0])

        def run(session: Session) -> None:
            event.listen(session.connection(), "before_cursor_execute", tell)
            action(session)
            session.flush()

        sender.run(run)
        return told

    assert asked(lambda session: uploads.find_part(session, upload_id, 2, "a", 10, PLENTY, MOST)) == ["SELECT"]
    kept = asked(lambda session: uploads.keep_part(session, upload_id, part, PLENTY, most=MOST, seconds=60))
    assert kept == ["UPDATE", "SELECT", "INSERT"]


def test_a_part_that_is_there_is_found_by_its_hash_and_no_other(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1, "a")

    def find(number: int, sha256: str) -> tuple[UploadPart | None, int]:
        found: tuple[UploadPart | None, int] = sender.run(
            lambda session: uploads.find_part(session, upload_id, number, sha256, 10, PLENTY, MOST)
        )
        return found

    assert find(1, "a")[0] is not None
    assert find(1, "b") == (None, 10)
    assert find(2, "a") == (None, 10)


def test_a_part_larger_than_agreed_or_too_much_in_all_is_refused(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1)

    def find(size: int, most: int) -> Any:
        return sender.run(lambda session: uploads.find_part(session, upload_id, 2, "b", size, PLENTY, most))

    assert refused(Invalid, lambda: find(11, MOST)) == "payload_too_large"
    assert refused(Invalid, lambda: find(10, 19)) == "payload_too_large"
    assert refused(Invalid, lambda: sender.put(upload_id, 2, most=19)) == "payload_too_large"
    assert find(10, 20) == (None, 10)
    sender.put(upload_id, 2, most=20)


def test_each_part_gives_the_upload_more_time(sender: Sender) -> None:
    upload_id = sender.begin(seconds=5)
    before = sender.run(lambda session: uploads.get(session, upload_id).expires_at)
    sender.put(upload_id, 1)
    assert (sender.run(lambda session: uploads.get(session, upload_id).expires_at) - before).total_seconds() > 30


# --- complete --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "announced", "named"),
    [
        ({}, None, "no part"),
        ({2: 10}, None, "missing parts: 1"),
        ({1: 10, 4: 3}, None, "missing parts: 2, 3"),
        ({1: 9, 2: 3}, None, "have not: 1"),
        ({1: 10, 2: 3}, 14, "14 bytes were announced, 13"),
        ({1: 10}, 9, "9 bytes were announced, 10"),
        (dict.fromkeys(range(2, 50), 1), None, "missing parts: 1"),
        ({40: 1}, None, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 29 more"),
    ],
)
def test_an_upload_with_parts_missing_or_short_is_refused_and_stays_open(
    sender: Sender, parts: dict[int, int], announced: int | None, named: str
) -> None:
    upload_id = sender.begin(size_bytes=announced)
    for number, size in parts.items():
        sender.put(upload_id, number, size=size)
    with pytest.raises(Invalid, match=named) as caught:
        sender.complete(upload_id)
    assert caught.value.code == "upload_incomplete"
    assert sender.count("datasets") == sender.count("jobs") == 0
    sender.put(upload_id, 1, "other")


def test_to_complete_again_gives_the_same_and_makes_nothing(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1)
    first, second = sender.complete(upload_id), sender.complete(upload_id, sha256="other")
    assert (first[1], second[1]) == (True, False)
    assert first[0] == second[0]
    assert sender.count("datasets") == sender.count("jobs") == 1


def test_of_two_that_complete_at_once_one_makes_the_dataset(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1)
    barrier = Barrier(2)

    def complete(_: int) -> tuple[Made, bool]:
        barrier.wait()
        return sender.complete(upload_id)

    with ThreadPoolExecutor(2) as pool:
        done = [*pool.map(complete, range(2))]
    assert sorted(is_new for _, is_new in done) == [False, True]
    assert done[0][0] == done[1][0]
    assert sender.count("datasets") == sender.count("jobs") == 1


def test_a_complete_upload_takes_no_part_and_cannot_be_given_up(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.complete_small(upload_id)

    def find() -> Any:
        return sender.run(lambda session: uploads.find_part(session, upload_id, 2, "b", 1, PLENTY, MOST))

    assert refused(Conflict, find) == "upload_complete"
    assert refused(Conflict, lambda: sender.put(upload_id, 2)) == "upload_complete"
    assert refused(Conflict, lambda: sender.run(lambda s: uploads.abandon(s, upload_id))) == "upload_complete"
    assert sender.doomed() == []


# --- the next version ------------------------------------------------------------------------------------------


def test_an_upload_for_a_dataset_becomes_its_next_version_with_its_changes(sender: Sender) -> None:
    dataset_id = sender.ready()
    changes = {"relabel": {"itm_1": ["cat"]}, "remove": ["itm_2"]}
    made = sender.complete_small(sender.begin(Intent(dataset_id=dataset_id, base=1, changes=changes)))
    version = sender.version(made)
    assert (made.dataset_id, made.version, version.base, version.changes) == (dataset_id, 2, 1, changes)


def test_an_upload_for_a_dataset_needs_one_that_is_ready_and_at_its_base(sender: Sender) -> None:
    fresh = sender.complete_small(sender.begin())
    assert refused(Conflict, lambda: sender.begin(Intent(dataset_id=fresh.dataset_id))) == "dataset_not_ready"
    sender.publish(fresh)
    assert refused(Conflict, lambda: sender.begin(Intent(dataset_id=fresh.dataset_id, base=2))) == "version_moved"
    assert refused(NotFound, lambda: sender.begin(Intent(dataset_id=uuid4()))) == "not_found"


def test_of_two_uploads_from_one_base_the_later_is_refused_and_can_be_given_up(sender: Sender) -> None:
    dataset_id = sender.ready()
    one, other = (sender.begin(Intent(dataset_id=dataset_id, base=1)) for _ in range(2))
    made = sender.complete_small(one)
    sender.put(other, 1, size=3)
    assert refused(Conflict, lambda: sender.complete(other)) == "version_unfinished"
    in_one_request = Intent(dataset_id=dataset_id)
    assert refused(Conflict, lambda: sender.begin(in_one_request, part_bytes=None)) == "version_unfinished"
    sender.publish(made)
    assert refused(Conflict, lambda: sender.complete(other)) == "version_moved"
    sender.run(lambda session: uploads.abandon(session, other))
    assert sender.doomed()[-1] == uploads.prefix(other)


# --- in one request --------------------------------------------------------------------------------------------


def finish_whole(sender: Sender, upload_id: UUID) -> Made:
    part = Part(1, uploads.new_key(upload_id, "whole"), "a", 5)
    made: Made = sender.run(lambda session: uploads.finish_whole(session, upload_id, part))
    return made


def test_what_came_in_one_request_is_a_version_with_one_part(sender: Sender) -> None:
    upload_id = sender.begin(part_bytes=None)
    version = sender.version(finish_whole(sender, upload_id))
    assert version.source is not None
    assert [part["key"] for part in version.source["parts"]] == sender.keys(upload_id)
    assert version.source["sha256"] == "a"


def test_a_request_that_ended_badly_leaves_no_row_and_has_its_objects_deleted(sender: Sender) -> None:
    upload_id = sender.begin(part_bytes=None)
    sender.run(lambda session: uploads.give_up_whole(session, sender.customer_id, upload_id))
    assert sender.count("uploads") == 0
    assert sender.doomed() == [uploads.prefix(upload_id)]


def test_a_request_that_was_swept_meanwhile_is_refused_and_has_its_objects_deleted(sender: Sender) -> None:
    upload_id = sender.begin(part_bytes=None)
    sender.expire(upload_id)
    assert refused(Conflict, lambda: finish_whole(sender, upload_id)) == "upload_expired"
    assert sweep(sender) == 1
    assert refused(Conflict, lambda: finish_whole(sender, upload_id)) == "upload_expired"
    sender.run(lambda session: uploads.give_up_whole(session, sender.customer_id, upload_id))
    assert sender.doomed() == [uploads.prefix(upload_id)] * 2


def test_a_request_that_ended_well_is_not_given_up(sender: Sender) -> None:
    upload_id = sender.begin(part_bytes=None)
    finish_whole(sender, upload_id)
    sender.run(lambda session: uploads.give_up_whole(session, sender.customer_id, upload_id))
    assert sender.doomed() == []
    assert sender.count("uploads") == 1


def test_a_part_whose_transaction_did_not_come_is_given_up_and_one_that_is_kept_is_not(sender: Sender) -> None:
    upload_id = sender.begin()
    kept = sender.put(upload_id, 1).key
    lost = uploads.new_key(upload_id, "1-b")
    for key in (kept, lost):
        with sender.database.customer(sender.customer_id) as session:
            uploads.give_up_part(session, sender.customer_id, key)
    assert sender.doomed() == [lost]


def test_what_came_in_one_request_takes_no_parts(sender: Sender) -> None:
    upload_id = sender.begin(part_bytes=None)
    with pytest.raises(NotFound):
        sender.run(lambda session: uploads.find_part(session, upload_id, 1, "a", 1, PLENTY, MOST))


# --- over ------------------------------------------------------------------------------------------------------


def sweep(sender: Sender) -> int:
    with sender.database.system() as session:
        return uploads.forget_expired(session)


def test_an_upload_that_is_given_up_leaves_no_row_and_has_its_objects_deleted(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1)
    sender.run(lambda session: uploads.abandon(session, upload_id))
    assert sender.count("uploads") == sender.count("upload_parts") == 0
    assert sender.doomed() == [uploads.prefix(upload_id)]
    assert refused(NotFound, lambda: sender.put(upload_id, 2)) == "not_found"


def test_an_upload_whose_time_is_over_is_refused_and_then_forgotten(sender: Sender) -> None:
    upload_id, young = sender.begin(), sender.begin()
    sender.put(upload_id, 1)
    sender.expire(upload_id)

    def find(session: Session) -> Any:
        return uploads.find_part(session, upload_id, 2, "a", 10, PLENTY, MOST)

    assert refused(Conflict, lambda: sender.run(find)) == "upload_expired"
    assert refused(Conflict, lambda: sender.put(upload_id, 2)) == "upload_expired"
    assert refused(Conflict, lambda: sender.complete(upload_id)) == "upload_expired"
    assert sweep(sender) == 1
    assert sender.doomed() == [uploads.prefix(upload_id)]
    assert refused(NotFound, lambda: sender.complete(upload_id)) == "not_found"
    assert sender.put(young, 1)


def test_a_complete_upload_is_not_forgotten_before_it_is_read(sender: Sender) -> None:
    upload_id = sender.begin()
    made = sender.complete_small(upload_id)
    sender.expire(upload_id)
    assert sweep(sender) == 0
    assert sender.complete(upload_id) == (made, False)
    sender.publish(made)
    sender.expire(upload_id)
    assert sweep(sender) == 1
    assert sender.count("uploads") == 0
    assert sender.doomed()[-1] == uploads.prefix(upload_id)


@pytest.mark.parametrize("fails", [True, False])
def test_a_complete_upload_is_forgotten_when_its_ingest_failed_or_its_dataset_is_gone(
    sender: Sender, fails: bool
) -> None:
    upload_id = sender.begin()
    made = sender.complete_small(upload_id)
    with sender.database.system() as session:
        job = jobs.claim(session, JobKind.INGEST, "w", 30)
        assert job is not None
        jobs.fail(session, jobs.fence_of(job), "archive_invalid", "no zip")
    assert sender.version(made).state is DatasetState.FAILED
    if not fails:
        sender.run(lambda session: datasets.delete(session, made.dataset_id))
    sender.expire(upload_id)
    assert sweep(sender) == 1


def test_two_sweeps_at_once_forget_each_upload_once(sender: Sender) -> None:
    for _ in range(4):
        sender.expire(sender.begin())
    barrier = Barrier(2)

    def run(_: int) -> int:
        barrier.wait()
        return sweep(sender)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(run, range(2))) == 4
    assert sender.count("uploads") == 0
    assert len(sender.doomed()) == 4


def test_open_uploads_in_parts_are_found_by_their_fingerprint(sender: Sender) -> None:
    mine, done, late = (sender.begin(fingerprint="f") for _ in range(3))
    other, whole = sender.begin(fingerprint="g"), sender.begin(part_bytes=None)
    sender.complete_small(done)
    sender.expire(late)

    def found(fingerprint: str | None) -> set[UUID]:
        rows = sender.run(lambda session: session.scalars(uploads.open_in_parts(fingerprint)).all())
        return {row.id for row in rows}

    assert found("f") == {mine}
    assert found(None) == {mine, other}
    assert whole not in found(None)


def test_nobody_else_finds_an_upload(sender: Sender) -> None:
    upload_id = sender.begin()
    sender.put(upload_id, 1)
    with sender.database.system() as session:
        stranger = Sender(sender.database, customers.create(session, "stranger").id)
    for action in (
        lambda: stranger.run(lambda session: uploads.get(session, upload_id)),
        lambda: stranger.put(upload_id, 1, "b"),
        lambda: stranger.complete(upload_id),
        lambda: stranger.run(lambda session: uploads.abandon(session, upload_id)),
    ):
        assert refused(NotFound, action) == "not_found"
    assert stranger.run(lambda session: uploads.parts_of(session, upload_id)) == []
    assert [part.sha256 for part in sender.run(lambda session: uploads.parts_of(session, upload_id))] == ["a"]


# --- room ------------------------------------------------------------------------------------------------------


def test_a_part_without_room_is_refused_and_leaves_what_was_there(sender: Sender) -> None:
    tight = Limits(datasets=5, images=5, stored_bytes=25)
    upload_id = sender.begin(limits=tight)
    for number in (1, 2):
        sender.put(upload_id, number, limits=tight)
    assert refused(LimitReached, lambda: sender.put(upload_id, 3, limits=tight)) == "quota_exceeded"

    def find() -> Any:
        return sender.run(lambda session: uploads.find_part(session, upload_id, 3, "b", 10, tight, MOST))

    assert refused(LimitReached, find) == "quota_exceeded"
    assert sender.put(upload_id, 3, size=5, limits=tight)
    assert sender.put(upload_id, 1, "other", limits=tight)


def test_announced_bytes_have_room_set_aside_for_them(sender: Sender) -> None:
    tight = Limits(datasets=5, images=5, stored_bytes=25)
    first = sender.begin(limits=tight, size_bytes=20)
    assert refused(LimitReached, lambda: sender.begin(limits=tight, size_bytes=6)) == "quota_exceeded"
    second = sender.begin(limits=tight, size_bytes=5)
    for number in (1, 2):
        sender.put(first, number, limits=tight)
    assert refused(LimitReached, lambda: sender.put(first, 3, size=1, limits=tight)) == "quota_exceeded"
    sender.put(second, 1, size=5, limits=tight)


def test_room_for_an_unknown_length_grows_and_is_returned(sender: Sender) -> None:
    tight = Limits(datasets=5, images=5, stored_bytes=25)
    upload_id = sender.begin(limits=tight, part_bytes=None, size_bytes=0)

    def grow(size: int) -> Any:
        return sender.run(lambda session: uploads.set_aside(session, upload_id, size, tight))

    for size in (10, 25, 12):
        grow(size)
    assert refused(LimitReached, lambda: grow(26)) == "quota_exceeded"
    assert refused(LimitReached, lambda: sender.begin(limits=tight, size_bytes=1)) == "quota_exceeded"
    finish_whole(sender, upload_id)
    sender.begin(limits=tight, size_bytes=20)
