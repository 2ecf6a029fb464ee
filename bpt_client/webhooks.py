"""Webhooks: endpoints and what they were sent; and for who receives them, whether they are genuine."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from bpt_client.errors import WebhookInvalid
from bpt_client.models import Json, parse
from bpt_client.transport import Transport, decode, json_object, segment
from bpt_client.webhook_models import WebhookDelivery, WebhookEndpoint

_PATH = "/v1/webhook-endpoints"


class Webhooks:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, url: str, *, events: Sequence[str] = (), description: str = "") -> WebhookEndpoint:
        """The answer's `secret` is what `verify` needs; it cannot be had again. Without `events` it is told of all."""
        body = {"url": url, "events": [*events], "description": description}
        return self._transport.send(WebhookEndpoint, _PATH, body)

    def list(self) -> Iterator[WebhookEndpoint]:
        return self._transport.pages(WebhookEndpoint, _PATH)

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        return self._transport.fetch(WebhookEndpoint, _path(endpoint_id))

    def update(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
    ) -> WebhookEndpoint:
        """What is None stays as it is."""
        wished: dict[str, Any] = {"url": url, "events": None if events is None else [*events]}
        wished["description"] = description
        body = {name: value for name, value in wished.items() if value is not None}
        return parse(WebhookEndpoint, decode(self._transport.once("PATCH", _path(endpoint_id), json=body)))

    def delete(self, endpoint_id: str) -> None:
        """With its deliveries."""
        self._transport.once("DELETE", _path(endpoint_id))

    def rotate_secret(self, endpoint_id: str, *, old_secret_hours: float | None = None) -> WebhookEndpoint:
        """The answer's `secret` is the new one. For a while (by default 24 hours) all is signed with both."""
        body = {"old_secret_hours": old_secret_hours}
        return self._transport.send(WebhookEndpoint, f"{_path(endpoint_id)}/rotate-secret", body)

    def enable(self, endpoint_id: str) -> WebhookEndpoint:
        """What waited is sent."""
        return self._transport.send(WebhookEndpoint, f"{_path(endpoint_id)}/enable")

    def test(self, endpoint_id: str) -> WebhookDelivery:
        """Have an event of the type `webhook.test` sent. Conflict `webhook_disabled`."""
        return self._transport.send(WebhookDelivery, f"{_path(endpoint_id)}/test")

    def deliveries(
        self,
        endpoint_id: str,
        *,
        state: str | None = None,
        type: str | None = None,  # noqa: A002  # as in the event
    ) -> Iterator[WebhookDelivery]:
        """Newest first; `state` is "pending", "delivered" or "dead"."""
        return self._transport.pages(
            WebhookDelivery, f"{_path(endpoint_id)}/deliveries", {"state": state, "type": type}
        )

    def delivery(self, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
        return self._transport.fetch(WebhookDelivery, f"{_path(endpoint_id)}/deliveries/{segment(delivery_id)}")

    def replay(self, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
        """Have it sent once more, whatever has become of it."""
        path = f"{_path(endpoint_id)}/deliveries/{segment(delivery_id)}/replay"
        return self._transport.send(WebhookDelivery, path)

    def replay_dead(self, endpoint_id: str, since: datetime) -> int:
        """All that are dead and whose event is not older (without a time zone: local time) -> how many."""
        body = {"since": since.astimezone().isoformat()}
        answer = json_object(decode(self._transport.post(f"{_path(endpoint_id)}/deliveries/replay", json=body)))
        return int(answer["deliveries"])


def verify(headers: Mapping[str, str], body: bytes, secret: str, *, tolerance_seconds: float = 300) -> Json:
    """The event in a request that a webhook endpoint has received, if it is genuine and of now.

    `headers` in any case of letters; `body` as it came, before any parser. WebhookInvalid for everything else.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        identifier, timestamp = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split()
        age = time.time() - int(timestamp)
    except (KeyError, ValueError) as error:
        raise WebhookInvalid(f"a header is missing or malformed: {error}") from None
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise WebhookInvalid("the secret is none: it should look like whsec_<base64>") from None
    signed = f"{identifier}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    # As bytes: strings would have to be ASCII.
    genuine = [hmac.compare_digest(expected, each.encode("utf-8", "replace")) for each in signatures]
    if not any(genuine):
        raise WebhookInvalid("no signature is that of the secret")
    if abs(age) > tolerance_seconds:
        raise WebhookInvalid(f"it was sent {age:.0f} seconds ago")
    try:
        event = json.loads(body)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise WebhookInvalid("the body is no JSON object")
    return event


def _path(endpoint_id: str) -> str:
    return f"{_PATH}/{segment(endpoint_id)}"
