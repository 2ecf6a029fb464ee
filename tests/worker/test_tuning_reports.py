"""The report of a tuning job, from the trainer's hands into the job's row."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from bpt_core.dataset import PackedDataset, Split
from bpt_core.items import Items
from bpt_core.review import unavailable
from bpt_core.tuning import Tuned
from bpt_store import jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import LeaseLost
from bpt_store.models import Job, JobKind
from worker import trainer
from worker.context import Worker
from worker.tune import Tune

IDS = {Split.TRAIN: ["itm_a", "itm_b"], Split.VAL: ["itm_c"], Split.TEST: []}
PLACES = [{"split": "train", "position": 1, "path": "b.png"}, {"split": "val", "position": 0, "path": "c.png"}]
REPORT: dict[str, Any] = {**unavailable(), "error": None, "hardest": PLACES}
REPORT["label_errors"] = {"total": 9, "items": PLACES}


class Index:
    """Stands for the index of a dataset."""

    def __len__(self) -> int:
        return sum(map(len, IDS.values()))

    def ids(self, split: Split) -> list[str]:
        return IDS[split]


def report_of(index: Path | None, *, images: int = 3, failure: str | None = None) -> tuple[dict[str, Any], str | None]:
    tuned, dataset = SimpleNamespace(report=REPORT, report_failure=failure), range(images)
    return trainer._report(cast(Tuned, tuned), cast(PackedDataset, dataset), index)


def test_places_become_items(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Items, "read", lambda _: Index())
    report, failure = report_of(tmp_path / "items.parquet")
    named = [{"item": "itm_b", "split": "train", "path": "b.png"}, {"item": "itm_c", "split": "val", "path": "c.png"}]
    assert failure is None
    assert report == {**REPORT, "label_errors": {"total": 9, "items": named}, "hardest": named}
    assert report_of(tmp_path / "items.parquet", failure="a bug")[1] == "a bug"


def test_without_an_index_items_are_null() -> None:
    report, failure = report_of(None)
    assert failure is None
    assert [each["item"] for each in (*report["hardest"], *report["label_errors"]["items"])] == [None] * 4


def test_an_index_that_cannot_be_used_costs_the_ids_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, failure = report_of(tmp_path / "missing.parquet")
    assert [each["item"] for each in report["hardest"]] == [None, None]
    assert "cannot be read" in str(failure)
    monkeypatch.setattr(Items, "read", lambda _: Index())
    report, failure = report_of(tmp_path / "items.parquet", images=4)
    assert [each["item"] for each in report["hardest"]] == [None, None]
    assert "3 items, but 4" in str(failure)


@pytest.fixture
def claimed(database: Database, customer_id: UUID) -> Job:
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "flowers")
        payload = {"backbone": "vit_tiny_patch8_64.mae", "prompt_set": "flowers"}
        jobs.create(
            session,
            customer_id,
            JobKind.TUNE,
            dataset_id=uuid4(),
            dataset_version=1,
            prompt_set_id=prompt_set.id,
            payload=payload,
        )
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
    assert job is not None
    return job


def done(directory: Path, failure: str | None = None) -> dict[str, Any]:
    """What a trainer says at its end."""
    (directory / "artifact").write_bytes(b"artifact")
    return {
        "artifact": "artifact",
        "backbone_fingerprint": "f",
        "class_names": ["a", "b"],
        "recipe": {"method": "linear-probe"},
        "metrics": {"best_epoch": 1, "val": {}, "test": None, "trials": []},
        "report": REPORT,
        "report_failure": failure,
        "stopped_by": None,
    }


def test_the_report_is_kept_in_the_transaction_that_publishes(
    database: Database, claimed: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finish = Tune().publish(cast(Worker, None), claimed, tmp_path, done(tmp_path))
    with database.customer(claimed.customer_id) as session:
        finish(session)
    assert not caplog.records
    with database.customer(claimed.customer_id) as session:
        assert jobs.get(session, claimed.id, JobKind.TUNE).report == REPORT
    with pytest.raises(LeaseLost), database.customer(claimed.customer_id) as session:
        jobs.keep_report(session, jobs.fence_of(claimed), {})


def test_a_report_that_failed_is_published_and_logged(
    database: Database, claimed: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        finish = Tune().publish(cast(Worker, None), claimed, tmp_path, done(tmp_path, "Traceback: a bug"))
    with database.customer(claimed.customer_id) as session:
        finish(session)
    (record,) = caplog.records
    assert vars(record)["reason"] == "Traceback: a bug"
    with database.customer(claimed.customer_id) as session:
        assert jobs.get(session, claimed.id, JobKind.TUNE).state.is_terminal
