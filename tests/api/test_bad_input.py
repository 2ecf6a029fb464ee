"""Bad input gets a clear error and leaves nothing behind; every test looks at what is left."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.prompt_sets import random_prompt_set
from bpt_core import artifact
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from tests import archives
from tests.published import publish
from tests.service import Customer, Service, eventually

ZIP = {"Content-Type": "application/zip"}
TABLES = (
    *("datasets", "dataset_versions", "uploads", "upload_parts", "jobs", "job_events"),
    *("prompt_sets", "prompt_set_versions", "prompt_set_aliases", "alias_moves"),
)


def rows_of(customer: Customer) -> dict[str, int]:
    return {
        table: customer.service.rows(
            f"SELECT count(*) FROM {table} WHERE customer_id = :customer", customer=customer.uuid
        )[0][0]
        for table in TABLES
    }


NOTHING = dict.fromkeys(TABLES, 0)


@pytest.fixture
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture
def http(customer: Customer) -> Iterator[httpx.Client]:
    with customer.http() as http:
        yield http


def assert_problem(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = reply.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == reply.headers["x-request-id"]
    assert body["detail"]
    return body


def assert_no_objects(service: Service, before: list[str]) -> None:
    """The sweep deletes what was given up; other tests run in between on datasets of their own."""
    eventually(lambda: set(service.objects()) <= set(before) or None, seconds=20, what="deletion of objects")


# --- uploads: nothing is left ---


@pytest.mark.parametrize("key", [None, "", "nonsense", "bpt_" + "0" * 32 + "_" + "x" * 43])
def test_no_or_a_wrong_key_is_401(service: Service, key: str | None) -> None:
    before = service.rows("SELECT count(*) FROM datasets")
    with service.client(key) as http:
        reply = http.post("/v1/datasets", params={"name": "d"}, content=archives.flowers(), headers=ZIP)
    assert_problem(reply, 401, "unauthenticated")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert service.rows("SELECT count(*) FROM datasets") == before


def test_a_revoked_key_is_401_at_once(service: Service, customer: Customer, http: httpx.Client) -> None:
    assert http.get("/v1/datasets").status_code == 200
    with service.client(service.admin_key) as admin:
        assert admin.post(f"/v1/api-keys/{customer.key_id}/revoke").json()["revoked_at"]
    assert_problem(http.get("/v1/datasets"), 401, "unauthenticated")


def test_a_missing_scope_is_403_and_leaves_nothing(service: Service) -> None:
    reader = service.new_customer(scopes=["datasets:read"])
    with reader.http() as http:
        assert http.get("/v1/datasets").status_code == 200
        reply = http.post("/v1/datasets", params={"name": "d"}, content=archives.flowers(), headers=ZIP)
        assert_problem(reply, 403, "insufficient_scope")
        assert_problem(http.post("/v1/customers", json={"name": "mine"}), 403, "insufficient_scope")
    assert rows_of(reader) == NOTHING


def test_an_announced_body_over_the_cap_is_413_and_not_read(service: Service, customer: Customer) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/datasets?name=d HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\n"
            b"Authorization: Bearer " + customer.key.encode() + b"\r\nContent-Length: 99000000000\r\n\r\n"
        )
        answer = connection.recv(65536)
    assert b" 413 " in answer.splitlines()[0]
    assert rows_of(customer) == NOTHING


def test_a_chunked_body_that_crosses_the_cap_is_413_and_leaves_nothing(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    before = service.objects()

    def body() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(1_000_000)

    reply = http.post("/v1/datasets", params={"name": "d"}, content=body(), headers=ZIP)
    assert_problem(reply, 413, "payload_too_large")
    assert rows_of(customer) == NOTHING
    assert_no_objects(service, before)


def begin_upload(service: Service, customer: Customer) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(
        b"POST /v1/datasets?name=d HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\n"
        b"Authorization: Bearer " + customer.key.encode() + b"\r\nContent-Length: 1000\r\n\r\nPK"
    )
    return connection


def test_a_body_that_trickles_is_408_and_leaves_nothing(service: Service, customer: Customer) -> None:
    before = service.objects()
    with begin_upload(service, customer) as connection:
        answer = connection.recv(65536)
    assert b" 408 " in answer.splitlines()[0]
    assert rows_of(customer) == NOTHING
    assert_no_objects(service, before)


def test_a_client_that_goes_away_leaves_nothing(service: Service, customer: Customer) -> None:
    before = service.objects()
    with begin_upload(service, customer):
        eventually(lambda: rows_of(customer)["uploads"] == 1 or None, what="the upload's row")
    eventually(lambda: rows_of(customer) == NOTHING or None, what="the end of the upload's row")
    assert_no_objects(service, before)


def test_a_wrong_digest_is_422_and_leaves_nothing(service: Service, customer: Customer, http: httpx.Client) -> None:
    before = service.objects()
    digest = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()
    for header in (f"sha-256=:{digest}:", "sha-256=:%%%:"):
        reply = http.post(
            "/v1/datasets",
            params={"name": "d"},
            content=archives.flowers(),
            headers={**ZIP, "Content-Digest": header},
        )
        assert_problem(reply, 422, "checksum_mismatch")
    assert rows_of(customer) == NOTHING
    assert_no_objects(service, before)


def test_a_right_digest_is_accepted(http: httpx.Client) -> None:
    data = archives.flowers()
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    reply = http.post(
        "/v1/datasets", params={"name": "d"}, content=data, headers={**ZIP, "Content-Digest": f"sha-256=:{digest}:"}
    )
    assert reply.status_code == 201


def test_another_content_type_is_415(customer: Customer, http: httpx.Client) -> None:
    reply = http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers={"Content-Type": "text/plain"})
    assert_problem(reply, 415, "unsupported_media_type")
    assert rows_of(customer) == NOTHING


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00b", "a\nb"])
def test_a_name_that_is_none_is_422(customer: Customer, http: httpx.Client, name: str) -> None:
    reply = http.post("/v1/datasets", params={"name": name}, content=archives.flowers(), headers=ZIP)
    assert_problem(reply, 422, "invalid_request")
    assert rows_of(customer) == NOTHING


# --- archives: the dataset fails with a report, its objects go away ---


@pytest.mark.parametrize(
    ("archive", "code", "named"),
    [
        (b"", "archive_invalid", None),
        (b"this is no zip at all", "archive_invalid", None),
        (archives.zipped({}), "dataset_empty", None),
        (archives.zipped({"README.txt": b"hello"}), "dataset_empty", None),
        (archives.pictures("only/1.jpg", "only/2.jpg"), "too_few_classes", None),
        (archives.pictures("../up/1.jpg", "b/1.jpg"), "entry_path_unsafe", "../up"),
        (archives.pictures("/etc/1.jpg", "b/1.jpg"), "entry_path_unsafe", "/etc"),
        (archives.with_symlink(), "entry_type_forbidden", "a/link.jpg"),
        (archives.bomb(), "archive_bomb", None),
        (archives.with_corrupt_images(good=10, bad=3), "too_many_bad_images", "a/bad0.jpg"),
    ],
    ids=["empty body", "not a zip", "no entries", "text", "one class", "up", "absolute", "link", "bomb", "corrupt"],
)
def test_a_bad_archive_fails_its_dataset_with_a_report_and_leaves_no_object(
    service: Service, customer: Customer, http: httpx.Client, archive: bytes, code: str, named: str | None
) -> None:
    dataset = customer.upload(archive)
    assert (dataset["state"], dataset["error"]["code"]) == ("failed", code)
    report = http.get(f"/v1/datasets/{dataset['id']}/report").json()
    if named is not None:
        assert any(named in item["entry"] for item in report["rejected"]["items"]), report
    own = dataset["id"].removeprefix("ds_")
    eventually(lambda: not [key for key in service.objects() if own in key] or None, what="deletion of objects")
    body = {"dataset": dataset["id"], "prompt_set": "p"}
    assert_problem(http.post("/v1/tuning-jobs", json=body), 409, "dataset_not_ready")
    assert rows_of(customer)["prompt_sets"] == 0
    assert http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert_problem(http.get(f"/v1/datasets/{dataset['id']}"), 404, "not_found")


def test_a_few_bad_images_are_left_out_and_reported(customer: Customer, http: httpx.Client) -> None:
    dataset = customer.upload(archives.with_corrupt_images(good=60, bad=2))
    assert dataset["state"] == "ready"
    report = http.get(f"/v1/datasets/{dataset['id']}/report").json()
    assert sorted(item["entry"] for item in report["rejected"]["items"]) == ["a/bad0.jpg", "a/bad1.jpg"]
    assert {item["code"] for item in report["rejected"]["items"]} == {"image_corrupt"}


# --- tuning jobs ---


@pytest.fixture(scope="module")
def ready(service: Service) -> tuple[Customer, dict[str, Any]]:
    owner = service.new_customer()
    return owner, owner.upload(archives.flowers())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"surprise": 1}, "invalid_request"),
        ({"hyperparameters": {"lr": 1}}, "invalid_request"),
        ({"method": {"type": "magic"}}, "invalid_request"),
        ({"method": {"type": "linear-probe", "prompts": 3}}, "invalid_setting"),
        ({"method": {"prompts": 0}}, "invalid_setting"),
        ({"method": {"rank": 10**9}}, "invalid_setting"),
        ({"method": {"type": "linear-probe", "depth": "deep"}}, "invalid_setting"),
        ({"method": {"type": "vpt", "rank": 4}}, "invalid_setting"),
        ({"method": {"type": "vpt", "rank": "auto"}}, "invalid_setting"),
        ({"method": {"type": "linear-probe", "depth": "auto"}}, "invalid_setting"),
        ({"method": {"type": "bpt-bilinear", "start": "kmeans"}}, "invalid_setting"),
        ({"method": {"start": "whitened", "rank": 193}}, "invalid_setting"),
        ({"method": {"pooling": "max"}}, "invalid_request"),
        ({"hyperparameters": {"epochs": "auto"}}, "invalid_request"),
        ({"hyperparameters": {"learning_rate": "auto"}, "trials": 1}, "invalid_setting"),
        ({"hyperparameters": {"learning_rate": "auto"}, "trials": 0}, "invalid_setting"),
        ({"trials": 4}, "invalid_setting"),
        ({"hyperparameters": {"label_smoothing": 1}}, "invalid_setting"),
        ({"hyperparameters": {"epochs": 0}}, "invalid_setting"),
        ({"hyperparameters": {"learning_rate": -1}}, "invalid_request"),
        ({"backbone": "vit_unheard_of"}, "backbone_unknown"),
        ({"backbone": "vit_base_patch16_224.mae"}, "backbone_noncommercial"),
        ({"prompt_set": "No Such Name!"}, "invalid_request"),
        ({"seed": -1}, "invalid_request"),
        ({"metadata": {"k": "v" * 513}}, "invalid_request"),
        ({"metadata": {"k": "nul\u0000"}}, "invalid_request"),
        ({"metadata": {str(i): "" for i in range(17)}}, "invalid_request"),
    ],
)
def test_a_request_that_cannot_work_is_422_and_leaves_nothing(
    ready: tuple[Customer, dict[str, Any]], change: dict[str, Any], code: str
) -> None:
    owner, dataset = ready
    before = rows_of(owner)
    with owner.http() as http:
        reply = http.post("/v1/tuning-jobs", json={"dataset": dataset["id"], "prompt_set": "p", **change})
        dry = http.post(
            "/v1/tuning-jobs", json={"dataset": dataset["id"], "prompt_set": "p", **change, "dry_run": True}
        )
    assert_problem(reply, 422, code)
    assert_problem(dry, 422, code)
    assert rows_of(owner) == before


@pytest.mark.parametrize(
    "body",
    [
        b'{"dataset": "\xff"}',
        b'{"dataset": NaN, ',
        b"[" * 100_000,
        b'{"hyperparameters": {"learning_rate": NaN}, "dataset": "ds_x", "prompt_set": "p"}',
        b'{"hyperparameters": {"learning_rate": 1e999}, "dataset": "ds_x", "prompt_set": "p"}',
    ],
    ids=["bad UTF-8", "not JSON", "deep", "NaN", "infinity"],
)
def test_a_body_that_is_no_good_json_is_422(customer: Customer, http: httpx.Client, body: bytes) -> None:
    reply = http.post("/v1/tuning-jobs", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert rows_of(customer) == NOTHING


def test_a_json_body_over_a_megabyte_is_413(http: httpx.Client) -> None:
    body = b'{"prompt_set": "' + b"x" * 2_000_000 + b'"}'
    reply = http.post("/v1/tuning-jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(reply, 413, "payload_too_large")


def test_somebody_elses_things_are_404_and_unchanged(
    service: Service, ready: tuple[Customer, dict[str, Any]], customer: Customer, http: httpx.Client
) -> None:
    owner, dataset = ready
    job = owner.tune(dataset, "theirs")
    for request in (
        http.build_request("GET", f"/v1/datasets/{dataset['id']}"),
        http.build_request("GET", f"/v1/datasets/{dataset['id']}/report"),
        http.build_request("DELETE", f"/v1/datasets/{dataset['id']}"),
        http.build_request("POST", "/v1/tuning-jobs", json={"dataset": dataset["id"], "prompt_set": "p"}),
        http.build_request("GET", f"/v1/tuning-jobs/{job['id']}"),
        http.build_request("GET", f"/v1/tuning-jobs/{job['id']}/events"),
        http.build_request("GET", f"/v1/tuning-jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}),
        http.build_request("POST", f"/v1/tuning-jobs/{job['id']}/cancel"),
        http.build_request("GET", "/v1/prompt-sets/theirs"),
        http.build_request("GET", "/v1/prompt-sets/theirs/versions"),
        http.build_request("GET", "/v1/prompt-sets/theirs/versions/1"),
        http.build_request("GET", "/v1/prompt-sets/theirs/versions/1/artifact"),
        http.build_request("GET", "/v1/prompt-sets/theirs/aliases"),
        http.build_request("GET", "/v1/prompt-sets/theirs/aliases/production"),
        http.build_request("PUT", "/v1/prompt-sets/theirs/aliases/production", json={"version": 1}),
        http.build_request("POST", "/v1/prompt-sets/theirs/aliases/production/rollback"),
        http.build_request("DELETE", "/v1/prompt-sets/theirs/aliases/production"),
        http.build_request("GET", "/v1/prompt-sets/theirs/aliases/production/history"),
        http.build_request("POST", "/v1/predictions", data={"prompt_sets": "theirs"}, files={"images": b"x"}),
    ):
        assert_problem(http.send(request), 404, "not_found")
    assert rows_of(customer) == NOTHING
    assert owner.finished(job)["state"] == "succeeded"


def test_more_unfinished_jobs_than_allowed_is_429_and_leaves_nothing(service: Service) -> None:
    owner = service.new_customer()
    dataset = owner.upload(archives.flowers())
    jobs = [owner.tune(dataset, hyperparameters={"epochs": 500}) for _ in range(3)]
    before = rows_of(owner)
    with owner.http() as http:
        reply = http.post("/v1/tuning-jobs", json={"dataset": dataset["id"], "prompt_set": "p"})
        assert_problem(reply, 429, "queue_limit")
        assert int(reply.headers["retry-after"]) > 0
        # Those that were accepted are being worked on, and events are written about them.
        assert {**rows_of(owner), "job_events": before["job_events"]} == before
        assert_problem(http.delete(f"/v1/datasets/{dataset['id']}"), 409, "dataset_in_use")
        for job in jobs:
            assert http.post(f"/v1/tuning-jobs/{job['id']}/cancel").json()["state"] in ("cancelled", "cancelling")
    for job in jobs:
        assert owner.finished(job, seconds=30)["state"] == "cancelled"
    with owner.http() as http:
        assert_problem(http.post(f"/v1/tuning-jobs/{jobs[0]['id']}/cancel"), 409, "job_terminal")
        assert http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204


# --- aliases ---


@pytest.fixture
def birds(service: Service, customer: Customer) -> str:
    """The URL of a prompt set's aliases; its versions 1 and 2 are nothing one could predict with."""
    service.rows(
        "WITH made AS (INSERT INTO prompt_sets (customer_id, name) VALUES (:customer, 'birds') RETURNING id) "
        "INSERT INTO prompt_set_versions (prompt_set_id, version, customer_id, artifact, artifact_sha256, "
        "artifact_bytes, backbone, backbone_fingerprint, class_names, recipe, parameters, metrics) "
        "SELECT id, version, :customer, '', '', 0, '', '', '[]', '{}', 0, '{}' "
        "FROM made, generate_series(1, 2) version RETURNING version",
        customer=customer.uuid,
    )
    return "/v1/prompt-sets/birds/aliases"


@pytest.mark.parametrize(
    ("alias", "body", "status", "code"),
    [
        ("production", {"version": 3}, 404, "not_found"),
        ("production", {"version": 2, "expected_version": 1}, 409, "alias_moved"),
        ("production", {"version": 0}, 422, "invalid_request"),
        ("production", {"version": 2**31}, 422, "invalid_request"),
        ("production", {"version": None}, 422, "invalid_request"),
        ("production", {}, 422, "invalid_request"),
        ("production", {"version": 1, "surprise": 1}, 422, "invalid_request"),
        ("latest", {"version": 1}, 422, "alias_reserved"),
        ("Production", {"version": 1}, 422, "invalid_request"),
        ("a@b", {"version": 1}, 422, "invalid_request"),
        ("nul%00", {"version": 1}, 422, "invalid_request"),
        ("x" * 65, {"version": 1}, 422, "invalid_request"),
    ],
)
def test_a_move_that_cannot_be_is_refused_and_leaves_nothing(
    customer: Customer, http: httpx.Client, birds: str, alias: str, body: dict[str, Any], status: int, code: str
) -> None:
    before = rows_of(customer)
    assert_problem(http.put(f"{birds}/{alias}", json=body), status, code)
    assert rows_of(customer) == before


def test_a_move_of_an_alias_that_is_elsewhere_is_409_and_says_where(http: httpx.Client, birds: str) -> None:
    url = f"{birds}/production"
    assert http.put(url, json={"version": 2, "expected_version": None}).json()["version"] == 2
    for expected in (None, 1):
        reply = http.put(url, json={"version": 1, "expected_version": expected})
        assert "version 2" in assert_problem(reply, 409, "alias_moved")["detail"]
    assert http.get(url).json()["version"] == 2
    assert_problem(http.post(f"{url}/rollback"), 409, "alias_no_history")
    assert http.put(url, json={"version": 1, "expected_version": 2}).json()["version"] == 1


def test_an_alias_that_is_not_there_is_404(http: httpx.Client, birds: str) -> None:
    for method, path in (("GET", ""), ("POST", "/rollback"), ("DELETE", ""), ("GET", "/history")):
        assert_problem(http.request(method, f"{birds}/production{path}"), 404, "not_found")
        assert_problem(http.request(method, f"{birds}/nul%00{path}"), 422, "invalid_request")
    for name in ("nothing", "nul%00", "birds:1"):
        assert_problem(http.get(f"/v1/prompt-sets/{name}/aliases"), 404, "not_found")
        assert_problem(http.put(f"/v1/prompt-sets/{name}/aliases/a", json={"version": 1}), 404, "not_found")


def test_times_and_pages_of_an_alias_that_are_none_are_refused(http: httpx.Client, birds: str) -> None:
    http.put(f"{birds}/production", json={"version": 1})
    for time in ("yesterday", "2026-01-01T00:00:00", ""):
        assert_problem(http.get(f"{birds}/production", params={"as_of": time}), 422, "invalid_request")
    for time in ("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"):
        assert_problem(http.get(f"{birds}/production", params={"as_of": time}), 404, "not_found")
    later = http.get(f"{birds}/production", params={"as_of": "9999-12-31T23:59:59-14:00"})
    assert later.json()["version"] == 1
    for after in ("x", "-1", "1" * 10):
        assert_problem(http.get(f"{birds}/production/history", params={"after": after}), 404, "not_found")


def test_one_alias_too_many_is_409(service: Service, customer: Customer, http: httpx.Client, birds: str) -> None:
    service.rows(
        "INSERT INTO prompt_set_aliases SELECT id, 'a' || number, customer_id, 1, now() "
        "FROM prompt_sets, generate_series(1, 100) number WHERE customer_id = :customer RETURNING 1",
        customer=customer.uuid,
    )
    assert_problem(http.put(f"{birds}/production", json={"version": 1}), 409, "alias_limit")
    assert len(http.get(birds).json()["data"]) == 100


def test_a_key_that_may_only_read_prompt_sets_moves_nothing(service: Service) -> None:
    reader = service.new_customer(scopes=["prompts:read", "predict"])
    with reader.http() as http:
        assert_problem(http.get("/v1/prompt-sets/birds/aliases"), 404, "not_found")
        for method, path in (("PUT", ""), ("POST", "/rollback"), ("DELETE", "")):
            reply = http.request(method, f"/v1/prompt-sets/birds/aliases/production{path}", json={"version": 1})
            assert_problem(reply, 403, "insufficient_scope")


# --- predictions ---


@pytest.mark.parametrize("reference", ["nothing", "nothing:1", "", "a b", "x" * 101])
def test_an_unknown_prompt_set_is_refused(http: httpx.Client, reference: str) -> None:
    reply = http.post("/v1/predictions", data={"prompt_sets": reference}, files={"images": archives.picture()})
    assert reply.status_code in (404, 422), reply.text
    assert reply.json()["code"] in ("not_found", "invalid_request")


def test_a_prompt_set_whose_job_has_not_finished_is_not_found(
    ready: tuple[Customer, dict[str, Any]],
) -> None:
    owner, dataset = ready
    job = owner.tune(dataset, "unfinished", hyperparameters={"epochs": 500})
    with owner.http() as http:
        reply = http.post("/v1/predictions", data={"prompt_sets": "unfinished"}, files={"images": archives.picture()})
        assert_problem(reply, 404, "not_found")
        http.post(f"/v1/tuning-jobs/{job['id']}/cancel")
    owner.finished(job)


def test_images_that_are_none_or_too_many_or_too_large_are_refused(ready: tuple[Customer, dict[str, Any]]) -> None:
    owner, _ = ready
    publish(owner, random_prompt_set(load_backbone(DEFAULT_BACKBONE)), name="small")
    with owner.http() as http:

        def predict(*images: bytes) -> httpx.Response:
            return http.post(
                "/v1/predictions", data={"prompt_sets": "small"}, files=[("images", ("i", data)) for data in images]
            )

        assert_problem(predict(b""), 422, "image_corrupt")
        assert_problem(predict(b"<svg/>"), 422, "image_unsupported")
        assert_problem(predict(archives.picture()[:500]), 422, "image_corrupt")
        assert_problem(predict(*[archives.picture()] * 17), 413, "payload_too_large")
        assert_problem(predict(bytes(2_000_001)), 413, "payload_too_large")
        missing = http.post("/v1/predictions", files={"prompt_sets": (None, "small")})
        assert_problem(missing, 422, "invalid_request")


SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}


def import_version(customer: Customer, prompt_set: PromptSet, name: str) -> None:
    with customer.http() as http:
        content = artifact.to_bytes(prompt_set)
        reply = http.post(f"/v1/prompt-sets/{name}/versions", content=content, headers=SAFETENSORS)
    assert reply.status_code == 201, reply.text


def test_an_artifact_that_changed_in_the_database_is_never_served(
    service: Service, ready: tuple[Customer, dict[str, Any]]
) -> None:
    owner, _ = ready
    # A seed of its own: equal bytes of another prompt set would be known to the engine, and rightly served.
    spoilt = random_prompt_set(load_backbone(DEFAULT_BACKBONE), seed=7)
    import_version(owner, spoilt, "spoilt")
    service.rows(
        "UPDATE prompt_set_versions SET artifact = substring(artifact for length(artifact) - 1) || '\\x00' "
        "WHERE customer_id = :customer AND prompt_set_id IN (SELECT id FROM prompt_sets WHERE name = 'spoilt') "
        "RETURNING 1",
        customer=owner.uuid,
    )
    with owner.http() as http:
        reply = http.post("/v1/predictions", data={"prompt_sets": "spoilt"}, files={"images": archives.picture()})
        assert_problem(reply, 503, "artifact_integrity")
        assert_problem(http.get("/v1/prompt-sets/spoilt/versions/1/artifact"), 503, "artifact_integrity")
        assert "spoilt:1" in reply.json()["detail"]
        assert http.get("/v1/prompt-sets/spoilt/versions/1").json()["quarantined_at"] is not None
        content = artifact.to_bytes(spoilt)
        again = http.put("/v1/prompt-sets/spoilt/versions/1/artifact", content=content, headers=SAFETENSORS)
        assert again.status_code == 200, again.text
        reply = http.post("/v1/predictions", data={"prompt_sets": "spoilt"}, files={"images": archives.picture()})
        assert reply.status_code == 200, reply.text


def test_an_artifact_that_nobody_can_read_is_in_quarantine_from_the_first_try_on(
    service: Service, ready: tuple[Customer, dict[str, Any]]
) -> None:
    owner, _ = ready
    import_version(owner, random_prompt_set(load_backbone(DEFAULT_BACKBONE), seed=8), "unreadable")
    service.rows(
        "UPDATE prompt_set_versions SET artifact = 'garbage', artifact_sha256 = encode(sha256('garbage'), 'hex') "
        "WHERE customer_id = :customer AND prompt_set_id IN (SELECT id FROM prompt_sets WHERE name = 'unreadable') "
        "RETURNING 1",
        customer=owner.uuid,
    )
    path = "/v1/prompt-sets/unreadable/versions/1"
    with owner.http() as http:
        for _ in range(2):
            form = {"prompt_sets": "unreadable"}
            reply = http.post("/v1/predictions", data=form, files={"images": archives.picture()})
            assert_problem(reply, 503, "artifact_integrity")
            assert "unreadable:1" in reply.json()["detail"]
            assert "cannot be read" in http.get(path).json()["quarantine_reason"]
        assert_problem(http.post(f"{path}/release"), 422, "artifact_corrupt")
        assert http.get(path).json()["quarantined_at"] is not None


# --- batch predictions ---


@pytest.fixture(scope="module")
def published(ready: tuple[Customer, dict[str, Any]]) -> tuple[Customer, dict[str, Any]]:
    """The same, with the prompt set `batched`."""
    owner, dataset = ready
    publish(owner, random_prompt_set(load_backbone(DEFAULT_BACKBONE)), name="batched")
    return owner, dataset


@pytest.fixture
def waiting(service: Service) -> Iterator[None]:
    """Batch predictions are accepted and not begun."""
    workers = service.processes("--queues batch_predict")
    for worker in workers:
        worker.suspend()
    yield
    for worker in workers:
        worker.resume()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"surprise": 1}, 422, "invalid_request"),
        ({"prompt_sets": []}, 422, "invalid_request"),
        ({"prompt_sets": ["batched"] * 17}, 422, "invalid_request"),
        ({"prompt_sets": "batched"}, 422, "invalid_request"),
        ({"prompt_sets": ["batched\u0000"]}, 422, "invalid_request"),
        ({"prompt_sets": [""]}, 422, "invalid_request"),
        ({"top_k": 0}, 422, "invalid_request"),
        ({"top_k": 101}, 422, "invalid_request"),
        ({"split": "all"}, 422, "invalid_request"),
        ({"priority": "urgent"}, 422, "invalid_request"),
        ({"metadata": {"k": "v" * 513}}, 422, "invalid_request"),
        ({"prompt_sets": ["batched", "unheard-of"]}, 404, "not_found"),
        ({"prompt_sets": ["batched:99"]}, 404, "not_found"),
        ({"prompt_sets": ["batched@nowhere"]}, 404, "not_found"),
        ({"prompt_sets": ["No Such Name!"]}, 404, "not_found"),
        ({"dataset": "ds_" + "0" * 32}, 404, "not_found"),
        ({"dataset": "birds"}, 404, "not_found"),
    ],
)
def test_a_batch_prediction_that_cannot_work_is_refused_and_leaves_nothing(
    published: tuple[Customer, dict[str, Any]], change: dict[str, Any], status: int, code: str
) -> None:
    owner, dataset = published
    before = rows_of(owner)
    with owner.http() as http:
        body = {"dataset": dataset["id"], "prompt_sets": ["batched"], **change}
        reply = http.post("/v1/batch-predictions", json=body)
    assert_problem(reply, status, code)
    assert rows_of(owner) == before


def test_a_dataset_that_is_not_ready_cannot_be_predicted(published: tuple[Customer, dict[str, Any]]) -> None:
    owner, _ = published
    failed = owner.upload(archives.zipped({}), "failed", task="unlabelled")
    assert (failed["state"], failed["error"]["code"]) == ("failed", "dataset_empty")
    with owner.http() as http:
        body = {"dataset": failed["id"], "prompt_sets": ["batched"]}
        assert_problem(http.post("/v1/batch-predictions", json=body), 409, "dataset_not_ready")


def test_a_task_that_is_none_is_422(customer: Customer, http: httpx.Client) -> None:
    query = {"name": "d", "task": "guess"}
    reply = http.post("/v1/datasets", params=query, content=archives.flowers(), headers=ZIP)
    assert_problem(reply, 422, "invalid_request")
    assert rows_of(customer) == NOTHING


def test_an_unfinished_batch_prediction_holds_its_dataset_and_has_no_results(
    published: tuple[Customer, dict[str, Any]], waiting: None
) -> None:
    owner, dataset = published
    made = [owner.predict_batch(dataset, "batched") for _ in range(3)]
    before = rows_of(owner)
    with owner.http() as http:
        body = {"dataset": dataset["id"], "prompt_sets": ["batched"]}
        refused = http.post("/v1/batch-predictions", json=body)
        assert_problem(refused, 429, "queue_limit")
        assert int(refused.headers["retry-after"]) > 0
        assert rows_of(owner) == before
        assert_problem(http.delete(f"/v1/datasets/{dataset['id']}"), 409, "dataset_in_use")
        url = f"/v1/batch-predictions/{made[0]['id']}"
        assert_problem(http.get(f"{url}/results"), 409, "job_unfinished")
        assert_problem(http.get(f"{url}/results?format=xlsx"), 422, "invalid_request")
        assert_problem(http.delete(url), 409, "job_unfinished")
        listed = http.get("/v1/batch-predictions", params={"state": "queued", "limit": 2}).json()
        assert [each["id"] for each in listed["data"]] == [made[2]["id"], made[1]["id"]]
        assert listed["has_more"] is True
        for job in made:
            assert http.post(f"/v1/batch-predictions/{job['id']}/cancel").json()["state"] == "cancelled"
        assert_problem(http.post(f"{url}/cancel"), 409, "job_terminal")
        assert_problem(http.get(f"{url}/results"), 409, "job_unfinished")
        # A job of one kind is none of another.
        assert_problem(http.get(f"/v1/tuning-jobs/{made[0]['id']}"), 404, "not_found")
        for job in made:
            assert http.delete(f"/v1/batch-predictions/{job['id']}").status_code == 204
        assert_problem(http.get(url), 404, "not_found")


def test_somebody_elses_batch_predictions_are_404_and_need_the_scope_predict(
    service: Service, published: tuple[Customer, dict[str, Any]], customer: Customer, http: httpx.Client, waiting: None
) -> None:
    owner, dataset = published
    job = owner.predict_batch(dataset, "batched")
    url = f"/v1/batch-predictions/{job['id']}"
    body = {"dataset": dataset["id"], "prompt_sets": ["batched"]}
    requests = [
        ("GET", url),
        ("DELETE", url),
        ("POST", f"{url}/cancel"),
        ("GET", f"{url}/events"),
        ("GET", f"{url}/results"),
    ]
    for verb, path in requests:
        assert_problem(http.request(verb, path), 404, "not_found")
    assert_problem(http.post("/v1/batch-predictions", json=body), 404, "not_found")
    assert rows_of(customer) == NOTHING
    tuner = service.new_customer(scopes=["datasets:read", "datasets:write", "jobs:read", "jobs:write", "prompts:read"])
    with tuner.http() as other:
        for verb, path in (*requests, ("GET", "/v1/batch-predictions")):
            assert_problem(other.request(verb, path), 403, "insufficient_scope")
        assert_problem(other.post("/v1/batch-predictions", json=body), 403, "insufficient_scope")
    assert owner.job(job)["state"] == "queued"
    with owner.http() as http:
        assert http.post(f"{url}/cancel").json()["state"] == "cancelled"


# --- ids and paths ---


@pytest.mark.parametrize(
    "path",
    ["/v1/datasets/ds_", "/v1/datasets/job_" + "0" * 32, "/v1/datasets/ds_" + "0" * 32, "/v1/tuning-jobs/x", "/v1/no"],
)
def test_what_is_not_there_is_404(http: httpx.Client, path: str) -> None:
    assert_problem(http.get(path), 404, "not_found")


def test_a_wrong_method_is_405(http: httpx.Client) -> None:
    assert_problem(http.patch("/v1/datasets"), 405, "method_not_allowed")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=" + "x" * 101])
def test_a_bad_page_is_refused(http: httpx.Client, query: str) -> None:
    assert_problem(http.get(f"/v1/datasets?{query}"), 422, "invalid_request")
