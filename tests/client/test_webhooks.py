"""Webhooks from the receiver's side, and the commands around them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from bpt_client import Client, WebhookInvalid
from bpt_client.cli import main
from bpt_client.webhooks import verify

if TYPE_CHECKING:
    from tests.client.conftest import Server

# The example of Standard Webhooks' own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IDENTIFIER, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
ENDPOINT = {"id": "whk_1", "url": "https://example.com", "created_at": "2026-01-02T03:04:05Z", "secret": SECRET}
DELIVERY = {
    **{"id": "dlv_1", "endpoint": "whk_1", "event": "evt_1", "type": "webhook.test", "state": "pending"},
    **{"attempts": 0, "created_at": "2026-01-02T03:04:05Z"},
}


@pytest.fixture
def then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which the example was signed."""
    monkeypatch.setattr(time, "time", lambda: TIMESTAMP + 1.5)


def headers(**changes: str) -> dict[str, str]:
    known = {"webhook-id": IDENTIFIER, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": SIGNATURE}
    return known | {name.replace("_", "-"): value for name, value in changes.items()}


def signed(secret: str, body: bytes, timestamp: int) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{IDENTIFIER}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def test_the_published_example_is_genuine(then: None) -> None:
    assert verify(headers(), BODY, SECRET) == {"test": 2432232314}
    assert verify({name.title(): value for name, value in headers().items()}, BODY, SECRET)
    assert verify(headers(), BODY, SECRET.removeprefix("whsec_"))


def test_one_signature_among_several_is_enough(then: None) -> None:
    other = signed("whsec_" + base64.b64encode(bytes(24)).decode(), BODY, TIMESTAMP)
    for order in ([other, SIGNATURE], [SIGNATURE, other], ["v1a,x", "", "v2,ü", SIGNATURE]):
        assert verify(headers(webhook_signature=" ".join(order)), BODY, SECRET)


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({}, BODY + b" "),
        ({"webhook_id": "msg_other"}, BODY),
        ({"webhook_timestamp": str(TIMESTAMP + 1)}, BODY),
        ({"webhook_signature": SIGNATURE.removeprefix("v1,")}, BODY),
        ({"webhook_signature": SIGNATURE.replace("v1,", "v2,")}, BODY),
        ({"webhook_signature": SIGNATURE[:-2]}, BODY),
        ({"webhook_signature": ""}, BODY),
        ({"webhook_signature": "v1,ü"}, BODY),
        ({"webhook_timestamp": "now"}, BODY),
    ],
)
def test_what_was_changed_is_not_genuine(then: None, changes: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookInvalid):
        verify(headers(**changes), body, SECRET)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_that_is_missing_is_named(then: None, name: str) -> None:
    with pytest.raises(WebhookInvalid, match=name):
        verify({key: value for key, value in headers().items() if key != name}, BODY, SECRET)


@pytest.mark.parametrize("secret", ["whsec_AAAA", "whsec_?", ""])
def test_with_another_secret_nothing_is_genuine(then: None, secret: str) -> None:
    with pytest.raises(WebhookInvalid):
        verify(headers(), BODY, secret)


@pytest.mark.parametrize(("age", "genuine"), [(-299, True), (299, True), (301, False), (-301, False)])
def test_what_is_too_old_or_from_the_future_is_refused(monkeypatch: Any, age: int, genuine: bool) -> None:
    monkeypatch.setattr(time, "time", lambda: TIMESTAMP + age)
    if genuine:
        verify(headers(), BODY, SECRET)
    else:
        with pytest.raises(WebhookInvalid, match="seconds ago"):
            verify(headers(), BODY, SECRET)
        verify(headers(), BODY, SECRET, tolerance_seconds=400)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff"])
def test_a_body_that_is_no_object_is_refused_even_if_it_is_signed(then: None, body: bytes) -> None:
    with pytest.raises(WebhookInvalid, match="JSON"):
        verify(headers(webhook_signature=signed(SECRET, body, TIMESTAMP)), body, SECRET)


def test_the_secret_is_not_in_the_repr(server: Server) -> None:
    server.will(server.json(ENDPOINT, 201))
    with Client(server.url, "bpt_key") as client:
        endpoint = client.webhooks.create("https://example.com", events=["dataset.ready"])
    assert endpoint.secret == SECRET
    assert SECRET not in repr(endpoint)
    assert json.loads(server.received[0].body) == {
        "url": "https://example.com",
        "events": ["dataset.ready"],
        "description": "",
    }


def test_only_what_is_given_is_changed(server: Server) -> None:
    server.will(server.json(ENDPOINT))
    with Client(server.url, "bpt_key") as client:
        client.webhooks.update("whk_1", events=[])
    (request,) = server.received
    assert (request.method, request.path, json.loads(request.body)) == (
        "PATCH",
        "/v1/webhook-endpoints/whk_1",
        {"events": []},
    )


def test_commands(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")

    def bpt(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["webhooks", *arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    server.will(server.json(ENDPOINT, 201))
    code, out = bpt("create", "https://example.com", "--event", "dataset.ready", "--event", "dataset.failed")
    assert code == 0
    assert SECRET in out
    assert json.loads(server.received[-1].body)["events"] == ["dataset.ready", "dataset.failed"]
    server.will(server.page({**ENDPOINT, "secret": None}))
    assert "whk_1" in bpt("list")[1]
    server.will(server.json(DELIVERY, 201))
    assert "dlv_1" in bpt("test", "whk_1")[1]
    server.will(server.page(DELIVERY))
    assert "webhook.test" in bpt("deliveries", "whk_1", "--state", "dead")[1]
    assert "state=dead" in server.received[-1].path
    server.will(server.json(DELIVERY))
    assert bpt("replay", "whk_1", "dlv_1")[0] == 0
    assert server.received[-1].path == "/v1/webhook-endpoints/whk_1/deliveries/dlv_1/replay"
    server.will(server.json({"deliveries": 3}))
    assert "3" in bpt("replay", "whk_1", "--dead-since", "2026-01-02")[1]
    assert bpt("replay", "whk_1")[0] == 1
    server.will(server.json(ENDPOINT))
    assert SECRET in bpt("rotate-secret", "whk_1", "--old-secret-hours", "0")[1]
    assert json.loads(server.received[-1].body) == {"old_secret_hours": 0}
    assert bpt("enable", "whk_1")[0] == 0
    assert bpt("delete", "whk_1")[0] == 0
    assert server.received[-1].method == "DELETE"
