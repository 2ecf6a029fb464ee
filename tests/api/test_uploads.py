"""Datasets come in: in one request, in parts, by a link, as changes; what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from api.deps import Services
from api.indexes import Indexes
from api.rate_limits import RateLimits
from api.routes import uploads
from bpt_store import customers, datasets, ids, scheduling
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.objects import Objects
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings
from tests import archives
from tests.api.test_bad_input import ZIP, assert_no_objects, assert_problem
from tests.service import Customer, Service, eventually

TABLES = ("datasets", "dataset_versions", "uploads", "upload_parts", "jobs")
NOTHING = dict.fromkeys(TABLES, 0)
PART_BYTES = 5 << 20
NEW: dict[str, Any] = {"name": "birds", "media_type": "application/zip", "part_bytes": PART_BYTES}
ITEM = "itm_" + "0" * 23
QUOTA_BYTES = 1 << 40


def rows_of(customer: Customer) -> dict[str, int]:
    counted = ", ".join(f"(SELECT count(*) FROM {table} WHERE customer_id = :customer)" for table in TABLES)
    return dict(zip(TABLES, customer.service.rows(f"SELECT {counted}", customer=customer.uuid)[0], strict=True))


@pytest.fixture
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture(scope="module")
def idle(service: Service) -> Customer:
    """One who never has anything."""
    return service.new_customer()


@pytest.fixture
def http(customer: Customer) -> Iterator[httpx.Client]:
    with customer.http() as http:
        yield http


def digest_of(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def begin(http: httpx.Client, **more: Any) -> str:
    """The URL of a new upload in parts."""
    reply = http.post("/v1/uploads", json={**NEW, **more})
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"/v1/uploads/{reply.json()['id']}"
    return str(reply.headers["Location"])


def put(http: httpx.Client, url: str, number: int, data: bytes) -> httpx.Response:
    return http.put(f"{url}/parts/{number}", content=data, headers=digest_of(data))


def keys_of(service: Service, url: str) -> list[str]:
    """What lies in object storage for an upload, unfinished files too."""
    return [key for key in service.objects() if hex_of(url) in key]


def hex_of(url: str) -> str:
    return url.rpartition("_")[2]


def kept_keys(service: Service, url: str) -> list[str]:
    return [row.key for row in service.rows("SELECT key FROM upload_parts WHERE upload_id = :id", id=UUID(hex_of(url)))]


def only_kept_keys_stay(service: Service, url: str) -> None:
    eventually(lambda: sorted(kept_keys(service, url)) == keys_of(service, url) or None, what="deletion of the rest")


def whole(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def in_chunks(data: bytes) -> Iterator[bytes]:
    """Sent without its length."""
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


# --- in one request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("application/zip", "application/zip"),
        ("Application/X-Zip-Compressed; a=b", "application/zip"),
        ("application/x-tar", "application/x-tar"),
        ("application/x-gzip", "application/gzip"),
        ("application/zstd", "application/zstd"),
        ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
    ],
)
def test_each_kind_of_archive_is_taken_and_its_bytes_are_what_is_read(
    service: Service, customer: Customer, http: httpx.Client, sent: str, kept: str
) -> None:
    data = os.urandom(3_000_000)
    reply = http.post("/v1/datasets", params={"name": "d"}, content=in_chunks(data), headers={"Content-Type": sent})
    assert reply.status_code == 201, reply.text
    dataset = reply.json()
    assert reply.headers["Location"] == f"/v1/datasets/{dataset['id']}"
    assert dataset["source"] == {"sha256": whole(data), "bytes": 3_000_000}
    assert dataset["version"] is None
    row = service.rows("SELECT media_type, dataset_id FROM uploads WHERE customer_id = :c", c=customer.uuid)[0]
    assert (row.media_type, row.dataset_id) == (kept, UUID(hex_of(dataset["id"])))


def test_how_a_dataset_is_to_be_read_is_kept_with_it(http: httpx.Client) -> None:
    asked = {
        "task": "multi-label",
        "first_frame": "true",
        "short_side": "64",
        "bad_images": "0",
        "label_column": "kind",
    }
    plain = http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers=ZIP).json()
    other = http.post("/v1/datasets", params={"name": "d", **asked}, content=b"x", headers=ZIP).json()
    assert plain["options"] == {"task": "auto", "first_frame": False, "short_side": 320}
    assert other["options"] == {
        **{"task": "multi-label", "first_frame": True, "short_side": 64},
        **{"bad_images": 0.0, "label_column": "kind"},
    }


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"name": "d", "task": "guess"},
        {"name": "d", "short_side": "31"},
        {"name": "d", "short_side": "1025"},
        {"name": "d", "bad_images": "1.1"},
        {"name": "d", "bad_images": "nan"},
        {"name": "d", "label_column": "x" * 101},
        {"name": "d", "label_column": "a\x00"},
        {"name": "d", "surprise": "1"},
    ],
)
def test_a_query_that_cannot_be_is_422_and_leaves_nothing(idle: Customer, query: dict[str, str]) -> None:
    with idle.http() as http:
        reply = http.post("/v1/datasets", params=query, content=b"x", headers=ZIP)
        assert_problem(reply, 422, "invalid_request")
        assert rows_of(idle) == NOTHING


@pytest.mark.parametrize("header", ["sha-256=:%%%:", "sha-256=:AAAA:", "sha-256=:", "sha-256"])
def test_a_digest_that_is_none_is_422_and_leaves_nothing(idle: Customer, header: str) -> None:
    with idle.http() as http:
        reply = http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers={**ZIP, "Content-Digest": header})
        assert assert_problem(reply, 422, "checksum_mismatch")["param"] == "content-digest"
        assert rows_of(idle) == NOTHING


def test_digests_of_other_kinds_are_not_judged(http: httpx.Client) -> None:
    headers = {**ZIP, "Content-Digest": "md5=:AAAA:, sha-512=:AAAA:"}
    assert http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers=headers).status_code == 201


def test_a_connection_goes_on_after_an_upload_was_taken(http: httpx.Client) -> None:
    for _ in range(2):
        assert http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers=ZIP).status_code == 201


# --- by a link -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "d", "url": "s3://bucket/a"}, "import_url_forbidden"),
        ({"name": "d", "url": "http://127.0.0.1/a"}, "import_url_forbidden"),
        ({"name": "d", "url": "file:///etc/passwd"}, "import_url_forbidden"),
        ({"name": "d", "url": ""}, "invalid_request"),
        ({"name": "d", "url": "s3://a/\u0000"}, "invalid_request"),
        ({"name": "d"}, "invalid_request"),
        ({"url": "s3://bucket/a"}, "invalid_request"),
        ({"name": "d", "url": "s3://a", "surprise": 1}, "invalid_request"),
        ({"name": "d", "url": "s3://a", "metadata": {"k": "v" * 513}}, "invalid_request"),
    ],
)
def test_a_link_that_is_not_allowed_is_422_and_leaves_nothing(idle: Customer, body: dict[str, Any], code: str) -> None:
    with idle.http() as http:
        assert_problem(http.post("/v1/datasets", json=body), 422, code)
        assert rows_of(idle) == NOTHING


def test_json_with_a_query_or_that_is_none_is_422_and_too_much_is_413(idle: Customer) -> None:
    with idle.http() as http:
        body = {"name": "d", "url": "s3://bucket/a"}
        assert_problem(http.post("/v1/datasets", params={"name": "d"}, json=body), 422, "invalid_request")
        json = {"Content-Type": "application/json"}
        assert_problem(http.post("/v1/datasets", content=b"{", headers=json), 422, "body_unreadable")
        for path in ("/v1/datasets", "/v1/uploads", "/v1/datasets/ds_" + "0" * 32 + "/versions"):
            for content in (bytes(5 << 20), in_chunks(bytes(5 << 20))):
                assert_problem(http.post(path, content=content, headers=json), 413, "payload_too_large")
        assert rows_of(idle) == NOTHING


def test_a_link_below_an_allowed_url_is_a_source(settings: Settings, database: Database, customer_id: UUID) -> None:
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "key", [*CUSTOMER_SCOPES])
    url = f"s3://ours/{ids.public(ids.CUSTOMER, customer_id)}/birds/"
    body = {"name": "birds", "url": url, "task": "multi-label", "metadata": {"k": "v"}}

    objects = Objects(settings.objects_url)
    app = FastAPI()
    app.include_router(uploads.router)
    app.state.services = Services(
        settings=settings.model_copy(update={"import_urls": "s3://ours/{customer}/"}),
        database=database,
        objects=objects,
        indexes=Indexes(objects),
        doorbell=Doorbell(celery_app(settings)),
        rate_limits=RateLimits(settings, CollectorRegistry()),
    )

    async def ask() -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as http:
            return await http.post("/v1/datasets", json=body)

    reply = asyncio.run(ask())
    assert reply.status_code == 201, reply.text
    dataset = reply.json()
    assert (dataset["state"], dataset["metadata"], dataset["source"]) == ("validating", {"k": "v"}, None)
    assert dataset["options"] == {"task": "multi-label", "first_frame": False, "short_side": 320}
    with database.customer(customer_id) as session:
        made = datasets.version(session, ids.parse(ids.DATASET, dataset["id"]), 1)
        assert made.source == {"url": url}
        assert scheduling.kinds_waiting(session, -1) == [JobKind.INGEST]


# --- in parts --------------------------------------------------------------------------------------------------


def test_parts_in_any_order_become_a_dataset_and_completing_again_gives_the_same(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    parts = [os.urandom(PART_BYTES), os.urandom(PART_BYTES), os.urandom(1_000)]
    url = begin(http, size_bytes=2 * PART_BYTES + 1_000, fingerprint="mine", short_side=64, metadata={"k": "v"})
    for number in (3, 1, 2):
        reply = put(http, url, number, parts[number - 1])
        assert reply.status_code == 200, reply.text
        data = parts[number - 1]
        assert reply.json() == {"number": number, "bytes": len(data), "sha256": whole(data)}
    shown = http.get(url).json()
    assert [(part["number"], part["sha256"]) for part in shown["parts"]] == [
        (number, whole(part)) for number, part in enumerate(parts, 1)
    ]
    assert (shown["state"], shown["name"], shown["dataset"]) == ("open", "birds", None)
    assert (shown["received_bytes"], shown["fingerprint"]) == (2 * PART_BYTES + 1_000, "mine")
    stored = {key: (service.data_dir / "objects" / key).read_bytes() for key in kept_keys(service, url)}
    assert sorted(stored.values()) == sorted(parts)
    first = http.post(f"{url}/complete", json={"sha256": whole(*parts)})
    assert first.status_code == 201, first.text
    dataset = first.json()
    assert dataset["source"] == {"sha256": whole(*parts), "bytes": 2 * PART_BYTES + 1_000}
    assert (dataset["name"], dataset["metadata"], dataset["options"]["short_side"]) == ("birds", {"k": "v"}, 64)
    again = http.post(f"{url}/complete")
    assert (again.status_code, again.json()["id"]) == (200, dataset["id"])
    shown = http.get(url).json()
    assert (shown["state"], shown["dataset"], shown["version"]) == ("complete", dataset["id"], 1)
    assert_problem(put(http, url, 1, b"late"), 409, "upload_complete")
    assert_problem(http.delete(url), 409, "upload_complete")
    counted = rows_of(customer)
    assert (counted["datasets"], counted["dataset_versions"], counted["jobs"]) == (1, 1, 1)


def test_what_came_in_parts_is_read_as_one_archive_and_held_against_its_digest(
    service: Service, http: httpx.Client
) -> None:
    pictures = {
        f"{name}/{number}.jpg": archives.picture(label, number)
        for label, name in enumerate("ab")
        for number in range(6)
    }
    archive = archives.zipped({**pictures, "notes.txt": os.urandom(PART_BYTES)})
    urls = [begin(http, name=name) for name in ("right", "wrong")]
    ingested = []
    for url, sha256 in zip(urls, (whole(archive), whole(b"other")), strict=True):
        for number, start in enumerate(range(0, len(archive), PART_BYTES), 1):
            assert put(http, url, number, archive[start : start + PART_BYTES]).status_code == 200
        dataset = http.post(f"{url}/complete", json={"sha256": sha256}).json()
        ingested.append(f"/v1/datasets/{dataset['id']}")

    def ended(path: str) -> Any:
        found = http.get(path).json()
        return found if found["state"] in ("ready", "failed") else None

    right, wrong = (eventually(lambda path=path: ended(path), what="ingest") for path in ingested)  # type: ignore[misc]
    assert (right["state"], right["image_count"], right["version"]) == ("ready", 12, 1)
    assert (wrong["state"], wrong["error"]["code"]) == ("failed", "checksum_mismatch")
    for url in urls:
        eventually(lambda url=url: not keys_of(service, url) or None, what="deletion of the parts")  # type: ignore[misc]


def test_two_that_complete_at_once_get_the_same_dataset(customer: Customer, http: httpx.Client) -> None:
    url = begin(http)
    put(http, url, 1, b"x")
    barrier = Barrier(2)

    def complete(_: int) -> httpx.Response:
        with customer.http() as mine:
            barrier.wait()
            return mine.post(f"{url}/complete")

    with ThreadPoolExecutor(2) as pool:
        replies = [*pool.map(complete, range(2))]
    assert sorted(reply.status_code for reply in replies) == [200, 201]
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert rows_of(customer)["datasets"] == 1


def test_a_part_that_is_there_is_not_stored_again_and_the_connection_goes_on(
    service: Service, http: httpx.Client
) -> None:
    url = begin(http)
    data = os.urandom(PART_BYTES)
    first = put(http, url, 1, data)
    keys = keys_of(service, url)
    for content in (data, in_chunks(data)):
        again = http.put(f"{url}/parts/1", content=content, headers=digest_of(data))
        assert (again.status_code, again.json()) == (200, first.json())
    assert keys_of(service, url) == kept_keys(service, url) == keys
    assert_problem(http.put(f"{url}/parts/1", content=b"other", headers=digest_of(data)), 422, "checksum_mismatch")
    assert kept_keys(service, url) == keys


def test_another_part_takes_the_place_of_the_one_before(service: Service, http: httpx.Client) -> None:
    url = begin(http)
    for data in (b"one", b"two", b"one", b"three"):
        assert put(http, url, 1, data).json()["sha256"] == whole(data)
    assert [part["sha256"] for part in http.get(url).json()["parts"]] == [whole(b"three")]
    only_kept_keys_stay(service, url)
    assert (service.data_dir / "objects" / kept_keys(service, url)[0]).read_bytes() == b"three"


@pytest.mark.parametrize("same", [True, False])
def test_of_two_that_send_one_part_at_once_one_is_kept(
    service: Service, customer: Customer, http: httpx.Client, same: bool
) -> None:
    url = begin(http)
    parts = [os.urandom(PART_BYTES)] * 2 if same else [os.urandom(PART_BYTES), os.urandom(PART_BYTES)]
    barrier = Barrier(2)

    def send(data: bytes) -> httpx.Response:
        with customer.http() as mine:
            barrier.wait()
            return put(mine, url, 1, data)

    with ThreadPoolExecutor(2) as pool:
        assert [reply.status_code for reply in pool.map(send, parts)] == [200, 200]
    only_kept_keys_stay(service, url)
    assert len(kept_keys(service, url)) == 1
    assert (service.data_dir / "objects" / kept_keys(service, url)[0]).read_bytes() in parts


@pytest.mark.parametrize(
    "headers", [{}, digest_of(b"other"), {"Content-Digest": "sha-256=:%:"}, {"Content-Digest": "md5=:AAAA:"}]
)
def test_a_part_needs_its_own_digest(service: Service, http: httpx.Client, headers: dict[str, str]) -> None:
    url = begin(http)
    reply = http.put(f"{url}/parts/1", content=b"part", headers=headers)
    assert assert_problem(reply, 422, "checksum_mismatch")["param"] == "content-digest"
    assert http.get(url).json()["parts"] == []
    assert keys_of(service, url) == []


def test_a_part_larger_than_agreed_is_413_and_is_not_kept(service: Service, http: httpx.Client) -> None:
    url = begin(http)
    data = bytes(PART_BYTES + 1)
    for content in (data, in_chunks(data)):
        reply = http.put(f"{url}/parts/1", content=content, headers=digest_of(data))
        assert_problem(reply, 413, "payload_too_large")
    assert http.get(url).json()["parts"] == []
    assert keys_of(service, url) == []


@pytest.mark.parametrize("number", ["0", "10001", "x", "-1"])
def test_a_part_has_a_number_from_1_to_10000(http: httpx.Client, number: str) -> None:
    url = begin(http)
    assert_problem(http.put(f"{url}/parts/{number}", content=b"x", headers=digest_of(b"x")), 422, "invalid_request")
    assert put(http, url, 10_000, b"x").status_code == 200


def begin_part(service: Service, customer: Customer, url: str, count: int = 2 << 20) -> socket.socket:
    """A connection over which so many bytes of a part of 4 MiB have come."""
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    data = bytes(4 << 20)
    connection.sendall(
        f"PUT {url}/parts/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {customer.key}\r\n"
        f"Content-Digest: {digest_of(data)['Content-Digest']}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    connection.sendall(data[:count])
    return connection


def test_a_part_that_breaks_off_leaves_nothing_and_the_upload_goes_on(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    url = begin(http)
    with begin_part(service, customer, url):
        eventually(lambda: keys_of(service, url) or None, what="the first bytes")
    eventually(lambda: not keys_of(service, url) or None, what="deletion of half a part")
    assert kept_keys(service, url) == []
    assert put(http, url, 1, b"x").status_code == 200


@pytest.mark.parametrize("count", [0, 2 << 20])
def test_a_part_that_trickles_is_408_and_leaves_nothing(
    service: Service, customer: Customer, http: httpx.Client, count: int
) -> None:
    url = begin(http)
    with begin_part(service, customer, url, count) as connection:
        answer = connection.recv(65536)
    assert b" 408 " in answer.splitlines()[0]
    assert kept_keys(service, url) == []
    eventually(lambda: not keys_of(service, url) or None, what="deletion of half a part")


def test_an_upload_with_a_part_missing_short_or_over_is_422_and_stays_open(
    customer: Customer, http: httpx.Client
) -> None:
    url = begin(http, size_bytes=PART_BYTES + 3)
    assert "no part" in assert_problem(http.post(f"{url}/complete"), 422, "upload_incomplete")["detail"]
    put(http, url, 2, b"end")
    assert "missing parts: 1" in assert_problem(http.post(f"{url}/complete"), 422, "upload_incomplete")["detail"]
    put(http, url, 1, b"short")
    assert "have not: 1" in assert_problem(http.post(f"{url}/complete"), 422, "upload_incomplete")["detail"]
    put(http, url, 1, bytes(PART_BYTES))
    put(http, url, 2, b"too long")
    assert "were announced" in assert_problem(http.post(f"{url}/complete"), 422, "upload_incomplete")["detail"]
    assert rows_of(customer)["datasets"] == 0
    put(http, url, 2, b"end")
    assert http.post(f"{url}/complete").status_code == 201


def test_a_digest_of_the_whole_that_is_none_is_422(customer: Customer, http: httpx.Client) -> None:
    url = begin(http)
    put(http, url, 1, b"x")
    for body in ({"sha256": "x"}, {"sha256": "A" * 64}, {"surprise": 1}):
        assert_problem(http.post(f"{url}/complete", json=body), 422, "invalid_request")
    assert rows_of(customer)["datasets"] == 0


def test_an_upload_that_is_given_up_leaves_nothing(service: Service, customer: Customer, http: httpx.Client) -> None:
    before = service.objects()
    url = begin(http)
    put(http, url, 1, b"x")
    assert http.delete(url).status_code == 204
    assert rows_of(customer) == NOTHING
    assert_no_objects(service, before)
    for reply in (http.get(url), put(http, url, 1, b"x"), http.post(f"{url}/complete"), http.delete(url)):
        assert_problem(reply, 404, "not_found")


def test_an_upload_to_which_nothing_comes_any_more_is_swept(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    before = service.objects()
    url = begin(http)
    put(http, url, 1, b"x")
    service.rows("UPDATE uploads SET expires_at = now() WHERE id = :id RETURNING id", id=UUID(hex_of(url)))
    eventually(lambda: rows_of(customer) == NOTHING or None, what="the sweep")
    assert_no_objects(service, before)
    assert_problem(put(http, url, 2, b"x"), 404, "not_found")


def test_uploads_are_listed_by_fingerprint_in_pages(http: httpx.Client) -> None:
    urls = [begin(http, fingerprint="f") for _ in range(3)]
    begin(http, fingerprint="g")
    done = begin(http, fingerprint="f")
    put(http, done, 1, b"x")
    put(http, urls[0], 1, b"four")
    assert http.post(f"{done}/complete").status_code == 201
    first = http.get("/v1/uploads", params={"fingerprint": "f", "limit": 2}).json()
    rest = http.get("/v1/uploads", params={"fingerprint": "f", "after": first["next_cursor"]}).json()
    found = [*first["data"], *rest["data"]]
    assert [f"/v1/uploads/{each['id']}" for each in found] == urls[::-1]
    assert [each["received_bytes"] for each in found] == [0, 0, 4]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert len(http.get("/v1/uploads").json()["data"]) == 4
    assert_problem(http.get("/v1/uploads", params={"fingerprint": "f\0"}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": None}, "invalid_request"),
        ({"dataset": "ds_" + "0" * 32}, "invalid_request"),
        ({"media_type": "text/plain"}, "invalid_request"),
        ({"part_bytes": PART_BYTES - 1}, "invalid_request"),
        ({"part_bytes": (64 << 20) + 1}, "invalid_request"),
        ({"size_bytes": 0}, "invalid_request"),
        ({"size_bytes": 60 << 30}, "invalid_request"),
        ({"fingerprint": "x" * 201}, "invalid_request"),
        ({"task": "guess"}, "invalid_request"),
        ({"base": 1}, "invalid_request"),
        ({"remove": [f"{ITEM}1"]}, "invalid_request"),
        ({"name": None, "dataset": "ds_" + "0" * 32, "task": "auto"}, "invalid_request"),
        ({"name": None, "dataset": "ds_" + "0" * 32, "metadata": {}}, "invalid_request"),
        ({"surprise": 1}, "invalid_request"),
    ],
)
def test_an_upload_that_cannot_be_is_422_and_leaves_nothing(idle: Customer, change: dict[str, Any], code: str) -> None:
    with idle.http() as http:
        body = {key: value for key, value in {**NEW, **change}.items() if value is not None}
        assert_problem(http.post("/v1/uploads", json=body), 422, code)
        assert rows_of(idle) == NOTHING


def test_more_than_an_upload_may_have_is_413(idle: Customer) -> None:
    with idle.http() as http:
        body = {**NEW, "part_bytes": 64 << 20, "size_bytes": (64 << 30) + 1}
        assert_problem(http.post("/v1/uploads", json=body), 413, "payload_too_large")
        assert rows_of(idle) == NOTHING


# --- who may ---------------------------------------------------------------------------------------------------


def test_somebody_elses_upload_is_404_and_unchanged(service: Service, http: httpx.Client) -> None:
    url = begin(http)
    put(http, url, 1, b"mine")
    before = http.get(url).json()
    with service.new_customer().http() as stranger:
        for reply in (
            stranger.get(url),
            put(stranger, url, 1, b"theirs"),
            put(stranger, url, 1, b"mine"),
            stranger.post(f"{url}/complete"),
            stranger.delete(url),
            stranger.post("/v1/uploads", json={**NEW, "name": None, "dataset": "ds_" + "0" * 32}),
        ):
            assert reply.status_code in (404, 422)
        assert_problem(stranger.get(url), 404, "not_found")
        assert stranger.get("/v1/uploads").json()["data"] == []
    assert http.get(url).json() == before
    assert_problem(http.get("/v1/uploads/nonsense"), 404, "not_found")


def test_without_a_key_or_the_scope_nothing_is_taken(service: Service, http: httpx.Client) -> None:
    url = begin(http)
    reader = service.new_customer(scopes=["datasets:read"])
    requests: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("POST", "/v1/uploads", {"json": NEW}),
        ("PUT", f"{url}/parts/1", {"content": b"x", "headers": digest_of(b"x")}),
        ("POST", f"{url}/complete", {}),
        ("DELETE", url, {}),
        ("POST", "/v1/datasets/ds_x/versions", {"content": b"x", "headers": ZIP}),
        ("POST", "/v1/datasets", {"json": {"name": "d", "url": "s3://a"}}),
    )
    for key, status, code in ((reader.key, 403, "insufficient_scope"), (None, 401, "unauthenticated")):
        with service.client(key) as other:
            for method, path, more in requests:
                assert_problem(other.request(method, path, **more), status, code)
    assert rows_of(reader) == NOTHING
    assert http.get(url).json()["parts"] == []


# --- quotas ----------------------------------------------------------------------------------------------------


def fill_bytes(customer: Customer, left: int) -> None:
    """Another upload of the customer's leaves room for so many bytes."""
    customer.service.rows(
        "INSERT INTO uploads (customer_id, intent, media_type, size_bytes, expires_at) "
        "VALUES (:customer, '{\"dataset\": \"0\"}', '', :size, now() + interval '1 hour') RETURNING id",
        customer=customer.uuid,
        size=QUOTA_BYTES - left,
    )


def test_bytes_beyond_the_quota_are_403_and_leave_nothing(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    fill_bytes(customer, 100)
    before, objects = rows_of(customer), service.objects()
    for content in (bytes(101), in_chunks(bytes(101)), in_chunks(bytes(3_000_000))):
        reply = http.post("/v1/datasets", params={"name": "d"}, content=content, headers=ZIP)
        assert_problem(reply, 403, "quota_exceeded")
    assert_problem(http.post("/v1/uploads", json={**NEW, "size_bytes": 101}), 403, "quota_exceeded")
    assert rows_of(customer) == before
    assert_no_objects(service, objects)
    for content in (bytes(60), in_chunks(bytes(20))):
        assert http.post("/v1/datasets", params={"name": "d"}, content=content, headers=ZIP).status_code == 201


def test_a_part_beyond_the_quota_is_403_and_is_not_kept(
    service: Service, customer: Customer, http: httpx.Client
) -> None:
    fill_bytes(customer, 100)
    url = begin(http)
    put(http, url, 1, bytes(60))
    for content in (bytes(41), in_chunks(bytes(41))):
        reply = http.put(f"{url}/parts/2", content=content, headers=digest_of(bytes(41)))
        assert_problem(reply, 403, "quota_exceeded")
    assert [part["number"] for part in http.get(url).json()["parts"]] == [1]
    only_kept_keys_stay(service, url)
    assert put(http, url, 2, bytes(40)).status_code == 200


def test_ingestedbeyond_the_quota_are_403_and_leave_nothing(customer: Customer, http: httpx.Client) -> None:
    customer.service.rows(
        "INSERT INTO datasets (customer_id, name, state) SELECT :customer, 'd', 'ready' "
        "FROM generate_series(1, 999) RETURNING id",
        customer=customer.uuid,
    )
    begin(http)
    before = rows_of(customer)
    reply = http.post("/v1/datasets", params={"name": "d"}, content=b"x", headers=ZIP)
    assert_problem(reply, 403, "quota_exceeded")
    assert_problem(http.post("/v1/uploads", json=NEW), 403, "quota_exceeded")
    assert rows_of(customer) == before


# --- versions --------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(service: Service, customer: Customer) -> str:
    """The id of a dataset that is ready, of which nothing is stored."""
    row = service.rows(
        "WITH made AS (INSERT INTO datasets (customer_id, name, state, latest) VALUES (:customer, 'd', 'ready', 1) "
        "RETURNING id) INSERT INTO dataset_versions (dataset_id, number, customer_id, state, task, images, splits, "
        "counts, objects) SELECT id, 1, :customer, 'ready', 'single-label', 2, '{}', '{}', '{\"shards\": []}' "
        "FROM made RETURNING dataset_id",
        customer=customer.uuid,
    )[0]
    return f"ds_{row.dataset_id.hex}"


def changes_of(service: Service, dataset: str, number: int) -> Any:
    return service.rows(
        "SELECT changes FROM dataset_versions WHERE dataset_id = :id AND number = :number",
        id=UUID(hex_of(dataset)),
        number=number,
    )[0].changes


def test_changes_make_the_next_version(service: Service, http: httpx.Client, dataset: str) -> None:
    url = f"/v1/datasets/{dataset}/versions"
    body = {"base": 1, "relabel": [{"item": f"{ITEM}1", "labels": ["cat", "dog"]}], "remove": [f"{ITEM}2"]}
    reply = http.post(url, json=body)
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"{url}/2"
    made = reply.json()
    assert (made["dataset"], made["number"], made["base"], made["source"]) == (dataset, 2, 1, None)
    assert changes_of(service, dataset, 2) == {"relabel": {f"{ITEM}1": ["cat", "dog"]}, "remove": [f"{ITEM}2"]}


def test_an_archive_makes_the_next_version(http: httpx.Client, dataset: str) -> None:
    url = f"/v1/datasets/{dataset}/versions"
    data = os.urandom(3_000_000)
    reply = http.post(url, params={"base": 1}, content=data, headers=ZIP)
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"{url}/2"
    assert reply.json()["source"] == {"sha256": whole(data), "bytes": 3_000_000}


def test_an_upload_in_parts_makes_the_next_version_with_its_changes(
    service: Service, http: httpx.Client, dataset: str
) -> None:
    body = {**NEW, "dataset": dataset, "base": 1, "remove": [f"{ITEM}1"]}
    reply = http.post("/v1/uploads", json={key: value for key, value in body.items() if key != "name"})
    assert reply.status_code == 201, reply.text
    assert (reply.json()["name"], reply.json()["dataset"]) == (None, dataset)
    url = reply.headers["Location"]
    put(http, url, 1, b"x")
    replies = [http.post(f"{url}/complete") for _ in range(2)]
    assert [reply.status_code for reply in replies] == [201, 200]
    assert {(reply.json()["dataset"], reply.json()["number"]) for reply in replies} == {(dataset, 2)}
    assert changes_of(service, dataset, 2) == {"relabel": {}, "remove": [f"{ITEM}1"]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"base": 1},
        {"relabel": [], "remove": []},
        {"remove": ["itm_x"]},
        {"remove": [f"{ITEM}1", f"{ITEM}1"]},
        {"remove": [f"{ITEM}1"], "relabel": [{"item": f"{ITEM}1", "labels": ["a"]}]},
        {"relabel": [{"item": f"{ITEM}1", "labels": ["a"]}, {"item": f"{ITEM}1", "labels": ["b"]}]},
        {"relabel": [{"item": f"{ITEM}1", "labels": ["a", "a"]}]},
        {"relabel": [{"item": f"{ITEM}1", "labels": [""]}]},
        {"relabel": [{"item": f"{ITEM}1", "labels": ["x" * 201]}]},
        {"relabel": [{"item": f"{ITEM}1", "labels": ["a\n"]}]},
        {"relabel": [{"item": f"{ITEM}1"}]},
        {"remove": [f"itm_{number:024x}" for number in range(10_001)]},
        {"base": 0, "remove": [f"{ITEM}1"]},
        {"remove": [f"{ITEM}1"], "surprise": 1},
    ],
)
def test_changes_that_cannot_be_are_422_and_leave_nothing(
    customer: Customer, http: httpx.Client, dataset: str, body: dict[str, Any]
) -> None:
    before = rows_of(customer)
    assert_problem(http.post(f"/v1/datasets/{dataset}/versions", json=body), 422, "invalid_request")
    assert rows_of(customer) == before


def test_a_version_of_what_moved_is_unfinished_or_not_ready_is_409_and_leaves_nothing(
    service: Service, customer: Customer, http: httpx.Client, dataset: str
) -> None:
    service.rows(
        "INSERT INTO dataset_versions (dataset_id, number, customer_id, state) "
        "VALUES (:id, 2, :customer, 'validating') RETURNING number",
        id=UUID(hex_of(dataset)),
        customer=customer.uuid,
    )
    young = service.rows(
        "INSERT INTO datasets (customer_id, name, state) VALUES (:customer, 'd', 'validating') RETURNING id",
        customer=customer.uuid,
    )[0].id
    before, objects = rows_of(customer), service.objects()
    change = {"remove": [f"{ITEM}1"]}
    for identifier, base, code in (
        (dataset, 1, "version_unfinished"),
        (dataset, 2, "version_moved"),
        (f"ds_{young.hex}", 1, "dataset_not_ready"),
    ):
        url = f"/v1/datasets/{identifier}/versions"
        assert_problem(http.post(url, json={**change, "base": base}), 409, code)
        assert_problem(http.post(url, params={"base": base}, content=b"x", headers=ZIP), 409, code)
    upload = {"dataset": dataset, "media_type": "application/zip", "base": 2}
    assert_problem(http.post("/v1/uploads", json=upload), 409, "version_moved")
    assert rows_of(customer) == before
    assert_no_objects(service, objects)


def test_a_version_of_somebody_elses_dataset_is_404_and_leaves_nothing(service: Service, dataset: str) -> None:
    stranger = service.new_customer()
    with stranger.http() as http:
        for identifier in (dataset, "ds_x"):
            url = f"/v1/datasets/{identifier}/versions"
            assert_problem(http.post(url, json={"remove": [f"{ITEM}1"]}), 404, "not_found")
            assert_problem(http.post(url, content=b"x", headers=ZIP), 404, "not_found")
            upload = {"dataset": identifier, "media_type": "application/zip"}
            assert_problem(http.post("/v1/uploads", json=upload), 404, "not_found")
    assert rows_of(stranger) == NOTHING


def test_a_version_as_anything_else_is_415(customer: Customer, http: httpx.Client, dataset: str) -> None:
    before = rows_of(customer)
    reply = http.post(f"/v1/datasets/{dataset}/versions", content=b"x", headers={"Content-Type": "text/plain"})
    assert_problem(reply, 415, "unsupported_media_type")
    assert rows_of(customer) == before
