"""What a version was learned from: there, or named as what is missing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import jobs, lineage, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Conflict
from bpt_store.lineage import Lineage
from bpt_store.models import Dataset, DatasetState, DatasetVersion, JobKind
from bpt_store.prompt_sets import Publication

SETTLED = {"method": "bpt-bilinear", "rank": 4}
ASKED = {"method": "bpt-bilinear", "rank": 8}
SEARCH = {"settings": ["rank"], "trials": 2}


@pytest.fixture
def dataset_id(database: Database, customer_id: UUID) -> UUID:
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="d", state=DatasetState.READY, latest=2)
        session.add(dataset)
        session.flush()
        for number in (1, 2):
            version = DatasetVersion(
                customer_id=customer_id, dataset_id=dataset.id, number=number, state=DatasetState.READY
            )
            version.task = "single-label"
            session.add(version)
        return dataset.id


@pytest.fixture
def job_id(database: Database, customer_id: UUID, dataset_id: UUID) -> UUID:
    payload = {"recipe": ASKED, "search": SEARCH}
    with database.customer(customer_id) as session:
        made = jobs.create(
            session, customer_id, JobKind.TUNE, dataset_id=dataset_id, dataset_version=1, payload=payload
        )
        return made.id


@pytest.fixture
def learned(job_id: UUID, dataset_id: UUID) -> dict[str, Any]:
    return {"job_id": job_id, "dataset_id": dataset_id, "dataset_version": 1}


def publish(database: Database, customer_id: UUID, learned: dict[str, Any], **facts: Any) -> int:
    made = Publication(b"artifact", "vit", "f", ["a", "b"], SETTLED, 1, {}, **facts)
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds")
        return prompt_sets.publish(session, birds.id, made, **learned).version


def lineage_of(database: Database, customer_id: UUID, version: int) -> Lineage:
    with database.customer(customer_id) as session:
        _, row = prompt_sets.resolve(session, f"birds:{version}")
        return lineage.of(session, row)


def change(database: Database, customer_id: UUID, statement: str) -> None:
    with database.customer(customer_id) as session:
        session.execute(text(statement))


def test_the_job_tells_what_was_searched_and_the_version_of_the_dataset_is_that_of_then(
    database: Database, customer_id: UUID, dataset_id: UUID, learned: dict[str, Any]
) -> None:
    found = lineage_of(database, customer_id, publish(database, customer_id, learned))
    assert (found.dataset.dataset_id, found.dataset.number) == (dataset_id, 1)
    assert (found.recipe, found.search) == (ASKED, SEARCH)


def test_without_the_job_the_settled_recipe_will_do(
    database: Database, customer_id: UUID, learned: dict[str, Any]
) -> None:
    version = publish(database, customer_id, learned)
    change(database, customer_id, "DELETE FROM jobs")
    found = lineage_of(database, customer_id, version)
    assert (found.recipe, found.search) == (SETTLED, None)


@pytest.mark.parametrize(
    ("changed", "statement", "told"),
    [
        ({"job_id": None, "dataset_id": None, "dataset_version": None}, None, "imported"),
        ({"job_epoch": 3}, None, "epoch 3"),
        ({"dataset_version": None}, None, "was not noted"),
        ({"dataset_id": uuid4()}, None, "deleted"),
        ({"dataset_version": 9}, None, "deleted"),
        ({}, """UPDATE jobs SET result = '{"stopped_by": "budget"}'""", "budget"),
    ],
)
def test_what_is_missing_is_told(
    database: Database,
    customer_id: UUID,
    learned: dict[str, Any],
    changed: dict[str, Any],
    statement: str | None,
    told: str,
) -> None:
    version = publish(database, customer_id, {**learned, **changed})
    if statement:
        change(database, customer_id, statement)
    with pytest.raises(Conflict, match=told) as refused:
        lineage_of(database, customer_id, version)
    assert refused.value.code == "not_reproducible"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (None, None),
        ("DELETE FROM prompt_set_versions WHERE version = 1", "birds:1, .*, was deleted"),
        ("UPDATE prompt_set_versions SET artifact_sha256 = 'other' WHERE version = 1", "another version by now"),
    ],
)
def test_what_tuning_began_with_must_be_there_unchanged(
    database: Database, customer_id: UUID, learned: dict[str, Any], statement: str | None, told: str | None
) -> None:
    publish(database, customer_id, learned)
    with database.customer(customer_id) as session:
        begun = prompt_sets.resolve(session, "birds:1")[1].artifact_sha256
    continued = {"prompt_set": "birds", "version": 1, "artifact_sha256": begun, "head": "carried"}
    version = publish(database, customer_id, learned, continued_from=continued)
    if statement is None or told is None:
        assert lineage_of(database, customer_id, version).recipe == ASKED
        return
    change(database, customer_id, statement)
    with pytest.raises(Conflict, match=told):
        lineage_of(database, customer_id, version)
