"""Backup and restore: real databases, objects in directories and in memory, writes that go on meanwhile."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic import command as alembic
from sqlalchemy import Engine, Text, create_engine, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB

from bpt_store import (
    administrators,
    aliases,
    audit,
    backup,
    checkpoints,
    customers,
    datasets,
    gates,
    idempotency,
    ids,
    jobs,
    prompt_sets,
    references,
    restore,
    resuming,
    scheduling,
    uploads,
    webhooks,
)
from bpt_store.audit import Actor
from bpt_store.backup_files import LOCK, OBJECTS, BackupError, Manifest, Place, TableFile
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.datasets import Contents
from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.models import Base, Dataset, DoomedObject, Evaluation, Job, JobKind
from bpt_store.objects import Objects
from bpt_store.prompt_sets import Publication
from bpt_store.queue import Doorbell, celery_app
from bpt_store.quotas import Limits
from bpt_store.settings import Settings
from bpt_store.up import environment_of
from migrations.config import alembic_config
from tests.conftest import settings_for
from tests.service import eventually
from worker.context import Worker
from worker.orphans import delete_orphans
from worker.sweep import sweep_once

PLENTY = Limits(datasets=100, images=1_000_000, stored_bytes=1 << 40)
ARTIFACT = bytes(range(256)) * 40 + b"\\N\t\n"


@dataclass
class Stored:
    """A service with something in every column that holds keys; `keys` are all objects that are referred to."""

    settings: Settings
    database: Database
    objects: Objects
    customer_id: UUID
    token: str
    dataset: Dataset
    running: Job
    keys: set[str]


@pytest.fixture
def stored(settings: Settings, database: Database, tmp_path: Path) -> Stored:
    objects = Objects(settings.objects_url)

    def put(key: str, content: bytes = b"") -> dict[str, Any]:
        (tmp_path / "f").write_bytes(content or key.encode() * 1_000)
        return objects.put_file(key, tmp_path / "f")

    with database.system() as session:
        customer_id = customers.create(session, "acme").id
        _, token = customers.create_key(session, customer_id, "default", CUSTOMER_SCOPES)
        administrators.bootstrap(session)
    dataset, ready = _ready_dataset(database, customer_id, put)
    upload, part = _upload(database, customer_id, "open", put)
    unread, unread_part = _upload(database, customer_id, "unread", put)
    _complete(database, customer_id, unread)
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        publication = Publication(ARTIFACT, "vit", "fingerprint", ["a\tb", "\\."], {"x": "ü\n"}, 1, {})
        for _ in range(2):
            prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=dataset.id)
        audit.act_as(session, Actor(uuid4(), "req_1"))
        aliases.move(session, prompt_set.id, "production", 1, actor="key")
        images = datasets.version(session, dataset.id, 1)
        gates.put(session, prompt_set.id, images, gates.Demand("top1", 0.9, "test", ["production"]))
        on: dict[str, Any] = {"prompt_set_id": prompt_set.id, "dataset_id": dataset.id, "dataset_version": 1}
        session.add(Evaluation(customer_id=customer_id, version=1, metrics={"top1": 0.5}, job_id=uuid4(), **on))
        sender, reply = idempotency.Sender.customer(customer_id), idempotency.Reply(201, b"{}", None)
        idempotency.keep(session, sender, "key", bytes(32), reply, 24)
        endpoint = webhooks.create(session, customer_id, "https://example.com/hook", description="ü\t")
        webhooks.test(session, endpoint.id)
    tuning = _claimed(database, customer_id, JobKind.TUNE, dataset)
    checkpoint = put(f"jobs/{tuning.id.hex}/1/checkpoint-1.safetensors")
    tuned = _claimed(database, customer_id, JobKind.TUNE, dataset)
    batch = _claimed(database, customer_id, JobKind.BATCH_PREDICT, dataset)
    stopped = _claimed(database, customer_id, JobKind.BATCH_PREDICT, dataset)
    given_up = put(f"jobs/{tuned.id.hex}/1/checkpoint-1.safetensors")
    result = put(f"{jobs.results_prefix(batch.id)}1/predictions.parquet")
    half = put(f"jobs/{stopped.id.hex}/1/part-0.parquet")
    with database.customer(customer_id) as session:
        resuming.keep_checkpoint(session, jobs.fence_of(tuning), {**checkpoint, "epoch": 1})
        resuming.keep_checkpoint(session, jobs.fence_of(tuned), {**given_up, "epoch": 1})
        checkpoints.keep(session, jobs.fence_of(tuned), checkpoints.Left(1, ARTIFACT, 0.5, {"x": "ü"}, {}), most=2)
        jobs.succeed(session, jobs.fence_of(tuned), {})
        resuming.keep_part(session, jobs.fence_of(stopped), {**half, "done": 4})
        jobs.succeed(session, jobs.fence_of(batch), {"images": 3, "files": {"parquet": result}})
    put(f"uploads/{upload.hex}/9-unfinished")  # an attempt that died: nothing refers to it
    keys = {*ready, part, unread_part, str(checkpoint["key"]), str(result["key"]), str(half["key"])}
    return Stored(settings, database, objects, customer_id, token, dataset, tuning, keys)


def _upload(database: Database, customer_id: UUID, name: str, put: Any) -> tuple[UUID, str]:
    """An open one -> its id, and the key of its one part."""
    with database.customer(customer_id) as session:
        upload = uploads.begin(
            session,
            customer_id,
            uploads.Intent(name=name),
            "application/zip",
            limits=PLENTY,
            seconds=3600,
            part_bytes=1 << 20,
        ).id
        stored = put(uploads.new_key(upload, "1"))
        part = uploads.Part(1, stored["key"], stored["sha256"], stored["bytes"])
        uploads.keep_part(session, upload, part, PLENTY, most=1 << 30, seconds=3600)
    return upload, part.key


def _complete(database: Database, customer_id: UUID, upload: UUID) -> UUID:
    """-> the dataset that is to be made of it."""
    with database.customer(customer_id) as session:
        return uploads.complete(session, upload, sha256=None, seconds=3600)[0].dataset_id


def _ready_dataset(database: Database, customer_id: UUID, put: Any) -> tuple[Dataset, set[str]]:
    """Two versions that share their objects; what the first one was made of has been given up."""
    dataset_id = _complete(database, customer_id, _upload(database, customer_id, "birds", put)[0])
    prefix = datasets.prefix(dataset_id)
    large = os.urandom(1 << 20) * 7  # more than one piece of a stream
    objects = {
        "shards": [put(f"{prefix}shard-0.parquet", large), put(f"{prefix}shard-1.parquet")],
        "items": put(f"{prefix}items.parquet"),
        "thumbnails": put(f"{prefix}thumbnails.bin"),
    }
    report = {"images": {"packed": 5}, "splits": {"train": 5}, "counts": {}, "verdict": "good to tune"}
    made = Contents("single-label", ["a", "b"], objects, report)
    for number in (1, 2):
        if number == 2:
            with database.customer(customer_id) as session:
                datasets.add_version(session, dataset_id, changes={"remove": ["itm_1"]})
        with database.system() as session:
            job = jobs.claim(session, JobKind.INGEST, "w", 30)
        assert job is not None
        with database.customer(customer_id) as session:
            jobs.succeed(session, jobs.fence_of(job), {"images": report["images"]})
            datasets.become_ready(session, dataset_id, number, made, PLENTY)
    with database.customer(customer_id) as session:
        dataset = datasets.get(session, dataset_id)
    return dataset, {each["key"] for each in (*objects["shards"], objects["items"], objects["thumbnails"])}


def _claimed(database: Database, customer_id: UUID, kind: JobKind, dataset: Dataset) -> Job:
    with database.customer(customer_id) as session:
        jobs.create(session, customer_id, kind, dataset_id=dataset.id, dataset_version=1, payload={})
    with database.system() as session:
        job = jobs.claim(session, kind, "worker", 30)
    assert job is not None
    return job


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.at(str(tmp_path / "backups"))


@pytest.fixture
def target(embedded: EmbeddedServices, tmp_path: Path) -> Iterator[Settings]:
    """A service of which there is nothing yet, not even the database."""
    name = f"restored_{uuid4().hex}"
    yield settings_for(embedded, name, tmp_path / "restored" / "objects")
    superuser = create_engine(embedded.superuser_url, isolation_level="AUTOCOMMIT")
    with superuser.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    superuser.dispose()


def rows_of(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in the order of their keys."""
    engine = create_engine(settings.system_database_url.get_secret_value())
    with engine.connect() as connection:
        found = {
            table.name: [
                {column.name: value for column, value in zip(table.columns, row, strict=True)}
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in Base.metadata.sorted_tables
        }
    engine.dispose()
    for row in found["queue_shares"]:  # whom workers have served starts anew
        row.pop("began"), row.pop("served")
    return found


def restored(target: Settings, place: Place, name: str | None = None) -> list[str]:
    """Restore -> what was told about objects."""
    manifest = place.manifest(name)
    restore.verify(place, manifest)
    return [str(problem) for problem in restore.restore(target, place, manifest)]


def contents(objects: Objects) -> dict[str, bytes]:
    return {key: objects.read(key) for key in objects.keys("")}


def is_nowhere(target: Settings) -> bool:
    """Nothing was written: no row, no object."""
    return not any(rows_of(target).values()) and not Objects(target.objects_url).keys("")


@pytest.fixture
def as_environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes these settings those of the environment, as for any process of the service."""

    def set_up(settings: Settings) -> None:
        for name in ("database_url", "system_database_url", "owner_database_url", "superuser_database_url"):
            monkeypatch.setenv(f"BPT_{name.upper()}", getattr(settings, name).get_secret_value())
        monkeypatch.setenv("BPT_REDIS_URL", settings.redis_url.get_secret_value())
        monkeypatch.setenv("BPT_OBJECTS_URL", settings.objects_url)

    return set_up


# --- a service comes back --------------------------------------------------------------------------------------


def test_every_row_and_every_object_referred_to_comes_back(stored: Stored, place: Place, target: Settings) -> None:
    manifest = backup.make(stored.settings, place)
    assert (manifest.missing, manifest.counts["objects"]) == ([], len(stored.keys))
    assert restored(target, place) == []
    before, after = rows_of(stored.settings), rows_of(target)
    assert {name for name, rows in before.items() if not rows} == set(), "a table was not tried"
    for name, rows in before.items():
        assert after[name] == rows, name
    kept = {key: content for key, content in contents(stored.objects).items() if key in stored.keys}
    assert contents(Objects(target.objects_url)) == kept


def test_what_was_restored_works_roles_and_walls_included(stored: Stored, place: Place, target: Settings) -> None:
    backup.make(stored.settings, place)
    restored(target, place)
    database = Database(target)
    with database.system() as session:
        assert customers.authenticate(session, stored.token).customer_id == stored.customer_id
        other = customers.create(session, "other").id
    with database.customer(stored.customer_id) as session:
        _, version = prompt_sets.resolve(session, "birds@production")
        assert (version.version, prompt_sets.artifact(session, version)) == (1, ARTIFACT)
        published = prompt_sets.publish(
            session,
            version.prompt_set_id,
            Publication(b"new", "vit", "fingerprint", ["a"], {}, 1, {}),
            job_id=uuid4(),
            dataset_id=None,
        )
        assert published.version == 3
    with database.customer(other) as session:
        for table in ("datasets", "jobs", "prompt_sets", "upload_parts"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
    database.close()


def test_jobs_that_ran_are_claimed_again_and_find_their_checkpoint(
    stored: Stored, place: Place, target: Settings, tmp_path: Path
) -> None:
    backup.make(stored.settings, place)
    restored(target, place)
    database = Database(target)
    with database.system() as session:  # time passes
        session.execute(update(Job).values(lease_expires_at=Job.lease_expires_at - timedelta(hours=1)))
        assert jobs.requeue_expired(session, max_failures=3, backoff_seconds=0) == 2
        assert JobKind.TUNE in scheduling.kinds_waiting(session, -1)
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "worker", 30)
    assert job is not None
    assert (job.id, job.attempt) == (stored.running.id, 2)
    assert job.checkpoint is not None
    Objects(target.objects_url).fetch(job.checkpoint["key"], tmp_path / "resume", sha256=job.checkpoint["sha256"])
    database.close()


def test_a_backup_is_one_moment_while_writes_go_on(stored: Stored, place: Place, target: Settings) -> None:
    """Each write is a customer and its prompt set in one transaction: never is there one without the other."""
    ended, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not ended.is_set():
            with stored.database.system() as session:
                customer_id = customers.create(session, f"writer {written}").id
                session.flush()
                prompt_sets.get_or_create(session, customer_id, "own")
            written += 1

    before = rows_of(stored.settings)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        eventually(lambda: written > 20, what="writes")
        backup.make(stored.settings, place)
        so_far = written
        eventually(lambda: written > so_far + 20, what="more writes")
    finally:
        ended.set()
        writer.join()
    after_all = rows_of(stored.settings)
    assert restored(target, place) == []
    after = rows_of(target)
    for name, rows in after.items():
        assert all(row in rows for row in before[name]), name
        assert all(row in after_all[name] for row in rows), name
    owners = [row["customer_id"] for row in after["prompt_sets"] if row["name"] == "own"]
    assert 20 < len(owners) < written
    assert {*owners} == {row["id"] for row in after["customers"] if row["name"].startswith("writer")}


def test_a_place_that_is_no_directory_will_do(stored: Stored, target: Settings) -> None:
    place = Place.at("memory:///backups")
    (damaged,) = [key for key in stored.keys if key.endswith("shard-0.parquet")]
    path = Path(stored.settings.objects_url.removeprefix("file://")) / damaged
    path.write_bytes(b"x" + path.read_bytes()[1:])
    manifest = backup.make(stored.settings, place)
    assert [problem.key for problem in manifest.missing] == [damaged]
    assert sorted(place.keys(OBJECTS)) == sorted(OBJECTS + key for key in stored.keys - {damaged})
    assert len(restored(target, place)) == 1
    assert {*Objects(target.objects_url).keys("")} == stored.keys - {damaged}
    assert rows_of(target) == rows_of(stored.settings)


def _as_it_was(table: TableFile, files: Path) -> TableFile:
    """Without the columns that came after 0009."""
    later = {"requests_per_minute", "images_per_minute", "upload_bytes_per_day"}
    kept = [index for index, column in enumerate(table.columns) if column not in later]
    rows = [row.split("\t") for row in gzip.decompress((files / table.file).read_bytes()).decode().split("\n")[:-1]]
    packed = gzip.compress("".join("\t".join(row[index] for index in kept) + "\n" for row in rows).encode())
    (files / table.file).write_bytes(packed)
    facts = {"sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
    return table.model_copy(update={"columns": [table.columns[index] for index in kept], **facts})


def test_an_older_backup_is_brought_up_to_date(stored: Stored, place: Place, target: Settings, tmp_path: Path) -> None:
    manifest = backup.make(stored.settings, place)
    old = manifest.model_copy(deep=True)
    old.name, old.revision, old.objects = f"{manifest.name}-old", "0009", []
    files = tmp_path / "backups"
    old.tables = [_as_it_was(table, files) for table in manifest.tables if table.name in ("customers", "api_keys")]
    place.write_manifest(old)
    assert target.owner_database_url is not None
    restore._make_database(target)
    alembic.upgrade(alembic_config(target.owner_database_url.get_secret_value()), "head")
    assert restored(target, place, old.name) == []
    assert rows_of(target)["customers"] == rows_of(stored.settings)["customers"]
    owner = create_engine(target.owner_database_url.get_secret_value())
    with owner.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == manifest.revision
    owner.dispose()


# --- objects ---------------------------------------------------------------------------------------------------


def test_every_column_that_may_hold_keys_is_looked_into_or_known_to_hold_none() -> None:
    without = {
        "datasets": {"options", "metadata"},
        "dataset_versions": {"changes", "class_names", "splits", "counts", "report", "error"},
        "uploads": {"intent"},
        "jobs": {"payload", "metadata", "progress", "report", "error"},
        "job_events": {"data"},
        "job_checkpoints": {"val", "facts"},
        "prompt_sets": {"metadata"},
        "prompt_set_versions": {"class_names", "recipe", "metrics", "continued_from", "metadata"},
        "gates": {"aliases"},
        "evaluations": {"metrics"},
        "audit_log": {"before", "after"},
        "webhook_events": {"data"},
        "doomed_objects": {"key"},  # what is to be deleted
    }
    looked_into = {*references.HOLDING, *((table, "key") for table in references.ROWS)}
    may_hold = {
        (table.name, column.name)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, JSONB) or (isinstance(column.type, Text) and "key" in column.name)
    }
    assert may_hold == looked_into | {(table, column) for table, columns in without.items() for column in columns}


def test_there_are_no_sequences_for_copy_does_not_bring_them_back(owner: Engine) -> None:
    with owner.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_sequences")) == 0


def test_the_second_backup_copies_only_what_is_new(
    stored: Stored, place: Place, tmp_path: Path, target: Settings
) -> None:
    first = backup.make(stored.settings, place)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "backups" / "objects").rglob("*") if path.is_file()}
    (tmp_path / "f").write_bytes(b"second checkpoint")
    new = stored.objects.put_file(f"jobs/{stored.running.id.hex}/1/checkpoint-2.safetensors", tmp_path / "f")
    with stored.database.customer(stored.customer_id) as session:
        resuming.keep_checkpoint(session, jobs.fence_of(stored.running), {**new, "epoch": 2})
    second = backup.make(stored.settings, place)
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "backups" / "objects").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "backups" / "objects").as_posix() for path in now if path not in there} == {
        new["key"]
    }
    assert {path: now[path] for path in there} == there
    assert place.names() == [first.name, second.name]
    # The first one is still whole.
    assert restored(target, place, first.name) == []
    assert rows_of(target)["jobs"] != rows_of(stored.settings)["jobs"]


def test_a_backup_that_was_interrupted_is_none_and_the_next_one_goes_on(
    stored: Stored, place: Place, monkeypatch: pytest.MonkeyPatch, target: Settings
) -> None:
    def break_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Place, "write_manifest", break_off)
        with pytest.raises(KeyboardInterrupt):
            backup.make(stored.settings, place)
    assert place.names() == []
    with pytest.raises(BackupError, match="there is no backup"):
        place.manifest()
    assert backup.make(stored.settings, place).missing == []
    assert restored(target, place) == []


def test_other_bytes_under_the_same_key_are_never_written_over(stored: Stored, place: Place, tmp_path: Path) -> None:
    """A service restored from an earlier backup numbers its attempts as the first one did."""
    first = backup.make(stored.settings, place)
    (tmp_path / "f").write_bytes(b"other")
    checkpoint = stored.objects.put_file(f"jobs/{stored.running.id.hex}/1/checkpoint-1.safetensors", tmp_path / "f")
    with stored.database.system() as session:
        session.execute(update(Job).where(Job.id == stored.running.id).values(checkpoint={**checkpoint, "epoch": 1}))
    second = backup.make(stored.settings, place)
    assert [(problem.key, "other bytes" in problem.what) for problem in second.missing] == [(checkpoint["key"], True)]
    assert all(place.verify(OBJECTS + each.key, each.sha256) is None for each in first.objects)


def test_objects_given_up_during_a_backup_stay_until_it_has_ended(
    stored: Stored, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker.create(stored.settings)
    doorbell = Doorbell(celery_app(stored.settings))
    save_objects = backup._save_objects

    def doomed() -> int:
        with stored.database.system() as session:
            return session.scalars(select(func.count()).select_from(DoomedObject)).one()

    def give_up_then_save(*arguments: Any) -> Any:
        with stored.database.customer(stored.customer_id) as session:
            for job in session.scalars(select(Job).where(Job.dataset_id == stored.dataset.id)):
                session.delete(job)
            session.flush()
            gates.remove(session, prompt_sets.get(session, "birds").id)
            datasets.delete(session, stored.dataset.id)
        sweep_once(worker, doorbell)
        assert doomed()
        return save_objects(*arguments)

    monkeypatch.setattr(backup, "_save_objects", give_up_then_save)
    assert backup.make(stored.settings, place).missing == []
    assert {*place.keys(OBJECTS)} == {OBJECTS + key for key in stored.keys}
    sweep_once(worker, doorbell)
    assert doomed() == 0
    assert stored.objects.keys(datasets.prefix(stored.dataset.id)) == []
    worker.database.close()


def test_the_sweep_of_orphans_deletes_what_no_row_refers_to_and_nothing_else(stored: Stored) -> None:
    """References are known in one place, and what it forgot would be lost to a backup and here."""
    strangers = {"notes.txt", "jobs/readme", f"weights/{uuid4().hex}/w.safetensors"}
    directory = Path(stored.settings.objects_url.removeprefix("file://"))
    for key in strangers:
        (directory / key).parent.mkdir(parents=True, exist_ok=True)
        (directory / key).write_bytes(b"not ours")
    at_once = {"orphan_hours": 0, "upload_expiry_seconds": 1e-6}
    worker = Worker.create(stored.settings.model_copy(update=at_once))
    before = {*stored.objects.keys("")}
    assert delete_orphans(worker) == len(before - stored.keys - strangers) > 0
    assert {*stored.objects.keys("")} == stored.keys | strangers
    assert delete_orphans(worker) == 0
    worker.database.close()


def test_two_backups_do_not_wait_for_each_other(stored: Stored, place: Place) -> None:
    with stored.database.system() as session:
        assert session.scalar(select(func.pg_try_advisory_xact_lock_shared(func.hashtext(LOCK))))
        assert backup.make(stored.settings, place).missing == []


# --- what goes wrong -------------------------------------------------------------------------------------------


def test_missing_and_damaged_objects_are_told_and_the_backup_is_finished(
    stored: Stored, tmp_path: Path, as_environment: Any, capsys: pytest.CaptureFixture[str], target: Settings
) -> None:
    directory = Path(stored.settings.objects_url.removeprefix("file://"))
    gone, damaged = sorted(key for key in stored.keys if "shard" in key)
    (directory / gone).unlink()
    (directory / damaged).write_bytes(b"not what was stored")
    as_environment(stored.settings)
    with pytest.raises(SystemExit) as ended:
        backup.main([str(tmp_path / "backups")])
    assert ended.value.code == 1
    who = f"({ids.public(ids.CUSTOMER, stored.customer_id)}, {ids.public(ids.DATASET, stored.dataset.id)}:1)"
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == [
        f"not saved: {gone} {who}: missing",
        f"not saved: {damaged} {who}: damaged: its sha256 is not the recorded one",
    ]
    as_environment(target)
    with pytest.raises(SystemExit) as ended:
        restore.main([str(tmp_path / "backups")])
    assert ended.value.code == 1
    assert sorted(capsys.readouterr().err.splitlines()) == [line.replace("saved", "restored") for line in sorted(lines)]
    assert rows_of(target) == rows_of(stored.settings)
    assert {*Objects(target.objects_url).keys("")} == stored.keys - {gone, damaged}


def test_objects_that_are_lost_or_changed_in_the_backup_are_told_and_the_rest_comes_back(
    stored: Stored, place: Place, tmp_path: Path, target: Settings
) -> None:
    backup.make(stored.settings, place)
    gone, damaged = sorted(key for key in stored.keys if "shard" in key)
    (tmp_path / "backups" / "objects" / gone).unlink()
    (tmp_path / "backups" / "objects" / damaged).write_bytes(b"not what was stored")
    told = restored(target, place)
    assert sorted(line.rpartition("): ")[2] for line in told) == [
        "damaged: its sha256 is not the recorded one",
        "missing",
    ]
    assert {*Objects(target.objects_url).keys("")} == stored.keys - {gone, damaged}
    assert rows_of(target) == rows_of(stored.settings)


@pytest.mark.parametrize("harm", ["changed", "cut off", "gone"])
def test_a_damaged_table_is_told_before_anything_is_written(
    stored: Stored, place: Place, tmp_path: Path, target: Settings, harm: str
) -> None:
    manifest = backup.make(stored.settings, place)
    # The last one: all others are sound.
    path = tmp_path / "backups" / manifest.tables[-1].file
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[:-9] if harm == "cut off" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BackupError, match=r"\.copy\.gz: .*nothing was restored"):
        restored(target, place)
    engine = create_engine(target.superuser_database_url.get_secret_value())  # type: ignore[union-attr]
    with engine.connect() as connection:
        name = target.system_database_url.get_secret_value().rpartition("/")[2].partition("?")[0]
        assert connection.scalar(text("SELECT count(*) FROM pg_database WHERE datname = :name"), {"name": name}) == 0
    engine.dispose()
    assert not (tmp_path / "restored").exists()


def test_a_table_that_is_damaged_after_it_was_verified_leaves_no_row(
    stored: Stored, place: Place, tmp_path: Path, target: Settings
) -> None:
    manifest = backup.make(stored.settings, place)
    restore.verify(place, manifest)
    (table,) = (table for table in manifest.tables if table.name == "customers")
    path = tmp_path / "backups" / table.file
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"acme", b"evil")))
    with pytest.raises(BackupError, match="nothing was restored"):
        restore.restore(target, place, manifest)
    assert not any(rows_of(target).values())
    # What is there of it now does not keep anyone from trying again.
    backup.make(stored.settings, place)
    assert restored(target, place) == []


def test_a_service_that_is_not_empty_is_left_as_it_is(
    stored: Stored, place: Place, tmp_path: Path, as_environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backup.make(stored.settings, place)
    capsys.readouterr()
    before, objects = rows_of(stored.settings), contents(stored.objects)
    as_environment(stored.settings)
    assert outcome(capsys, restore.main, str(tmp_path / "backups")).startswith("bpt restore: the service is not empty")
    assert (rows_of(stored.settings), contents(stored.objects)) == (before, objects)


def outcome(capsys: pytest.CaptureFixture[str], main: Any, *arguments: str) -> str:
    """The one line that a command ends with, at status 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.count("\n") == 1
    return told.err.rstrip()


def test_a_place_that_cannot_be_used_is_one_line(
    settings: Settings, tmp_path: Path, as_environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    as_environment(settings)
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), "/proc/nowhere", "ftp://host/backups"):
        assert place in outcome(capsys, backup.main, place)
    assert "there is no directory" in outcome(capsys, restore.main, str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    assert "there is no backup" in outcome(capsys, restore.main, str(tmp_path / "empty"))


def test_a_backup_that_is_unknown_damaged_or_too_new_is_one_line(
    settings: Settings,
    place: Place,
    tmp_path: Path,
    as_environment: Any,
    target: Settings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = backup.make(settings, place)
    capsys.readouterr()
    as_environment(target)
    where, file = str(tmp_path / "backups"), tmp_path / "backups" / manifest.name / "manifest.json"
    for name in ("19990101T000000Z", "../backups", ""):
        assert manifest.name in outcome(capsys, restore.main, where, "--backup", name)
    whole = json.loads(file.read_text())
    for revision in ("9999", "000", "head", ""):
        file.write_text(json.dumps({**whole, "revision": revision}))
        assert f"revision {revision!r}, which this software does not know" in outcome(capsys, restore.main, where)
    evil = {"key": "../../escaped", "sha256": "", "bytes": 1, "customer": "c", "of": "o"}
    damages: list[Any] = [{**whole, "format": 2}, {**whole, "objects": [evil]}, {}, []]
    for damage in damages:
        file.write_text(json.dumps(damage))
        assert "is damaged" in outcome(capsys, restore.main, where)
    file.write_text("{")
    assert "is damaged" in outcome(capsys, restore.main, where)


def test_a_database_of_another_revision_is_not_saved(
    settings: Settings, tmp_path: Path, as_environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    alembic.downgrade(config, "0003")
    as_environment(settings)
    assert "at revision 0003" in outcome(capsys, backup.main, str(tmp_path / "backups"))
    alembic.downgrade(config, "base")
    assert "at revision none" in outcome(capsys, backup.main, str(tmp_path / "backups"))


def test_missing_settings_and_a_database_that_is_away_are_one_line(
    settings: Settings,
    tmp_path: Path,
    as_environment: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = str(tmp_path / "backups")
    as_environment(settings)
    monkeypatch.setenv("BPT_SYSTEM_DATABASE_URL", "postgresql+psycopg://bpt_system@127.0.0.1:1/bpt")
    assert "cannot be reached" in outcome(capsys, backup.main, place)
    monkeypatch.delenv("BPT_SYSTEM_DATABASE_URL")
    assert "BPT_SYSTEM_DATABASE_URL" in outcome(capsys, backup.main, place)
    as_environment(settings)
    monkeypatch.delenv("BPT_OWNER_DATABASE_URL")
    assert "BPT_OWNER_DATABASE_URL" in outcome(capsys, backup.main, place)
    assert "no service" in outcome(capsys, backup.main, place, "--data-dir", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# --- a data directory ------------------------------------------------------------------------------------------


def test_a_data_directory_is_saved_running_or_not_and_comes_back_in_another(short_directory: Path) -> None:
    first, second, place = (short_directory / name for name in ("saved", "new", "place"))

    def run(module: str, *arguments: object) -> str:
        words = [sys.executable, "-m", f"bpt_store.{module}", *map(str, arguments)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BPT_")}
        done = subprocess.run(words, capture_output=True, text=True, env=clean, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with EmbeddedServices(first, durable=False):
        subprocess.run([sys.executable, "-m", "migrations"], env={**os.environ, **environment_of(first)}, check=True)
        key = run("admin", "bootstrap", "--data-dir", first).strip()
        run("backup", place, "--data-dir", first)
    told = run("backup", place, "--data-dir", first)
    manifests = [Manifest.model_validate_json(path.read_bytes()) for path in sorted(place.glob("*/manifest.json"))]
    assert [manifest.counts["rows"] for manifest in manifests] == [1, 1]
    assert manifests[1].name in told
    assert all(path.stat().st_mode & 0o077 == 0 for path in (place, *place.rglob("*")))
    run("restore", place, "--data-dir", second, "--backup", manifests[0].name)
    with EmbeddedServices(second, durable=False):
        engine = create_engine(environment_of(second)["BPT_SYSTEM_DATABASE_URL"])
        with engine.connect() as connection:
            secret = connection.scalar(text("SELECT secret_sha256 FROM api_keys"))
        engine.dispose()
    assert secret == hashlib.sha256(key.split("_", 2)[2].encode()).digest()
