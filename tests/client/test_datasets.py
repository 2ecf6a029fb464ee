"""The client's verbs for datasets: what they send, and what they make of the answer. Parts: see test_uploads.py."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpt_client import errors
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server

VERSION = {"dataset": "ds_1", "number": 2, "state": "validating", "base": 1, "created_at": "2026-01-02T03:04:05Z"}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "bpt_key", timeout=5) as client:
        yield client


def test_a_small_file_is_one_request_that_tells_its_length_and_digest_beforehand(
    server: Server, client: Client, tmp_path: Path
) -> None:
    content = b"PK\x03\x04" + bytes(range(256)) * 4096
    (tmp_path / "my flowers.zip").write_bytes(content)
    server.will(server.json(server.dataset(), 201))
    sent: list[tuple[int, int]] = []
    client.datasets.upload(tmp_path / "my flowers.zip", on_sent=lambda done, total: sent.append((done, total)))
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/datasets?name=my+flowers")
    assert request.body == content
    assert request.headers["Content-Type"] == "application/zip"
    assert request.headers["Content-Length"] == str(len(content))
    assert request.headers["Transfer-Encoding"] is None
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert request.headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert len(sent) > 2
    assert sent[-1] == (len(content), len(content))


def test_a_folder_is_named_as_it_is_even_with_a_dot(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "v1.5" / "daisy").mkdir(parents=True)
    (tmp_path / "v1.5" / "daisy" / "a.jpg").write_bytes(b"x")
    server.will(server.json(server.dataset(), 201))
    client.datasets.upload(tmp_path / "v1.5")
    (request,) = server.received
    assert request.path == "/v1/datasets?name=v1.5"
    assert request.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=BytesIO(request.body)) as tar:
        assert tar.getnames() == ["daisy/a.jpg"]


def test_a_small_file_is_sent_again_whole_under_the_same_key(server: Server, client: Client, tmp_path: Path) -> None:
    content = b"PK\x03\x04" + bytes(1 << 20)
    (tmp_path / "a.zip").write_bytes(content)
    server.will(server.raw(503), server.raw(cut=True), server.json(server.dataset(), 201))
    sent: list[int] = []
    client.datasets.upload(tmp_path / "a.zip", on_sent=lambda done, total: sent.append(done))
    assert [each.body for each in server.received] == [content] * 3
    assert len({each.headers["Idempotency-Key"] for each in server.received}) == 1
    assert (max(sent), sent[-1], sent.count(0)) == (len(content), len(content), 2)


def test_options_are_sent_as_the_service_calls_them(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    server.will(server.json(server.dataset(), 201))
    options: dict[str, Any] = {"task": "multi-label", "first_frame": True, "short_side": 64, "bad_images": 0.0}
    client.datasets.upload(tmp_path / "a.zip", **options, columns={"file": "id", "label": "tags"})
    query = "task=multi-label&first_frame=true&short_side=64&bad_images=0.0&file_column=id&label_column=tags"
    assert server.received[0].path == f"/v1/datasets?name=a&{query}"


def test_a_column_that_means_nothing_is_refused_before_anything_is_asked(
    server: Server, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(errors.InputError, match="file, label, split, group, not for labels"):
        client.datasets.upload(tmp_path / "a.zip", columns={"labels": "tags"})
    assert not server.received


def test_a_dataset_is_imported_by_its_url(server: Server, client: Client) -> None:
    server.will(server.json(server.dataset(), 201))
    client.datasets.import_from("s3://bucket/birds/", task="unlabelled", columns={"group": "tree"})
    client.datasets.import_from("s3://bucket/birds", name="owls", metadata={"season": "spring"})
    assert [(each.path, json.loads(each.body)) for each in server.received] == [
        (
            "/v1/datasets",
            {"name": "birds", "url": "s3://bucket/birds/", "task": "unlabelled", "group_column": "tree"},
        ),
        ("/v1/datasets", {"name": "owls", "url": "s3://bucket/birds", "metadata": {"season": "spring"}}),
    ]
    with pytest.raises(errors.InputError, match="no name in it"):
        client.datasets.import_from("/")


def test_a_few_more_images_are_one_request(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    server.will(server.json(VERSION, 201))
    assert client.datasets.add("ds_1", tmp_path / "a.zip").number == 2
    client.datasets.add("ds_1", tmp_path / "a.zip", base=1)
    assert [each.path for each in server.received] == [
        "/v1/datasets/ds_1/versions",
        "/v1/datasets/ds_1/versions?base=1",
    ]
    assert server.received[0].body == b"PK\x03\x04"


def test_a_change_names_items_and_what_becomes_of_them(server: Server, client: Client) -> None:
    server.will(server.json(VERSION, 201))
    relabel: dict[str, Any] = {"itm_1": ["cat", "dog"], "itm_2": "cat", "itm_3": []}
    assert client.datasets.change("ds_1", relabel=relabel, remove=["itm_4"], base=1).base == 1
    client.datasets.change("ds_1", remove=["itm_4"])
    labels = {"itm_1": ["cat", "dog"], "itm_2": ["cat"], "itm_3": []}
    assert [json.loads(each.body) for each in server.received] == [
        {
            "base": 1,
            "relabel": [{"item": item, "labels": given} for item, given in labels.items()],
            "remove": ["itm_4"],
        },
        {"remove": ["itm_4"]},
    ]
    with pytest.raises(errors.InputError, match="nothing to change"):
        client.datasets.change("ds_1")
    assert len(server.received) == 2


def test_a_dataset_is_named_and_labelled_anew(server: Server, client: Client) -> None:
    named = {"id": "ds_1", "name": "lake", "state": "ready", "created_at": VERSION["created_at"]}
    server.will(server.json(named))
    assert client.datasets.describe("ds_1", name="lake").name == "lake"
    (asked,) = server.received
    assert (asked.method, asked.path) == ("PATCH", "/v1/datasets/ds_1")
    assert json.loads(asked.body) == {"name": "lake", "metadata": None}


def test_versions_come_in_pages(server: Server, client: Client) -> None:
    server.will(server.page(VERSION, cursor="2"), server.page({**VERSION, "number": 1, "base": None}))
    assert [(each.number, each.base) for each in client.datasets.versions("ds_1")] == [(2, 1), (1, None)]
    assert [each.path for each in server.received] == [
        "/v1/datasets/ds_1/versions?limit=100",
        "/v1/datasets/ds_1/versions?limit=100&after=2",
    ]


def test_items_are_asked_for_by_what_is_wanted(server: Server, client: Client) -> None:
    item = {"id": "itm_1", "path": "a/1.jpg", "labels": ["cat"], "split": "val", "findings": ["dark"], "width": 64}
    server.will(server.page(item))
    (found,) = client.datasets.items("ds_1", version=2, split="val", label="cat & dog", finding="dark")
    assert (found.labels, found.findings, found.width, found.height) == (("cat",), ("dark",), 64, None)
    list(client.datasets.items("ds_1"))
    assert [each.path for each in server.received] == [
        "/v1/datasets/ds_1/items?limit=100&version=2&split=val&label=cat+%26+dog&finding=dark",
        "/v1/datasets/ds_1/items?limit=100",
    ]


READS: list[tuple[Callable[[Client], object], str]] = [
    (lambda client: client.datasets.thumbnail("ds_1", "itm_1"), "items/itm_1/thumbnail"),
    (lambda client: client.datasets.thumbnail("ds_1", "itm_1", version=2), "items/itm_1/thumbnail?version=2"),
    (lambda client: client.datasets.image("ds_1", "itm_1"), "items/itm_1/image"),
    (lambda client: client.datasets.image("ds_1", "itm_1", version=2), "items/itm_1/image?version=2"),
]


@pytest.mark.parametrize(("read", "path"), READS)
def test_a_picture_is_its_bytes(server: Server, client: Client, read: Callable[[Client], object], path: str) -> None:
    server.will(server.raw(200, b"\xff\xd8picture"))
    assert read(client) == b"\xff\xd8picture"
    assert server.received[0].path == f"/v1/datasets/ds_1/{path}"


def test_a_report_is_that_of_a_version_or_of_the_newest(server: Server, client: Client) -> None:
    server.will(server.json({"verdict": "fix first"}))
    assert client.datasets.report("ds_1") == {"verdict": "fix first"}
    client.datasets.report("ds_1", version=2)
    assert [each.path for each in server.received] == [
        "/v1/datasets/ds_1/report",
        "/v1/datasets/ds_1/versions/2/report",
    ]


def test_waiting_ends_when_it_is_ready(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpt_client.datasets._POLL_SECONDS", 0.0)
    server.will(server.json(server.dataset()), server.json(server.dataset(state="ready")))
    assert client.datasets.wait("ds_1").is_ready
    server.will(server.json(VERSION), server.json({**VERSION, "state": "ready"}))
    assert client.datasets.wait_version("ds_1", 2).is_ready
    assert server.received[-1].path == "/v1/datasets/ds_1/versions/2"


def test_waiting_tells_why_it_was_refused(server: Server, client: Client) -> None:
    error = {"code": "too_few_classes", "detail": "one class is not enough"}
    server.will(server.json(server.dataset(state="failed", error=error)))
    with pytest.raises(errors.DatasetFailed, match=r"^dataset ds_1 failed: one class is not enough") as caught:
        client.datasets.wait("ds_1")
    assert caught.value.dataset.error is not None
    server.will(server.json({**VERSION, "state": "failed", "error": error}))
    with pytest.raises(errors.DatasetFailed, match=r"^dataset ds_1:2 failed: one class is not enough"):
        client.datasets.wait_version("ds_1", 2)


def test_waiting_has_an_end_of_its_own(server: Server, client: Client) -> None:
    server.will(server.json(server.dataset()))
    with pytest.raises(errors.WaitedTooLong):
        client.datasets.wait("ds_1", timeout=0)
    server.will(server.json(VERSION))
    with pytest.raises(errors.WaitedTooLong):
        client.datasets.wait_version("ds_1", 2, timeout=0)
