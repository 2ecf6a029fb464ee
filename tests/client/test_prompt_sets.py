"""`bpt prompt-sets` and `client.prompt_sets`: what they send."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bpt_client import Client

TIME = "2026-01-02T03:04:05Z"
FLOWERS = {"id": "ps_1", "name": "flowers", "created_at": TIME}
VERSION = {
    **{"prompt_set": "flowers", "version": 3, "artifact_sha256": "ab", "artifact_bytes": 8, "backbone": "vit"},
    **{"backbone_fingerprint": "f", "class_names": ["daisy"], "created_at": TIME},
}


def sent(server: Any) -> list[tuple[str, str, Any]]:
    return [(each.method, each.path, json.loads(each.body) if each.body else None) for each in server.received]


def test_prompt_sets_are_made_labelled_and_found(server: Any, bpt: Any) -> None:
    server.will(server.json(FLOWERS, 201))
    assert bpt("prompt-sets", "create", "flowers", "--description", "of May", "--metadata", "team=a")[0] == 0
    server.will(server.json({**FLOWERS, "description": "of June"}), server.json({**VERSION, "metadata": {"x": "1=2"}}))
    assert "of June" in bpt("prompt-sets", "describe", "flowers", "--description", "of June")[1]
    assert "1=2" in bpt("prompt-sets", "describe", "flowers:3", "--metadata", "x=1=2")[1]
    server.will(server.page(FLOWERS))
    assert "flowers" in bpt("prompt-sets", "list", "--metadata", "team=a")[1]
    at = "/v1/prompt-sets"
    assert sent(server) == [
        ("POST", at, {"name": "flowers", "description": "of May", "metadata": {"team": "a"}}),
        ("PATCH", f"{at}/flowers", {"description": "of June", "metadata": None}),
        ("PATCH", f"{at}/flowers/versions/3", {"description": None, "metadata": {"x": "1=2"}}),
        ("GET", f"{at}?limit=100&metadata=team%3Da", None),
    ]
    code, _, told = bpt("prompt-sets", "list", "--metadata", "team")
    assert (code, "key=value" in told) == (1, True)


def test_versions_are_archived_and_deleted(server: Any, bpt: Any) -> None:
    server.will(server.json({**VERSION, "archived_at": TIME}), server.json(VERSION), server.raw(204), server.raw(204))
    assert "flowers:3" in bpt("prompt-sets", "archive", "flowers:3")[1]
    for command in (("unarchive", "flowers:3"), ("delete", "flowers:3"), ("delete", "flowers")):
        assert bpt("prompt-sets", *command) == (0, "", "")
    at = "/v1/prompt-sets/flowers"
    assert [each[:2] for each in sent(server)] == [
        ("POST", f"{at}/versions/3/archive"),
        ("POST", f"{at}/versions/3/unarchive"),
        ("DELETE", f"{at}/versions/3"),
        ("DELETE", at),
    ]
    code, _, told = bpt("prompt-sets", "archive", "flowers")
    assert (code, "flowers:3" in told) == (1, True)


def test_versions_are_asked_for_by_their_label(server: Any) -> None:
    server.will(server.page(VERSION))
    with Client(server.url, "bpt_key") as client:
        found = list(client.prompt_sets.versions("flowers", archived=False, metadata={"a": "b"}))
    assert [each.version for each in found] == [3]
    assert server.received[0].path == "/v1/prompt-sets/flowers/versions?limit=100&archived=false&metadata=a%3Db"


ALIAS = {"prompt_set": "flowers", "alias": "production", "version": 2, "moved_at": TIME}
GATE = {
    "prompt_set": "flowers",
    "dataset": "ds_1",
    "dataset_version": 3,
    "metric": "top1",
    "floor": 0.9,
    "set_at": TIME,
}
CHECK = {
    **{"id": "ev_1", "prompt_set": "flowers", "version": 3, "dataset": "ds_1", "dataset_version": 3, "job": "job_1"},
    **{"metrics": {"top1": 0.95, "top5": None}, "passed": True, "created_at": TIME},
}


def test_an_alias_is_moved_for_a_reason_and_rolled_back_to_a_version(server: Any, bpt: Any) -> None:
    server.will(server.json(ALIAS))
    bpt("prompt-sets", "alias", "flowers", "production", "2", "--override-reason", "a new camera")
    bpt("prompt-sets", "rollback", "flowers", "production", "--to-version", "2", "--expected-version", "3")
    assert [body for _, _, body in sent(server)] == [
        {"version": 2, "override": {"reason": "a new camera"}},
        {"to_version": 2, "expected_version": 3},
    ]


def test_a_gate_is_set_shown_and_removed(server: Any, bpt: Any) -> None:
    dataset = server.json(server.dataset(state="ready"))
    server.will(dataset, server.json(GATE), server.json({**GATE, "aliases": ["production"]}), server.raw(204))
    given = ("--dataset", "ds_1:3", "--floor", "0.9", "--alias", "production", "--split", "test")
    assert "top1 0.9 or more" in bpt("prompt-sets", "gate", "flowers", *given)[1]
    assert "production" in bpt("prompt-sets", "gate", "flowers")[1]
    assert bpt("prompt-sets", "gate", "flowers", "--remove") == (0, "", "")
    at = "/v1/prompt-sets/flowers/gate"
    body = {"dataset": "ds_1:3", "floor": 0.9, "metric": "top1", "split": "test", "aliases": ["production"]}
    assert sent(server)[1:] == [("PUT", at, body), ("GET", at, None), ("DELETE", at, None)]
    assert bpt("prompt-sets", "gate", "flowers", "--floor", "0.9")[0] == 1


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_a_check_is_followed_and_told(server: Any, bpt: Any, passed: bool, code: int) -> None:
    job = {"id": "job_1", "state": "succeeded", "dataset": "ds_1", "top_k": 5, "images": 4, "created_at": TIME}
    job["prompt_sets"] = []
    ended = server.event(1, "state", state="succeeded")
    server.will(server.json(job, 201), server.events(ended), server.json(job), server.page({**CHECK, "passed": passed}))
    found, out, _ = bpt("prompt-sets", "check", "flowers:3")
    assert found == code
    assert ["flowers:3", "ds_1:3", "-", "yes" if passed else "no", "top1=0.95", "job_1"] == out.splitlines()[1].split()[
        :6
    ]
    assert server.received[0].path == "/v1/prompt-sets/flowers/versions/3/gate-checks"
    server.will(server.page(CHECK))
    assert json.loads(bpt("prompt-sets", "checks", "flowers:3", "--json")[1])[0]["metrics"]["top1"] == 0.95


def test_an_artifact_is_imported_with_its_digest(server: Any, bpt: Any, tmp_path: Path) -> None:
    path = tmp_path / "flowers.safetensors"
    path.write_bytes(b"artifact")
    server.will(server.json({**VERSION, "imported": True, "seed": None}, 201))
    code, told, _ = bpt("prompt-sets", "import", "flowers", str(path))
    assert (code, "flowers:3" in told) == (0, True)
    [request] = server.received
    assert (request.method, request.path, request.body) == ("POST", "/v1/prompt-sets/flowers/versions", b"artifact")
    assert request.headers["Content-Type"] == "application/vnd.safetensors"
    digest = base64.b64encode(hashlib.sha256(b"artifact").digest()).decode()
    assert request.headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert request.headers["Idempotency-Key"]
    code, _, why = bpt("prompt-sets", "import", "flowers", str(tmp_path / "none"))
    assert (code, "cannot be read" in why) == (1, True)


def test_a_damaged_version_is_shown_put_back_and_released(server: Any, bpt: Any, tmp_path: Path) -> None:
    path, at = tmp_path / "flowers.safetensors", "/v1/prompt-sets/flowers/versions/3"
    path.write_bytes(b"artifact")
    server.will(server.json({**VERSION, "quarantined_at": TIME, "quarantine_reason": "other bytes"}))
    assert "other bytes" in bpt("prompt-sets", "show", "flowers:3")[1]
    server.will(server.json(VERSION))
    assert "flowers:3" in bpt("prompt-sets", "restore", "flowers:3", str(path))[1]
    assert "flowers:3" in bpt("prompt-sets", "release", "flowers:3")[1]
    _, put, post = server.received
    assert (put.method, put.path, put.body) == ("PUT", f"{at}/artifact", b"artifact")
    digest = base64.b64encode(hashlib.sha256(b"artifact").digest()).decode()
    assert put.headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert (post.method, post.path) == ("POST", f"{at}/release")
    assert bpt("prompt-sets", "restore", "flowers:3", str(tmp_path / "missing"))[0] == 1
