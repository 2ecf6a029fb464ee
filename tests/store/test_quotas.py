"""Quotas: what counts, and that two who come at once do not take the same room."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from bpt_store import customers, datasets, quotas, uploads
from bpt_store.db import Database
from bpt_store.errors import LimitReached
from bpt_store.quotas import Limits, Use
from bpt_store.settings import Settings
from bpt_store.uploads import Intent, Part

PLENTY = Limits(datasets=100, images=100, stored_bytes=1_000)


def use(database: Database, customer_id: UUID) -> Use:
    with database.customer(customer_id) as session:
        return quotas.use(session, customer_id)


def begin(database: Database, customer_id: UUID, limits: Limits = PLENTY, **more: Any) -> UUID:
    with database.customer(customer_id) as session:
        intent = more.pop("intent", Intent(name="d"))
        upload = uploads.begin(
            session, customer_id, intent, "application/zip", limits=limits, seconds=60, **{"part_bytes": 10, **more}
        )
    return upload.id


def put(database: Database, customer_id: UUID, upload_id: UUID, number: int, size: int) -> None:
    part = Part(number, uploads.new_key(upload_id, str(number)), f"{number}", size)
    with database.customer(customer_id) as session:
        uploads.keep_part(session, upload_id, part, PLENTY, most=1_000, seconds=60)


def test_nothing_is_in_use_at_first(database: Database, customer_id: UUID) -> None:
    assert use(database, customer_id) == Use(datasets=0, images=0, stored_bytes=0)


def test_limits_are_the_settings(settings: Settings) -> None:
    changed = settings.model_copy(update={"quota_datasets": 1, "quota_images": 2, "quota_bytes": 3})
    assert Limits.of(changed) == Limits(datasets=1, images=2, stored_bytes=3)


def test_an_upload_counts_once_from_its_beginning_until_its_version_is_gone(
    database: Database, customer_id: UUID
) -> None:
    upload_id = begin(database, customer_id, size_bytes=15)
    assert use(database, customer_id) == Use(1, 0, 15)
    put(database, customer_id, upload_id, 1, 10)
    assert use(database, customer_id) == Use(1, 0, 15)
    put(database, customer_id, upload_id, 2, 5)
    with database.customer(customer_id) as session:
        made, _ = uploads.complete(session, upload_id, sha256=None, seconds=60)
    assert use(database, customer_id) == Use(1, 0, 15)
    ready(database, customer_id, made.dataset_id, 1, images=4, objects={"x": 40})
    assert use(database, customer_id) == Use(1, 4, 40)
    with database.system() as session:
        session.execute(text("UPDATE jobs SET state = 'succeeded'"))
    with database.customer(customer_id) as session:
        datasets.delete(session, made.dataset_id)
    assert use(database, customer_id) == Use(0, 0, 0)


def ready(
    database: Database,
    customer_id: UUID,
    dataset_id: UUID,
    number: int,
    *,
    images: int,
    objects: dict[str, int],
    limits: Limits = PLENTY,
) -> None:
    shards = [{"key": key, "sha256": key, "bytes": size} for key, size in objects.items()]
    report = {"images": {"packed": images}, "splits": {}, "counts": {}, "verdict": "good to tune"}
    with database.customer(customer_id) as session:
        contents = datasets.Contents("single-label", ["a"], {"shards": shards}, report)
        datasets.become_ready(session, dataset_id, number, contents, limits)


def create(database: Database, customer_id: UUID, size: int = 7) -> UUID:
    source = {"parts": [{"key": "k", "sha256": "s", "bytes": size}], "media_type": "application/zip"}
    with database.customer(customer_id) as session:
        return datasets.create(session, customer_id, "d", {}, source)[0].id


def test_what_was_announced_counts_or_what_came_if_that_is_more(database: Database, customer_id: UUID) -> None:
    announced, unknown = begin(database, customer_id, size_bytes=15), begin(database, customer_id)
    put(database, customer_id, announced, 1, 10)
    put(database, customer_id, announced, 2, 10)
    put(database, customer_id, unknown, 1, 3)
    assert use(database, customer_id).stored_bytes == 20 + 3


def test_versions_share_objects_and_only_the_newest_counts_its_images(database: Database, customer_id: UUID) -> None:
    dataset_id = create(database, customer_id)
    ready(database, customer_id, dataset_id, 1, images=10, objects={"x": 40, "y": 5})
    with database.customer(customer_id) as session:
        datasets.add_version(session, dataset_id, changes={"remove": ["itm"]})
    ready(database, customer_id, dataset_id, 2, images=9, objects={"x": 40, "z": 6})
    assert use(database, customer_id) == Use(1, 9, 51)


def test_an_upload_for_a_dataset_that_is_there_is_no_other_dataset(database: Database, customer_id: UUID) -> None:
    dataset_id = create(database, customer_id)
    ready(database, customer_id, dataset_id, 1, images=1, objects={})
    begin(database, customer_id, intent=Intent(dataset_id=dataset_id))
    assert use(database, customer_id).datasets == 1


def test_a_dataset_that_failed_costs_nothing(database: Database, customer_id: UUID) -> None:
    create(database, customer_id)
    with database.system() as session:
        session.execute(text("UPDATE dataset_versions SET state = 'failed', source = NULL"))
        session.execute(text("UPDATE datasets SET state = 'failed'"))
    assert use(database, customer_id) == Use(0, 0, 0)


def test_others_do_not_count(database: Database, customer_id: UUID) -> None:
    with database.system() as session:
        other = customers.create(session, "other").id
    dataset_id = create(database, other)
    ready(database, other, dataset_id, 1, images=3, objects={"x": 1})
    create(database, other)
    put(database, other, begin(database, other), 1, 5)
    with database.system() as session:
        assert quotas.use(session, customer_id) == Use(0, 0, 0)
        assert quotas.use(session, other) == Use(3, 3, 13)


@pytest.mark.parametrize("more", [{"datasets": 1}, {"images": 10}, {"stored_bytes": 10}])
def test_what_just_fits_is_taken_and_one_more_is_refused(
    database: Database, customer_id: UUID, more: dict[str, int]
) -> None:
    dataset_id = create(database, customer_id)
    ready(database, customer_id, dataset_id, 1, images=90, objects={"x": 90})
    limits = Limits(datasets=2, images=100, stored_bytes=100)
    with database.customer(customer_id) as session:
        quotas.check(session, customer_id, limits, **more)
    too_many = {noun: count + 1 for noun, count in more.items()}
    with pytest.raises(LimitReached) as caught, database.customer(customer_id) as session:
        quotas.check(session, customer_id, limits, **too_many)
    assert caught.value.code == "quota_exceeded"


def test_what_needs_no_room_is_taken_where_there_is_none(database: Database, customer_id: UUID) -> None:
    create(database, customer_id, 50)
    with database.customer(customer_id) as session:
        quotas.check(session, customer_id, Limits(datasets=1, images=1, stored_bytes=1))


def test_images_beyond_the_quota_fail_the_version_that_would_bring_them(database: Database, customer_id: UUID) -> None:
    tight = Limits(datasets=5, images=10, stored_bytes=100)
    dataset_id = create(database, customer_id)
    ready(database, customer_id, dataset_id, 1, images=8, objects={}, limits=tight)
    with database.customer(customer_id) as session:
        datasets.add_version(session, dataset_id, changes={"remove": []})
    with pytest.raises(LimitReached):
        ready(database, customer_id, dataset_id, 2, images=11, objects={}, limits=tight)
    ready(database, customer_id, dataset_id, 2, images=10, objects={}, limits=tight)


@pytest.mark.parametrize("limits", [Limits(1, 100, 1_000), Limits(100, 100, 15)], ids=["datasets", "bytes"])
def test_of_several_at_once_only_as_many_begin_as_there_is_room_for(
    database: Database, customer_id: UUID, limits: Limits
) -> None:
    barrier = Barrier(4)

    def attempt(_: int) -> bool:
        barrier.wait()
        try:
            begin(database, customer_id, limits, size_bytes=10)
        except LimitReached:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1
    assert use(database, customer_id) == Use(1, 0, 10)
