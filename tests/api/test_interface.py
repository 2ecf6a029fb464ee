"""The interface's habits: OpenAPI, ids on every reply, pages, health, metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.problems import STATUS
from tests.service import Customer, Service

VERBS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def openapi(service: Service) -> dict[str, Any]:
    with service.client(None) as http:
        document: dict[str, Any] = http.get("/openapi.json").json()
    return document


@pytest.fixture(scope="module")
def customer(service: Service) -> Customer:
    return service.new_customer()


def operations(openapi: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(verb, path, item[verb]) for path, item in openapi["paths"].items() for verb in VERBS if verb in item]


def test_every_operation_has_a_summary_a_stable_id_and_its_errors(openapi: dict[str, Any]) -> None:
    found = operations(openapi)
    assert len(found) > 20
    identifiers = [operation["operationId"] for _, _, operation in found]
    assert len(set(identifiers)) == len(identifiers)
    for verb, path, operation in found:
        assert operation["summary"], (verb, path)
        if path.startswith("/v1"):
            assert {"401", "403", "422", "500", "503"} <= set(operation["responses"]), (verb, path)
        if "{" in path:
            assert "404" in operation["responses"], (verb, path)
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path.startswith("/v1"):
                assert list(response["content"]) == ["application/problem+json"], (verb, path, status)
                assert response["content"]["application/problem+json"]["examples"], (verb, path, status)


def test_every_reference_in_the_openapi_leads_somewhere(openapi: dict[str, Any]) -> None:
    text = json.dumps(openapi)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references
    assert references <= set(openapi["components"]["schemas"])


def test_stable_ids_are_the_ones_clients_know(openapi: dict[str, Any]) -> None:
    known = {operation["operationId"] for _, _, operation in operations(openapi)}
    assert {"createDataset", "createTuningJob", "cancelTuningJob", "listPromptSets", "createPredictions"} <= known
    assert {"createBatchPrediction", "cancelBatchPrediction", "downloadBatchPredictionResults"} <= known
    assert {"listPromptSetAliases", "movePromptSetAlias", "rollbackPromptSetAlias"} <= known


def test_every_code_has_a_sensible_status() -> None:
    assert all(400 <= status < 600 for status in STATUS.values())


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), ("x" * 65, False), ("with space", False), (None, False)]
)
def test_every_reply_carries_a_request_id(customer: Customer, given: str | None, kept: bool) -> None:
    with customer.http() as http:
        reply = http.get("/v1/datasets", headers={"X-Request-Id": given} if given else {})
    found = reply.headers["x-request-id"]
    assert (found == given) is kept
    assert found


def test_lists_come_in_pages_newest_first(service: Service) -> None:
    with service.client(service.admin_key) as admin:
        made = [service.new_customer().id for _ in range(3)]
        first = admin.get("/v1/customers", params={"limit": 2}).json()
        rest = admin.get("/v1/customers", params={"limit": 1, "after": first["next_cursor"]}).json()
    assert [item["id"] for item in first["data"]] == made[:0:-1]
    assert first["has_more"] is True
    assert [item["id"] for item in rest["data"]] == made[:1]


def test_the_catalogue_names_backbones_with_licence_and_methods_with_defaults(customer: Customer) -> None:
    with customer.http() as http:
        backbones = {item["name"]: item for item in http.get("/v1/backbones").json()["data"]}
        methods = {item["type"]: item for item in http.get("/v1/methods").json()["data"]}
    assert backbones["vit_tiny_patch8_64.mae"]["available"] is True
    assert backbones["vit_base_patch16_224.mae"]["available"] is False
    assert "NC" in backbones["vit_base_patch16_224.mae"]["licence"]
    assert set(methods) == {"linear-probe", "vpt", "spt", "bpt-fwhiten", "bpt-twhiten", "bpt-bilinear"}
    assert methods["linear-probe"]["depths"] == []
    assert methods["spt"]["depths"] == ["shallow", "deep", "deep-top4"]
    assert methods["spt"]["starts"] == ["random", "kmeans"]


def test_health_and_readiness(service: Service) -> None:
    with service.client(None) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ok"}


def test_metrics_count_requests_by_route_and_show_the_queues(service: Service, customer: Customer) -> None:
    with customer.http() as http:
        http.get("/v1/datasets/ds_" + "0" * 32)
        text = http.get("/metrics").text
    assert 'bpt_http_requests_total{method="GET",route="/v1/datasets/{dataset_id}",status="404"}' in text
    assert "# TYPE bpt_jobs gauge" in text


def test_logs_are_json_with_the_request_id_and_without_secrets(service: Service, customer: Customer) -> None:
    with customer.http() as http:
        http.get("/v1/datasets", headers={"X-Request-Id": "find-me-in-the-log"})
    lines = (service.data_dir / "logs" / "api.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    entry = next(entry for entry in entries if entry.get("request_id") == "find-me-in-the-log")
    assert (entry["request_id"], entry["path"], entry["status"]) == ("find-me-in-the-log", "/v1/datasets", 200)
    assert customer.key.split("_", 2)[2] not in "".join(lines)


def test_a_new_key_shows_its_token_once(service: Service, customer: Customer) -> None:
    with service.client(service.admin_key) as admin:
        listed = admin.get("/v1/api-keys", params={"customer": customer.id})
    assert [item["id"] for item in listed.json()["data"]] == [customer.key_id]
    assert listed.json()["data"][0]["token"] is None
    assert customer.key.split("_", 2)[2] not in listed.text


def test_an_administrators_key_opens_no_customers_data(service: Service) -> None:
    with service.client(service.admin_key) as admin:
        replies = [admin.get(path) for path in ("/v1/datasets", "/v1/tuning-jobs", "/v1/prompt-sets")]
    assert {reply.status_code for reply in replies} == {403}
