"""Rate limits over HTTP: what replies tell, what is refused, and what costs nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import SecretStr

from api.app import create_app
from bpt_core import artifact
from bpt_core.artifact import PromptSet
from bpt_store import customers, ids, prompt_sets
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Role, Settings
from tests.published import probe
from tests.service import eventually

PATH = "/v1/datasets"
POLICY = re.compile(r'"requests";q=(\d+);w=60')
STANDING = re.compile(r'"requests";r=(\d+);t=(\d+)')
ZIP = {"Content-Type": "application/zip"}
Open = Callable[..., TestClient]


def _png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PNG = _png()


@pytest.fixture
def replica(settings: Settings, database: Database, customer_id: UUID) -> Iterator[Open]:
    """replica(**rates): another API process of the same service, asked with a key of the customer's."""
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)
    opened: list[TestClient] = []

    def make(**changed: Any) -> TestClient:
        calm = {"role": Role.API, "rate_limit_patience_seconds": 30}  # however busy the machine is
        app = create_app(settings.model_copy(update={**calm, **changed}))
        opened.append(TestClient(app, headers={"Authorization": f"Bearer {token}"}).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__()


def publish(database: Database, customer_id: UUID, *versions: PromptSet) -> None:
    """The prompt set `p` with these versions."""
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "p")
        for version in versions:
            publication = Publication(
                artifact=artifact.to_bytes(version),
                backbone=version.backbone,
                backbone_fingerprint=version.backbone_fingerprint,
                class_names=[*version.class_names],
                recipe={},
                parameters=0,
                metrics={},
            )
            prompt_sets.publish(session, prompt_set.id, publication, job_id=None, dataset_id=None)


def change(database: Database, customer_id: UUID, **rates: int | None) -> None:
    with database.system() as session:
        customers.change(session, customer_id, rates)


def remaining(reply: Any) -> int:
    found = STANDING.fullmatch(reply.headers["RateLimit"])
    assert found is not None, reply.headers["RateLimit"]
    policy = POLICY.fullmatch(reply.headers["RateLimit-Policy"])
    assert policy is not None, reply.headers["RateLimit-Policy"]
    used = int(policy[1]) - int(found[1])
    assert (used - 1) * 60 / int(policy[1]) <= int(found[2]) <= used * 60 / int(policy[1])
    return int(found[1])


def test_every_reply_to_a_customer_tells_the_limit_and_what_is_left(replica: Open) -> None:
    client = replica(requests_per_minute=6)
    for number, (path, status) in enumerate([(PATH, 200), (f"{PATH}/ds_nothing", 404), (f"{PATH}?limit=0", 422)]):
        reply = client.get(path)
        assert reply.status_code == status
        assert reply.headers["RateLimit-Policy"] == '"requests";q=6;w=60'
        assert remaining(reply) == 5 - number


def test_two_replicas_share_one_limit(replica: Open) -> None:
    one, other = replica(requests_per_minute=3), replica(requests_per_minute=3)
    assert [client.get(PATH).status_code for client in (one, other, one, other, one)] == [200, 200, 200, 429, 429]


def test_over_the_limit_is_429_and_says_which_one_and_when(replica: Open) -> None:
    client = replica(requests_per_minute=2)
    assert [client.get(PATH).status_code for _ in range(2)] == [200, 200]
    reply = client.get(PATH)
    assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited")
    assert reply.headers["Content-Type"] == "application/problem+json"
    seconds = int(reply.headers["Retry-After"])
    assert 20 < seconds <= 30  # one of the two has leaked then; requests may be slow
    assert reply.json()["detail"] == f"at most 2 requests per minute, 0 are left; try again in {seconds} seconds"
    assert (reply.headers["RateLimit-Policy"], remaining(reply)) == ('"requests";q=2;w=60', 0)
    protocol = client.get("/v2/models/birds")
    seconds = int(protocol.headers["Retry-After"])
    assert (protocol.status_code, 20 < seconds <= 30) == (429, True)
    assert protocol.json()["error"] == f"at most 2 requests per minute, 0 are left; try again in {seconds} seconds"


def test_a_limit_of_the_customers_own_holds_from_the_next_request_on(
    replica: Open, database: Database, customer_id: UUID
) -> None:
    client = replica(requests_per_minute=1)
    assert [client.get(PATH).status_code for _ in range(2)] == [200, 429]
    change(database, customer_id, requests_per_minute=2)  # of which one leaks in half a minute, and not meanwhile
    assert client.get(PATH).headers["RateLimit-Policy"] == '"requests";q=2;w=60'
    change(database, customer_id, requests_per_minute=0)
    unlimited = client.get(PATH)
    assert (unlimited.status_code, "RateLimit" in unlimited.headers) == (200, False)
    change(database, customer_id, requests_per_minute=None)
    assert client.get(PATH).status_code == 429


def test_administrators_health_and_strangers_are_not_counted(
    replica: Open, database: Database, customer_id: UUID
) -> None:
    client = replica(requests_per_minute=1)
    with database.system() as session:
        _, token = customers.create_key(session, None, "administrator", [Scope.ADMIN])
    administrator = {"Authorization": f"Bearer {token}"}
    for _ in range(3):
        shown = client.get(f"/v1/customers/{ids.public(ids.CUSTOMER, customer_id)}", headers=administrator)
        for reply in (shown, client.get("/healthz"), client.get("/readyz"), client.get("/metrics")):
            assert (reply.status_code, "RateLimit" in reply.headers) == (200, False)
        stranger = client.get(PATH, headers={"Authorization": "Bearer bpt_nonsense"})
        assert (stranger.status_code, "RateLimit" in stranger.headers) == (401, False)
    assert [client.get(PATH).status_code for _ in range(2)] == [200, 429]


def test_bytes_of_uploads_are_limited_by_what_is_announced_and_a_refusal_leaves_nothing(
    replica: Open, tmp_path: Path
) -> None:
    client = replica(upload_bytes_per_day=1000)

    def send(content: Any) -> Any:
        return client.post(PATH, params={"name": "d"}, content=content, headers=ZIP)

    assert send(bytes(600)).status_code == 201
    reply = send(bytes(401))
    assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited")
    assert '"upload-bytes";q=1000;qu="content-bytes";w=86400' in reply.headers["RateLimit-Policy"]
    left, until = re.findall(r'"upload-bytes";r=(\d+);t=(\d+)', reply.headers["RateLimit"])[0]
    assert (int(left), 51780 < int(until) <= 51840) == (400, True)
    assert len(client.get(PATH).json()["data"]) == 1
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1
    assert send(iter([bytes(300), bytes(200)])).status_code == 429  # of a length that nobody knew
    assert len(client.get(PATH).json()["data"]) == 1
    assert send(bytes(399)).status_code == 201


def test_parts_and_artifacts_are_bytes_of_uploads_too_and_a_part_that_is_there_costs_nothing(replica: Open) -> None:
    client = replica(upload_bytes_per_day=1000)
    upload = client.post("/v1/uploads", json={"name": "d", "media_type": "application/zip", "part_bytes": 5 << 20})
    part = f"/v1/uploads/{upload.json()['id']}/parts/1"
    content = bytes(600)
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    for _ in range(3):
        assert client.put(part, content=content, headers={"Content-Digest": f"sha-256=:{digest}:"}).status_code == 200
    artifact = {"Content-Type": "application/vnd.safetensors"}
    assert client.post("/v1/prompt-sets/p/versions", content=bytes(401), headers=artifact).status_code == 429
    assert client.post("/v1/prompt-sets/p/versions", content=bytes(400), headers=artifact).status_code == 422


def test_images_are_limited_as_the_engine_counts_them_and_what_is_refused_costs_none(
    replica: Open, database: Database, customer_id: UUID
) -> None:
    client = replica(role=Role.ALL, images_per_minute=6, predict_queue_rows=4)
    eventually(lambda: client.get("/readyz").status_code == 200)
    publish(database, customer_id, probe(), probe(head_bias=torch.ones(2)))

    def predict(images: int, *prompt_sets: str) -> Any:
        body = {"prompt_sets": prompt_sets, "images": [{"data": PNG}] * images}
        return client.post("/v1/predictions", json=body)

    assert predict(5, "p:1").status_code == 503
    reply = predict(2, "p:1", "p:2")
    assert reply.status_code == 200, reply.text
    assert reply.headers["RateLimit-Policy"].endswith(', "images";q=6;qu="images";w=60')
    assert reply.headers["RateLimit"].endswith(', "images";r=2;t=40')
    for refused, status in ((predict(3, "p:1"), 429), (predict(9, "nothing"), 404)):
        assert refused.status_code == status, refused.text
    infer = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [3, 2, 2, 3], "data": [0] * 36}]}
    inferred = client.post("/v2/models/p/infer", json=infer)
    assert inferred.status_code == 429, inferred.text
    assert predict(2, "p:1").status_code == 200
    assert predict(1, "p:1").json()["detail"].startswith("at most 6 images per minute, 0 are left")


def test_without_redis_everything_passes_and_a_metric_tells(replica: Open) -> None:
    client = replica(requests_per_minute=1, redis_url=SecretStr("redis+socket:///nowhere/redis.sock"))
    for _ in range(3):
        reply = client.get(PATH)
        assert (reply.status_code, "RateLimit" in reply.headers) == (200, False)
    assert 'bpt_rate_limit_unchecked_total{limit="requests"} 3.0' in client.get("/metrics").text


def test_refusals_are_counted_by_the_limit(replica: Open) -> None:
    client = replica(requests_per_minute=1)
    for _ in range(3):
        client.get(PATH)
    assert 'bpt_rate_limited_total{limit="requests"} 2.0' in client.get("/metrics").text


def test_the_openapi_declares_the_refusal_and_the_headers_wherever_a_key_is_asked_for(replica: Open) -> None:
    document = replica().get("/openapi.json").json()
    operations = [each for item in document["paths"].values() for each in item.values()]
    asking = [each for each in operations if "security" in each]
    assert len(asking) > 60
    for operation in asking:
        assert "429" in operation["responses"], operation["operationId"]
        for response in operation["responses"].values():
            assert {"RateLimit", "RateLimit-Policy"} <= response["headers"].keys(), operation["operationId"]
    for operation in operations:
        if operation not in asking:
            assert "429" not in operation["responses"]
