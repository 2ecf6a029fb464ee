"""Gates: no alias moves to a version that has not shown what it can, but for a reason, or back to where it was."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import aliases, batch_predictions, datasets, evaluations, gates, jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Conflict, NotFound
from bpt_store.gates import Demand
from bpt_store.models import Dataset, DatasetState, DatasetVersion, Job
from bpt_store.prompt_sets import Publication


class Gated:
    """A customer's prompt set with versions 1 to 3, and a dataset with two versions; each verb is a transaction."""

    def __init__(self, database: Database, customer_id: UUID) -> None:
        self.database, self.customer_id = database, customer_id
        with database.customer(customer_id) as session:
            self.id = prompt_sets.get_or_create(session, customer_id, "birds").id
            for number in (1, 2, 3):
                publication = Publication(b"%d" % number, "vit", "f", ["a", "b"], {}, 1, {})
                prompt_sets.publish(session, self.id, publication, job_id=uuid4(), dataset_id=None)
            golden = Dataset(customer_id=customer_id, name="golden", state=DatasetState.READY, latest=2)
            session.add(golden)
            session.flush()
            ready: dict[str, Any] = {"state": DatasetState.READY, "task": "single-label", "class_names": ["a", "b"]}
            ready |= {"images": 9, "splits": {"train": 5, "val": 0, "test": 4}}
            for number in (1, 2):
                session.add(DatasetVersion(customer_id=customer_id, dataset_id=golden.id, number=number, **ready))
            self.golden = golden.id

    def gate(self, floor: float = 0.9, *, version: int = 2, **demand: Any) -> None:
        with self.database.customer(self.customer_id) as session:
            dataset = datasets.get_ready(session, datasets.Reference(self.golden, version))
            gates.put(session, self.id, dataset, Demand(**{"metric": "top1", "floor": floor, **demand}))

    def check(self, version: int, top1: float | None, *, split: str | None = None, dataset_version: int = 2) -> Job:
        """As a gate check that has ended."""
        with self.database.customer(self.customer_id) as session:
            dataset = datasets.get_ready(session, datasets.Reference(self.golden, dataset_version))
            facts: dict[str, Any] = {"split": split, "top_k": 5, "images": 9, "custom": {}, "unfinished_limit": 9}
            reference = f"birds:{version}"
            job = batch_predictions.create(session, self.customer_id, dataset, [reference], **facts)
            evaluations.keep(session, job, {reference: {"top1": top1}})
            jobs.cancel(session, job.id, job.kind)
            return job

    def move(self, version: int, alias: str = "production", **more: Any) -> int:
        with self.database.customer(self.customer_id) as session:
            return aliases.move(session, self.id, alias, version, actor="key", **more).version

    def rollback(self, alias: str = "production", **more: Any) -> int:
        with self.database.customer(self.customer_id) as session:
            return aliases.rollback(session, self.id, alias, actor="key", **more).version

    def refused(self, version: int, alias: str = "production") -> str:
        with pytest.raises(Conflict) as caught:
            self.move(version, alias)
        assert caught.value.code == "gate_not_passed"
        return str(caught.value)

    def reasons(self) -> list[str | None]:
        with self.database.customer(self.customer_id) as session:
            return [each.override_reason for each in aliases.history(session, self.id, "production")[0]][::-1]


@pytest.fixture
def birds(database: Database, customer_id: UUID) -> Gated:
    return Gated(database, customer_id)


def test_an_alias_moves_only_to_what_was_checked_and_reached_the_floor(birds: Gated) -> None:
    birds.gate()
    told = birds.refused(1)
    assert "was not checked" in told
    assert "top1 0.9 or more" in told
    birds.check(1, 0.8875)
    assert "has 0.8875 top1" in birds.refused(1)
    birds.check(2, 0.9)
    assert birds.move(2) == 2
    assert birds.reasons() == [None]
    birds.check(1, 0.95)
    assert birds.move(1) == 1  # the newest check counts
    birds.check(2, None)
    assert "has no top1" in birds.refused(2)


def test_only_the_gates_own_images_count(birds: Gated) -> None:
    birds.gate(split="test")
    birds.check(1, 1.0)
    birds.check(1, 1.0, split="train")
    birds.check(1, 1.0, split="test", dataset_version=1)
    assert "split test" in birds.refused(1)
    birds.check(1, 1.0, split="test")
    assert birds.move(1) == 1


def test_another_floor_needs_no_other_check(birds: Gated) -> None:
    birds.gate(0.9)
    birds.check(1, 0.8)
    birds.refused(1)
    birds.gate(0.8)
    assert birds.move(1) == 1
    birds.gate(0.95)
    assert birds.move(1) == 1  # where it is it may stay
    birds.gate(0.5, version=1)
    birds.refused(2)


def test_a_gate_guards_the_aliases_it_names_until_it_is_removed(birds: Gated) -> None:
    birds.gate(aliases=["production"])
    birds.refused(1)
    assert birds.move(1, "staging") == 1
    with birds.database.customer(birds.customer_id) as session:
        gates.remove(session, birds.id)
    assert birds.move(1) == 1
    with pytest.raises(NotFound), birds.database.customer(birds.customer_id) as session:
        gates.get(session, birds.id)


def test_a_gate_is_overridden_for_a_reason_that_the_history_keeps(birds: Gated) -> None:
    birds.gate()
    birds.check(1, 1.0)
    assert birds.move(1, override_reason="not needed") == 1
    assert birds.move(2, override_reason="the camera is new") == 2
    assert birds.reasons() == [None, "the camera is new"]


def test_a_rollback_goes_to_where_the_alias_has_been_whatever_the_gate_says(birds: Gated) -> None:
    for version in (1, 2):
        birds.move(version)
    birds.gate()
    birds.check(3, 1.0)
    birds.move(3)
    assert [birds.rollback(), birds.rollback(to_version=1), birds.rollback(to_version=1)] == [2, 1, 1]
    birds.refused(2)
    birds.move(3, "staging")
    with pytest.raises(Conflict, match="never was") as caught:
        birds.rollback("staging", to_version=2)
    assert caught.value.code == "alias_no_history"


def test_a_dataset_that_a_gate_uses_is_not_deleted(birds: Gated) -> None:
    birds.gate()
    with pytest.raises(Conflict, match="birds") as caught, birds.database.customer(birds.customer_id) as session:
        datasets.delete(session, birds.golden)
    assert caught.value.code == "dataset_in_use"
    with birds.database.customer(birds.customer_id) as session:
        gates.remove(session, birds.id)
        datasets.delete(session, birds.golden)


def test_versions_of_another_task_or_without_a_class_do_not_fit(birds: Gated) -> None:
    birds.gate()
    with birds.database.customer(birds.customer_id) as session:
        gate, dataset = gates.get(session, birds.id), datasets.version(session, birds.golden, 2)
        _, version = prompt_sets.resolve(session, "birds:1")
        gates.check_classes(gate, dataset, version, "single-label")
        for task, names, told in (
            ("multi-label", ["a", "b"], "is multi-label"),
            ("single-label", ["a", "c"], "lacks classes .*: 'b'"),
        ):
            version.class_names = names
            with pytest.raises(Conflict, match=told) as caught:
                gates.check_classes(gate, dataset, version, task)
            assert caught.value.code == "gate_mismatch"


def test_what_is_evaluated_and_gone_by_then_leaves_nothing(birds: Gated) -> None:
    job = birds.check(3, 1.0)
    with birds.database.customer(birds.customer_id) as session:
        prompt_sets.archive(session, "birds", 3)
        prompt_sets.delete_version(session, "birds", 3)
        evaluations.keep(session, job, {"birds:3": {"top1": 1.0}})
        assert session.scalar(text("SELECT count(*) FROM evaluations")) == 0
