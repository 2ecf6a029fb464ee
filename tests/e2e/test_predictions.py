"""Predictions through the running service: several prompt sets, thresholds, aliases under load, overload."""

from __future__ import annotations

import base64
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.prompt_sets import random_prompt_set
from bpt_core import images
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.dataset import MULTI_LABEL
from bpt_core.evaluate import Calibration
from bpt_core.methods import Depth
from bpt_core.predict import Predictor
from tests import archives
from tests.published import publish
from tests.service import Customer, Service

PICTURES = [archives.picture(label, 40 + label) for label in range(3)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(DEFAULT_BACKBONE)


@pytest.fixture(scope="module")
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture(scope="module")
def three(customer: Customer, backbone: Backbone) -> list[tuple[str, PromptSet]]:
    """A shallow and a deep prompt set and a linear probe, with different lengths and classes."""
    sets = [
        random_prompt_set(backbone, depth=depth, length=3 + seed, classes=2 + seed, seed=seed)
        for seed, depth in enumerate([Depth.SHALLOW, Depth.DEEP_TOP4, None])
    ]
    return [(publish(customer, prompt_set), prompt_set) for prompt_set in sets]


def predict(http: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    return http.post("/v1/predictions", json=body)


def encoded(*pictures: bytes) -> list[dict[str, Any]]:
    return [{"data": base64.b64encode(data).decode()} for data in pictures]


def test_images_meet_several_prompt_sets_in_one_request(
    customer: Customer, backbone: Backbone, three: list[tuple[str, PromptSet]]
) -> None:
    names = [name for name, _ in three]
    with customer.http() as http:
        form = {"prompt_sets": names, "top_k": "2", "return_features": "true"}
        reply = http.post("/v1/predictions", data=form, files=[("images", ("x.png", data)) for data in PICTURES])
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert [each["reference"] for each in answer["prompt_sets"]] == names
    assert [each["artifact_sha256"] for each in answer["prompt_sets"]] == [one.sha256 for _, one in three]
    assert sum(answer["timings"].values()) > 0
    predictor = Predictor(backbone)
    for data, image in zip(PICTURES, answer["data"], strict=True):
        assert [seen["prompt_set"] for seen in image["results"]] == [f"{name}:1" for name in names]
        expected = predictor.predict([images.canonical(data)] * 3, [prompt_set for _, prompt_set in three])
        for seen, one in zip(image["results"], expected, strict=True):
            assert [each["label"] for each in seen["predictions"]] == [label for label, _ in one.top(2)]
            scores = [each["score"] for each in seen["predictions"]]
            assert scores == pytest.approx([score for _, score in one.top(2)], abs=1e-5)
            np.testing.assert_allclose(seen["features"], one.features.numpy(), atol=1e-4)
            assert (seen["labels"], seen["unknown"]) == (list(one.labels()), False)


def test_each_image_may_name_prompt_sets_of_its_own(customer: Customer, three: list[tuple[str, PromptSet]]) -> None:
    first, second, third = (name for name, _ in three)
    given = encoded(*PICTURES[:2])
    given[0] |= {"name": "a.png", "prompt_sets": [f"{third}:1", first]}
    with customer.http() as http:
        one = predict(http, {"images": given, "prompt_sets": [second]}).json()["data"]
        alone = predict(http, {"images": encoded(PICTURES[0]), "prompt_sets": [first]}).json()["data"][0]
    assert [image["filename"] for image in one] == ["a.png", None]
    assert [[seen["prompt_set"] for seen in image["results"]] for image in one] == [
        [f"{third}:1", f"{first}:1"],
        [f"{second}:1"],
    ]
    mine, his = one[0]["results"][1]["predictions"], alone["results"][0]["predictions"]
    assert [each["score"] for each in mine] == pytest.approx([each["score"] for each in his], abs=1e-5)
    assert alone["results"][0]["features"] is None


def test_what_applies_follows_the_fitted_thresholds_or_that_of_the_request(
    customer: Customer, backbone: Backbone
) -> None:
    shy = publish(customer, random_prompt_set(backbone, classes=9, calibration=Calibration(100.0, 0.5)))
    several = random_prompt_set(
        backbone, classes=3, task=MULTI_LABEL, calibration=Calibration(1000.0, label_thresholds=(0.4, 0.6, 0.4))
    )
    tags = publish(customer, several)
    asked: dict[str, Any] = {"images": encoded(PICTURES[0]), "prompt_sets": [shy, tags]}
    with customer.http() as http:
        fitted = predict(http, asked).json()["data"][0]["results"]
        lower = predict(http, {**asked, "threshold": 0.01}).json()["data"][0]["results"]
    assert (fitted[0]["labels"], fitted[0]["unknown"]) == ([], True)
    assert sorted(fitted[1]["labels"]) == ["0-0", "0-2"]  # at this temperature every label is at 0.5
    assert lower[0]["labels"] == [lower[0]["predictions"][0]["label"]]
    assert sorted(lower[1]["labels"]) == ["0-0", "0-1", "0-2"]


def test_bodies_that_cannot_be_meant_are_refused(customer: Customer, three: list[tuple[str, PromptSet]]) -> None:
    name = three[0][0]
    good = encoded(PICTURES[0])
    cases: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"images": [{"data": "no base64!"}], "prompt_sets": [name]}, 422, "invalid_request", "images.0.data"),
        ({"images": good}, 422, "invalid_request", "prompt_sets"),
        ({"images": [], "prompt_sets": [name]}, 422, "invalid_request", "images"),
        ({"images": good, "prompt_sets": [name], "threshold": 1.5}, 422, "invalid_request", "threshold"),
        ({"images": good, "prompt_sets": [name], "top_k": 0}, 422, "invalid_request", "top_k"),
        ({"images": good, "prompt_sets": [name], "colour": "red"}, 422, "invalid_request", "colour"),
        ({"images": good, "prompt_sets": [name, "nobodys"]}, 404, "not_found", None),
        ({"images": good, "prompt_sets": [f"{name}:{at}" for at in range(1, 40)]}, 413, "payload_too_large", None),
        ({"images": good * 17, "prompt_sets": [name]}, 413, "payload_too_large", None),
    ]
    with customer.http() as http:
        for body, status, code, param in cases:
            reply = predict(http, body)
            assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
            assert param is None or reply.json()["param"] == param
        for content, kind, status in (
            (b"{", "application/json", 422),
            (b"\xff\xfe", "application/json", 422),
            (b"x" * 1_100_000, "application/json", 413),
            (b"prompt_sets=a", "application/x-www-form-urlencoded", 415),
            (b"", "", 415),
        ):
            headers = {"Content-Type": kind} if kind else {}
            assert http.post("/v1/predictions", content=content, headers=headers).status_code == status
        text = {"prompt_sets": (None, name), "images": (None, "not a file")}
        assert http.post("/v1/predictions", files=text).json()["param"] == "images"


def test_more_than_the_queue_takes_is_refused_for_now(customer: Customer, backbone: Backbone) -> None:
    name = publish(customer, *[random_prompt_set(backbone, depth=None, seed=seed) for seed in range(5)])
    references = [f"{name}:{version}" for version in range(1, 6)]
    with customer.http() as http:
        reply = predict(http, {"images": encoded(*[PICTURES[0]] * 16), "prompt_sets": references})
        assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
        assert int(reply.headers["Retry-After"]) > 0
        assert predict(http, {"images": encoded(PICTURES[0]), "prompt_sets": references}).status_code == 200


def test_while_an_alias_moves_each_reply_is_wholly_one_version_and_after_the_move_the_new_one(
    customer: Customer, backbone: Backbone
) -> None:
    """Versions differ in depth, length and number of classes; the classes are named after the version."""
    depths = [Depth.SHALLOW, Depth.DEEP, Depth.DEEP_TOP4, None]
    versions = [
        random_prompt_set(backbone, depth=depths[seed % 4], length=1 + seed, classes=1 + seed, seed=seed)
        for seed in range(1, 5)
    ]
    name = publish(customer, *versions)
    url, ended = f"/v1/prompt-sets/{name}/aliases/production", threading.Event()
    replies: list[dict[str, Any]] = []

    def keep_asking() -> None:
        with customer.http() as http:
            while not ended.is_set():
                body = {"images": encoded(*PICTURES), "prompt_sets": [f"{name}@production"], "top_k": 9}
                replies.append(predict(http, body).json())

    with customer.http() as http:
        http.put(url, json={"version": 1})
        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(24):
            version = 1 + turn % 4
            assert http.put(url, json={"version": version}).status_code == 200
            found = predict(http, {"images": encoded(PICTURES[0]), "prompt_sets": [f"{name}@production"]}).json()
            assert found["prompt_sets"][0]["version"] == version
        ended.set()
        for thread in threads:
            thread.join()
    assert {reply["prompt_sets"][0]["version"] for reply in replies} > {1}
    for reply in replies:
        (used,) = reply["prompt_sets"]
        version = used["version"]
        assert used["artifact_sha256"] == versions[version - 1].sha256
        for image in reply["data"]:
            (seen,) = image["results"]
            assert seen["prompt_set"] == f"{name}:{version}"
            assert {each["label"] for each in seen["predictions"]} == set(versions[version - 1].class_names)


def test_predictions_are_counted_per_prompt_set_and_in_sum(
    service: Service, customer: Customer, backbone: Backbone
) -> None:
    name = publish(customer, random_prompt_set(backbone, seed=99))
    with customer.http() as http:
        predict(http, {"images": encoded(*PICTURES, b"no image"), "prompt_sets": [name]})
        predict(http, {"images": encoded(PICTURES[0]), "prompt_sets": [name]})
        shown = http.get("/metrics").text
    labels = f'customer="{customer.id}",prompt_set="{name}"'
    assert f"bpt_predict_requests_total{{{labels}}} 2.0" in shown
    assert f'bpt_predict_images_total{{customer="{customer.id}",outcome="predicted",prompt_set="{name}"}} 4.0' in shown
    assert f'outcome="image_unsupported",prompt_set="{name}"}} 1.0' in shown
    for metric in (
        "bpt_predict_batch_rows_count",
        "bpt_predict_batch_seconds_count",
        'bpt_predict_seconds_count{stage="queue"}',
        "bpt_predict_waiting_rows 0.0",
        f'bpt_resident_prompt_sets{{backbone="{DEFAULT_BACKBONE}"}}',
        f'bpt_resident_lookups_total{{backbone="{DEFAULT_BACKBONE}",found="hit"}}',
    ):
        assert metric in shown
