"""`bpt prompt-sets` and `client.prompt_sets`: what they send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpt_client import Client
from bpt_client.cli import main

TIME = "2026-01-02T03:04:05Z"
FLOWERS = {"id": "ps_1", "name": "flowers", "created_at": TIME}
VERSION = {
    **{"prompt_set": "flowers", "version": 3, "artifact_sha256": "ab", "artifact_bytes": 8, "backbone": "vit"},
    **{"backbone_fingerprint": "f", "class_names": ["daisy"], "created_at": TIME},
}


@pytest.fixture
def bpt(server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """bpt("prompt-sets", "list") -> (exit code, output, errors)."""
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


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
