"""The client's verbs: what they send, and what they make of the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from bpt_client import errors
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server

VERSION = {
    "prompt_set": "flowers",
    "version": 2,
    "artifact_sha256": hashlib.sha256(b"artifact").hexdigest(),
    "artifact_bytes": 8,
    "backbone": "vit",
    "backbone_fingerprint": "f",
    "class_names": ["daisy"],
    "created_at": "2026-01-02T03:04:05Z",
}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "bpt_key", timeout=5) as client:
        yield client


def test_waiting_has_an_end_of_its_own(server: Server, client: Client) -> None:
    server.will(server.json(server.job()))
    with pytest.raises(errors.WaitedTooLong):
        client.tuning_jobs.wait("job_1", timeout=0)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_waiting_for_a_job_that_does_not_succeed_raises(server: Server, client: Client, state: str) -> None:
    server.will(server.json(server.job(state=state)))
    with pytest.raises(errors.TuningFailed, match=state) as caught:
        client.tuning_jobs.wait("job_1")
    assert caught.value.job.state == state


def test_what_is_not_given_is_left_to_the_service(server: Server, client: Client) -> None:
    server.will(server.json(server.job(), 201))
    client.tuning_jobs.create("ds_1", "flowers")
    client.tuning_jobs.create("ds_1", "flowers", method="bpt-bilinear", rank=8, hyperparameters={"epochs": 3}, seed=0)
    assert [json.loads(each.body) for each in server.received] == [
        {"dataset": "ds_1", "prompt_set": "flowers"},
        {
            "dataset": "ds_1",
            "prompt_set": "flowers",
            "method": {"type": "bpt-bilinear", "rank": 8},
            "hyperparameters": {"epochs": 3},
            "seed": 0,
        },
    ]


def test_images_are_sent_in_order_as_repeated_parts(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first image")
    used = {"name": "flowers", "version": 2, "artifact_sha256": "ab", "backbone": "vit", "backbone_fingerprint": "f"}
    seen = {"prompt_set": "flowers:2", "labels": ["daisy"], "predictions": [{"label": "daisy", "score": 1}]}
    good = {"index": 0, "filename": "a.jpg", "status": 200, "results": [seen]}
    bad = {"index": 1, "filename": "b", "status": 422, "results": [], "error": {"code": "c", "detail": "d"}}
    server.will(server.json({"prompt_sets": [used], "data": [good, bad], "timings": {"decode_ms": 1.5}}, 207))
    answer = client.predict([tmp_path / "a.jpg", ("b", b"second image")], "flowers:2", top_k=1)
    body = server.received[0].body
    assert body.count(b'name="images"; filename=') == 2
    assert body.index(b"first image") < body.index(b"second image")
    assert b'name="prompt_sets"\r\n\r\nflowers:2\r\n' in body
    assert b'name="top_k"\r\n\r\n1\r\n' in body
    assert answer.data[0].results[0].predictions[0].label == "daisy"
    assert answer.data[1].error is not None
    assert answer.prompt_sets[0].version == 2


def test_images_that_cannot_be_opened_are_not_sent(server: Server, client: Client, tmp_path: Path) -> None:
    for images in ([], [tmp_path / "absent.jpg"]):
        with pytest.raises(errors.InputError):
            client.predict(images, "flowers")
    assert not server.received


def test_an_artifact_is_written_when_its_hash_is_right(server: Server, client: Client, tmp_path: Path) -> None:
    server.will(server.json(VERSION), server.raw(200, b"artifact", Content_Type="application/octet-stream"))
    client.prompt_sets.download("flowers", tmp_path / "flowers.safetensors", 2)
    assert (tmp_path / "flowers.safetensors").read_bytes() == b"artifact"
    assert server.received[1].path == "/v1/prompt-sets/flowers/versions/2/artifact"


def test_an_artifact_with_another_hash_leaves_no_file(server: Server, client: Client, tmp_path: Path) -> None:
    server.will(server.json(VERSION), server.raw(200, b"artifakt"))
    with pytest.raises(errors.TransferCorrupt):
        client.prompt_sets.download("flowers", tmp_path / "flowers.safetensors", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_set_without_versions_has_no_newest(server: Server, client: Client) -> None:
    server.will(server.json({"id": "ps_1", "name": "flowers", "created_at": "2026-01-02T03:04:05Z"}))
    with pytest.raises(errors.InputError, match="no version yet"):
        client.prompt_sets.version("flowers")


ALIAS = {"prompt_set": "flowers", "alias": "production", "version": 2, "moved_at": "2026-01-02T03:04:05Z"}


def test_a_move_of_an_alias_says_what_it_expects_only_where_asked_to(server: Server, client: Client) -> None:
    server.will(server.json(ALIAS))
    client.prompt_sets.move_alias("flowers", "production", 2)
    client.prompt_sets.move_alias("flowers", "production", 2, expected_version=None)
    moved = client.prompt_sets.move_alias("flowers", "production", 2, expected_version=1)
    assert [json.loads(each.body) for each in server.received] == [
        {"version": 2},
        {"version": 2, "expected_version": None},
        {"version": 2, "expected_version": 1},
    ]
    assert {(each.method, each.path) for each in server.received} == {
        ("PUT", "/v1/prompt-sets/flowers/aliases/production")
    }
    assert (moved.alias, moved.version) == ("production", 2)


def test_a_move_of_what_was_moved_meanwhile_is_a_conflict(server: Server, client: Client) -> None:
    server.will(server.json({"code": "alias_moved", "detail": "the alias is at version 3"}, 409))
    with pytest.raises(errors.Conflict, match="version 3") as caught:
        client.prompt_sets.move_alias("flowers", "production", 2, expected_version=1)
    assert caught.value.code == "alias_moved"
    assert len(server.received) == 1


def test_aliases_are_listed_rolled_back_removed_and_have_a_history(server: Server, client: Client) -> None:
    made = {"number": 1, "from_version": None, "to_version": 2, "actor": "key_1", "moved_at": ALIAS["moved_at"]}
    server.will(
        server.page(ALIAS),
        server.json(ALIAS),
        server.json(ALIAS),
        server.raw(204),
        server.page({**made, "number": 2, "from_version": 2, "to_version": None, "request_id": "r"}, cursor="2"),
        server.page(made),
    )
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert [each.version for each in client.prompt_sets.aliases("flowers")] == [2]
    assert client.prompt_sets.alias("flowers", "production", as_of=noon).version == 2
    assert client.prompt_sets.rollback_alias("flowers", "production").version == 2
    client.prompt_sets.remove_alias("flowers", "production")
    found = list(client.prompt_sets.alias_history("flowers", "production"))
    assert [(each.number, each.from_version, each.to_version, each.request_id) for each in found] == [
        (2, 2, None, "r"),
        (1, None, 2, None),
    ]
    at = "/v1/prompt-sets/flowers/aliases"
    asked = [(each.method, each.path) for each in server.received]
    assert asked[0] == ("GET", f"{at}?limit=100")
    assert asked[1][1].startswith(f"{at}/production?as_of=2026-01-01T")
    assert datetime.fromisoformat(unquote(asked[1][1].partition("=")[2])) == noon
    assert asked[2:5] == [
        ("POST", f"{at}/production/rollback"),
        ("DELETE", f"{at}/production"),
        ("GET", f"{at}/production/history?limit=100"),
    ]
