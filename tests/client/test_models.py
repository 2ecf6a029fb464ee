"""JSON to dataclasses: forgiving about what is new, strict about what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bpt_client.errors import UnexpectedAnswer
from bpt_client.models import ApiKey, Dataset, JobEvent, Prediction, TuningJob, parse

DATASET: dict[str, Any] = {
    "id": "ds_1",
    "name": "flowers",
    "state": "ready",
    "class_names": ["daisy", "lily"],
    "source": {"sha256": "ab", "bytes": 3},
    "counts": {"daisy": {"train": 3, "val": 1, "test": 0}, "lily": {"train": 4, "val": 1, "test": 0}},
    "splits": {"train": 7, "val": 2, "test": 0},
    "image_count": 9,
    "version": 3,
    "verdict": "good to tune",
    "error": None,
    "metadata": {},
    "created_at": "2026-01-02T03:04:05Z",
}
EVALUATION = {"images": 20, "loss": 1, "top1": 0.5, "top5": 1, "per_class": {"daisy": 0.5, "lily": None}}
JOB: dict[str, Any] = {
    "id": "job_1",
    "state": "succeeded",
    "dataset": "ds_1",
    "prompt_set": "flowers",
    "backbone": "vit",
    "method": {"type": "bpt-bilinear", "depth": "shallow", "prompts": 32, "rank": 24},
    "hyperparameters": {"epochs": 3},
    "created_at": "2026-01-02T03:04:05Z",
    "progress": {"type": "epoch", "epoch": 3, "epochs": 3, "train_loss": 0.5, "val_accuracy": 1},
    "result": {
        **{"prompt_set": "flowers", "version": 2, "best_epoch": 3, "val": EVALUATION, "test": None},
        **{"artifact_sha256": "ab", "artifact_bytes": 3},
    },
}


def test_unknown_fields_are_ignored_at_every_depth() -> None:
    newer = {**DATASET, "colour": "red", "source": {**DATASET["source"], "format": "zip"}}
    assert parse(Dataset, newer) == parse(Dataset, DATASET)


def test_a_dataset_counts_its_images() -> None:
    dataset = parse(Dataset, DATASET)
    assert (dataset.images(), dataset.images("train"), dataset.images("test")) == (9, 7, 0)
    assert (dataset.version, dataset.verdict) == (3, "good to tune")
    assert dataset.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    nothing_yet = dict.fromkeys(("task", "counts", "splits", "image_count", "verdict", "source"))
    assert parse(Dataset, {**DATASET, **nothing_yet, "state": "validating"}).images("train") == 0


def test_a_job_is_parsed_down_to_its_metrics() -> None:
    job = parse(TuningJob, JOB)
    assert job.is_terminal
    assert job.result is not None
    assert job.result.test is None
    assert job.result.val.per_class == {"daisy": 0.5, "lily": None}
    assert isinstance(job.result.val.top5, float)
    assert job.progress is not None
    assert job.progress.val_loss is None


def test_a_state_of_a_newer_service_is_not_taken_for_an_end() -> None:
    assert not parse(TuningJob, {**JOB, "state": "paused"}).is_terminal


def test_an_event_tells_what_it_is() -> None:
    event = {"number": 4, "attempt": 1, "created_at": "2026-01-02T03:04:05.678901+00:00"}
    ended = parse(JobEvent, {**event, "type": "state", "data": {"state": "failed"}})
    assert (ended.state, ended.progress, ended.is_last) == ("failed", None, True)
    epoch = parse(JobEvent, {**event, "type": "epoch", "data": {"epoch": 1, "epochs": 3}})
    assert epoch.progress is not None
    assert (epoch.state, epoch.progress.epoch, epoch.is_last) == (None, 1, False)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("name", None, r"Dataset\.name: expected str"),
        ("name", 3, r"Dataset\.name"),
        ("class_names", ["daisy", 1], r"Dataset\.class_names\[1\]"),
        ("counts", {"daisy": {"train": True}}, r"Dataset\.counts\.daisy\.train"),
        ("source", [], r"Dataset\.source: expected dict"),
        ("created_at", "yesterday", r"Dataset\.created_at: not a time"),
    ],
)
def test_a_field_that_does_not_fit_is_named(field: str, value: object, told: str) -> None:
    with pytest.raises(UnexpectedAnswer, match=told):
        parse(Dataset, {**DATASET, field: value})


def test_a_missing_field_without_a_default_is_named() -> None:
    with pytest.raises(UnexpectedAnswer, match=r"Prediction\.prompt_set"):
        parse(Prediction, {"data": []})


def test_the_secret_of_a_key_is_not_in_its_repr() -> None:
    times = {"created_at": "2026-01-02T03:04:05Z", "expires_at": None, "revoked_at": None}
    key = parse(ApiKey, {"id": "key_1", "customer": None, "name": "k", "scopes": [], "token": "bpt_1_secret", **times})
    assert key.token == "bpt_1_secret"
    assert "secret" not in repr(key)
