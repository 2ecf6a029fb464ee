"""Two prompt sets of a batch prediction, held against each other over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from bpt_core.results import Row, write_rows
from bpt_store import customers, ids, jobs
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.objects import Objects
from bpt_store.settings import Role, Settings

ANSWERS = [("owl", "owl", "owl"), ("owl", "owl", "crow"), ("owl", "crow", "owl"), ("crow", "crow", "owl")]
ASKED = {"a": "birds:1", "b": "birds:2"}
TOP1 = {"birds:1": {"top1": 0.75}, "birds:2": {"top1": 0.5}}  # quality:4 does not know the classes


def rows() -> Iterator[Row]:
    for image, (label, a, b) in enumerate(ANSWERS):
        for prompt_set, said in (("birds:1", a), ("quality:4", "sharp"), ("birds:2", b)):
            answer = {"predicted": [said], "unknown": False, "scores": [{"label": said, "score": 0.5}], "error": None}
            yield {"image": f"{image}.png", "split": "test", "labels": [label], "prompt_set": prompt_set, **answer}


@pytest.fixture
def http(settings: Settings, database: Database, customer_id: UUID) -> Iterator[TestClient]:
    with database.system() as session:
        token = customers.create_key(session, customer_id, "k", CUSTOMER_SCOPES)[1]
    with TestClient(create_app(settings.model_copy(update={"role": Role.API}))) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


@pytest.fixture
def objects(settings: Settings) -> Objects:
    return Objects(settings.objects_url)


@pytest.fixture
def predicted(database: Database, customer_id: UUID, objects: Objects, tmp_path: Path) -> Callable[..., str]:
    """predicted(): the path of the comparison of a batch prediction with results, or without any."""

    def make(*, is_done: bool = True, **result: Any) -> str:
        used = [{"name": name, "version": number} for name, number in (("birds", 1), ("quality", 4), ("birds", 2))]
        payload = {"prompt_sets": used, "split": None, "top_k": 1, "images": len(ANSWERS)}
        with database.customer(customer_id) as session:
            job = jobs.create(
                session,
                customer_id,
                JobKind.BATCH_PREDICT,
                dataset_id=uuid4(),
                dataset_version=1,
                payload=payload,
            )
        with database.system() as session:
            running = jobs.claim(session, JobKind.BATCH_PREDICT, "a worker", 30.0)
        assert running is not None
        write_rows(tmp_path / "results.parquet", iter([[*rows()]]))
        file = objects.put_file(f"{jobs.results_prefix(job.id)}1/results.parquet", tmp_path / "results.parquet")
        if is_done:
            with database.customer(customer_id) as session:
                told = {"metrics": TOP1, "files": {"parquet": file}, **result}
                jobs.succeed(session, jobs.fence_of(running), told)
        return f"/v1/batch-predictions/{ids.public(ids.JOB, job.id)}/comparison"

    return make


def test_two_prompt_sets_are_held_against_each_other(http: TestClient, predicted: Callable[..., str]) -> None:
    found = http.get(predicted(), params=ASKED).json()
    assert found == {
        **{"images": 4, "errors": 0, "lost": 2, "won": 1, "agreement": 0.25, "p_value": pytest.approx(1.0)},
        "a": {"prompt_set": "birds:1", "accuracy": 0.75, "calibration_error": 0.25},
        "b": {"prompt_set": "birds:2", "accuracy": 0.5, "calibration_error": 0.0},
        "classes": [
            {"name": "crow", "images": 1, "a": 1.0, "b": 0.0},
            {"name": "owl", "images": 3, "a": pytest.approx(2 / 3), "b": pytest.approx(2 / 3)},
        ],
    }


def test_the_images_that_flipped_are_listed_in_pages(http: TestClient, predicted: Callable[..., str]) -> None:
    path = predicted() + "/images"
    first = http.get(path, params={**ASKED, "limit": 2}).json()
    lost = {"image": "1.png", "flip": "lost", "labels": ["owl"], "a": ["owl"], "b": ["crow"]}
    assert (first["data"][0], first["data"][1]["image"], first["has_more"]) == (lost, "2.png", True)
    rest = http.get(path, params={**ASKED, "limit": 2, "after": first["next_cursor"]}).json()
    assert ([each["image"] for each in rest["data"]], rest["has_more"], rest["next_cursor"]) == (["3.png"], False, None)
    won = http.get(path, params={**ASKED, "flip": "won"}).json()
    assert [each["image"] for each in won["data"]] == ["2.png"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"a": "birds:1"}, 422, "invalid_request"),
        ({**ASKED, "b": "birds:1"}, 422, "invalid_request"),
        ({**ASKED, "b": "birds:3"}, 404, "not_found"),
        ({**ASKED, "b": "birds"}, 404, "not_found"),
        ({**ASKED, "b": "quality:4"}, 409, "comparison_mismatch"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    http: TestClient, predicted: Callable[..., str], asked: dict[str, str], status: int, code: str
) -> None:
    path = predicted()
    for each in (path, f"{path}/images"):
        reply = http.get(each, params=asked)
        assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_there_is_nothing_to_compare_before_the_end_of_the_job_or_for_others(
    http: TestClient, predicted: Callable[..., str], database: Database
) -> None:
    path = predicted(is_done=False)
    assert http.get(path, params=ASKED).json()["code"] == "job_unfinished"
    assert http.get(f"{path}/images", params={**ASKED, "after": "x"}).status_code == 409
    done = predicted()
    assert http.get(f"{done}/images", params={**ASKED, "after": "x"}).status_code == 404
    with database.system() as session:
        other = customers.create(session, "other").id
        token = customers.create_key(session, other, "k", CUSTOMER_SCOPES)[1]
    reply = http.get(done, params=ASKED, headers={"Authorization": f"Bearer {token}"})
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


def test_results_that_are_gone_are_not_found(http: TestClient, predicted: Callable[..., str], objects: Objects) -> None:
    path = predicted()
    objects.delete("batch-predictions/")
    assert http.get(path, params=ASKED).json()["code"] == "not_found"
