"""`bpt keys --admin` and `client.admin_keys`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bpt_client import Client

KEY = {"id": "key_1", "customer": None, "name": "Ada's", "scopes": ["admin"], "created_at": "2026-01-02T03:04:05Z"}
AT = "/v1/admin/api-keys"


def test_administrators_keys_have_addresses_of_their_own(server: Any, bpt: Any) -> None:
    server.will(server.json({**KEY, "token": "bpt_1_secret"}, 201))
    assert "bpt_1_secret" in bpt("keys", "create", "--admin", "--name", "Ada's")[1]
    assert bpt("keys", "rotate", "key_1", "--admin", "--overlap-hours", "1")[0] == 0
    assert bpt("keys", "revoke", "key_1", "--admin")[0] == 0
    server.will(server.page(KEY))
    assert "key_1" in bpt("keys", "list", "--admin")[1]
    assert [(each.method, each.path, json.loads(each.body or b"null")) for each in server.received] == [
        ("POST", AT, {"name": "Ada's"}),
        ("POST", f"{AT}/key_1/rotate", {"overlap_seconds": 3600}),
        ("POST", f"{AT}/key_1/revoke", None),
        ("GET", f"{AT}?limit=100", None),
    ]


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("create",), ("list", "--admin", "--customer", "cus_1"), ("create", "--admin", "--scope", "predict")],
)
def test_it_must_be_said_whose_key_is_meant(server: Any, bpt: Any, arguments: tuple[str, ...]) -> None:
    code, _, told = bpt("keys", *arguments)
    assert (code, bool(told), server.received) == (1, True, [])


def test_keys_and_what_was_done_to_them_are_read_as_dataclasses(server: Any) -> None:
    entry = {"id": "aud_1", "customer": None, "actor": "key_1", "action": "api_key.created"}
    entry |= {"resource_type": "api_key", "resource": "key_2", "at": "2026-01-02T03:04:05Z"}
    server.will(server.json(KEY), server.page(entry))
    with Client(server.url, "bpt_key") as client:
        assert client.admin_keys.get("key_1").customer is None
        assert [each.resource for each in client.admin_keys.audit_log()] == ["key_2"]
    assert [each.path for each in server.received] == [f"{AT}/key_1", "/v1/admin/audit-log?limit=100"]
