"""Old and new software side by side, as during an upgrade: payloads that an old worker cannot know, migrations."""

from __future__ import annotations

import re
from io import StringIO
from uuid import UUID, uuid4

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from bpt_store import jobs, scheduling
from bpt_store.db import Database
from bpt_store.models import Job, JobKind, JobState
from bpt_store.settings import Settings
from migrations.config import alembic_config

SINCE = "0005"  # the rule holds for what comes behind it
TAKES_AWAY = re.compile(
    r"\bDROP (TABLE|COLUMN)\b|\bRENAME (TO|COLUMN)\b|\bALTER COLUMN \w+ (SET NOT NULL|TYPE)\b"
    r"|\bADD COLUMN (?!.*\bDEFAULT\b).*\bNOT NULL\b"
)


def submit(database: Database, customer_id: UUID, **payload: int) -> UUID:
    with database.customer(customer_id) as session:
        job = jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
        if payload:
            job.payload = dict(payload)
        return job.id


def claim(database: Database) -> Job | None:
    with database.system() as session:
        return jobs.claim(session, JobKind.TUNE, "w", 30)


def test_a_payload_of_a_newer_format_waits_for_a_newer_worker_and_holds_up_nobody(
    database: Database, customer_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = submit(database, customer_id, format=scheduling.PAYLOAD_FORMAT + 1)
    present = submit(database, customer_id)
    claimed = claim(database)
    assert claimed is not None
    assert (claimed.id, claimed.payload["format"]) == (present, scheduling.FIRST_FORMAT)
    assert claim(database) is None
    with database.customer(customer_id) as session:
        waiting = jobs.get(session, newer, JobKind.TUNE)
        assert (waiting.state, waiting.attempt, waiting.failures) == (JobState.QUEUED, 0, 0)
    with database.system() as session:  # so that a newer worker is rung for
        assert scheduling.kinds_waiting(session, -1) == [JobKind.TUNE]
    monkeypatch.setattr(scheduling, "PAYLOAD_FORMAT", scheduling.PAYLOAD_FORMAT + 1)
    claimed = claim(database)
    assert claimed is not None
    assert claimed.id == newer


def test_a_payload_from_before_formats_were_counted_is_of_the_first(database: Database, customer_id: UUID) -> None:
    old = submit(database, customer_id, epochs=3)
    claimed = claim(database)
    assert claimed is not None
    assert claimed.id == old


def upgrade(config: Config, revision: str) -> list[str]:
    """The statements of one migration, a line each."""
    script = ScriptDirectory.from_config(config).get_revision(revision)
    assert script is not None
    config.output_buffer = out = StringIO()
    command.upgrade(config, f"{script.down_revision}:{revision}", sql=True)
    return [" ".join(statement.split()) for statement in out.getvalue().split(";")]


def test_a_migration_takes_nothing_away_from_workers_that_still_run(settings: Settings) -> None:
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    found = ScriptDirectory.from_config(config).walk_revisions()
    later = [script.revision for script in found if script.revision > SINCE]
    assert later
    for revision in later:
        statements = upgrade(config, revision)
        assert [each for each in statements if f"'{revision}'" in each], "not even the new revision is noted"
        assert [each for each in statements if TAKES_AWAY.search(each)] == [], revision


@pytest.mark.parametrize(
    ("statement", "is_harmful"),
    [
        ("ALTER TABLE jobs DROP COLUMN worker", True),
        ("DROP TABLE uploads", True),
        ("ALTER TABLE jobs RENAME COLUMN worker TO by", True),
        ("ALTER TABLE jobs ADD COLUMN priority SMALLINT NOT NULL", True),
        ("ALTER TABLE jobs ALTER COLUMN worker SET NOT NULL", True),
        ("ALTER TABLE jobs ADD COLUMN priority SMALLINT DEFAULT 0 NOT NULL", False),
        ("ALTER TABLE jobs ADD COLUMN worker TEXT", False),
        ("DROP INDEX jobs_next", False),
    ],
)
def test_the_rule_knows_what_takes_away(statement: str, is_harmful: bool) -> None:
    assert (TAKES_AWAY.search(statement) is not None) == is_harmful
