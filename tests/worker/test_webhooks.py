"""Deliveries to a real server: what is sent, what is tried again, and who waits for whom."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from bpt_store import ids, webhook_deliveries, webhook_events, webhooks
from bpt_store.addresses import Outside
from bpt_store.db import Database
from bpt_store.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from bpt_store.settings import Settings
from bpt_store.webhook_events import EventType
from tests.receiver import Receiver
from tests.service import eventually
from worker.webhooks import AT_ONCE_TO_AN_ENDPOINT, Deliverer

LOOPBACK = Outside([ip_network("127.0.0.0/8")], insecure=True)
HOUR = 3600


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver.start() as receiver:
        yield receiver


def endpoint(database: Database, customer_id: UUID, url: str) -> WebhookEndpoint:
    with database.customer(customer_id) as session:
        return webhooks.create(session, customer_id, url)


def emit(database: Database, customer_id: UUID, number: int = 1) -> None:
    with database.customer(customer_id) as session:
        data = {"id": f"ds_{number}", "version": number, "state": "ready"}
        webhook_events.emit(session, customer_id, EventType.DATASET_READY, data)


def shown(database: Database, customer_id: UUID, endpoint: WebhookEndpoint) -> list[WebhookDelivery]:
    with database.customer(customer_id) as session:
        return list(session.scalars(webhook_deliveries.of_endpoint(endpoint.id).order_by(WebhookDelivery.id)))


def shown_endpoint(database: Database, customer_id: UUID, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    with database.customer(customer_id) as session:
        return webhooks.get(session, endpoint.id)


def make_due(database: Database) -> None:
    with database.system() as session:
        session.execute(text("UPDATE webhook_deliveries SET next_at = now()"))


def deliver(settings: Settings, database: Database, outside: Outside = LOOPBACK, **changes: object) -> int:
    """What is due, to the end -> how many."""

    async def once() -> int:
        deliverer = Deliverer(settings.model_copy(update=changes), database, outside)
        begun = await deliverer.begin()
        await deliverer.finish()
        return begun

    return asyncio.run(once())


def test_an_event_is_sent_as_standard_webhooks_has_it(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    made = endpoint(database, customer_id, f"{receiver.url}/hook?a=b")
    emit(database, customer_id)
    assert deliver(settings, database) == 1
    (request,) = receiver.of("/hook?a=b")
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.DELIVERED, 1, 200)
    assert delivery.delivered_at is not None
    told = json.loads(request.body)
    assert told["type"] == "dataset.ready"
    assert told["data"] == {"id": "ds_1", "version": 1, "state": "ready"}
    assert datetime.fromisoformat(told["timestamp"]) == delivery.event.created_at
    assert request.headers["webhook-id"] == ids.public(ids.EVENT, delivery.event_id)
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert request.headers["content-type"] == "application/json"
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    mac = hmac.new(base64.b64decode(made.secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(mac).decode()}"
    assert deliver(settings, database) == 0


def test_while_an_old_secret_holds_there_are_two_signatures(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    made = endpoint(database, customer_id, receiver.url)
    for hours, expected in ((1.0, 2), (0.0, 1)):
        with database.customer(customer_id) as session:
            rotated = webhooks.rotate_secret(session, made.id, old_secret_hours=hours)
        assert rotated.secret != made.secret
        emit(database, customer_id)
        deliver(settings, database)
        assert len(receiver.received[-1].headers["webhook-signature"].split(" ")) == expected


def test_what_fails_is_tried_again_after_a_pause_with_the_same_id_and_body(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers = [500, 500, 204]
    made = endpoint(database, customer_id, receiver.url)
    emit(database, customer_id)
    for attempt, pause in ((1, 5), (2, 300)):
        before = datetime.now(UTC)
        assert deliver(settings, database) == 1
        (delivery,) = shown(database, customer_id, made)
        assert (delivery.state, delivery.attempts, delivery.last_status) == (DeliveryState.PENDING, attempt, 500)
        waits = (delivery.next_at - before).total_seconds()
        assert pause <= waits <= pause * 1.2 + 10
        assert deliver(settings, database) == 0, "it is not due"
        make_due(database)
    assert shown_endpoint(database, customer_id, made).failing_since is not None
    assert deliver(settings, database) == 1
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts, delivery.last_error) == (DeliveryState.DELIVERED, 3, None)
    assert shown_endpoint(database, customer_id, made).failing_since is None
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1


def test_what_was_tried_as_often_as_it_ever_is_is_dead_until_it_is_replayed(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers = [500]
    made = endpoint(database, customer_id, receiver.url)
    emit(database, customer_id)
    for _ in range(3):
        assert deliver(settings, database, webhook_retry_seconds="60 60") == 1
        make_due(database)
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts, delivery.last_error) == (DeliveryState.DEAD, 3, "it answered 500")
    assert deliver(settings, database) == 0
    receiver.answers = [200]
    now = datetime.now(UTC)
    with database.customer(customer_id) as session:
        assert webhook_deliveries.replay_dead(session, made.id, now + timedelta(hours=1)) == 0
        assert webhook_deliveries.replay_dead(session, made.id, now - timedelta(hours=1)) == 1
    assert deliver(settings, database) == 1
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 1)
    with database.customer(customer_id) as session:
        webhook_deliveries.replay(session, made.id, delivery.id)
    assert deliver(settings, database) == 1
    assert len(receiver.received) == 5


def test_an_endpoint_that_does_not_answer_is_given_up_after_a_while(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    made = endpoint(database, customer_id, f"{receiver.url}/slow")
    emit(database, customer_id)
    deliver(settings, database, webhook_timeout_seconds=0.2)
    (delivery,) = shown(database, customer_id, made)
    assert delivery.last_error == "no answer within 0.2 seconds"
    assert (delivery.state, delivery.last_status) == (DeliveryState.PENDING, None)


def test_nobody_listening_is_an_attempt_that_failed(settings: Settings, database: Database, customer_id: UUID) -> None:
    made = endpoint(database, customer_id, "http://127.0.0.1:9")
    emit(database, customer_id)
    deliver(settings, database)
    (delivery,) = shown(database, customer_id, made)
    assert delivery.state is DeliveryState.PENDING
    assert delivery.last_error


def test_a_redirect_is_not_followed(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers, receiver.location = [307], f"{receiver.url}/elsewhere"
    made = endpoint(database, customer_id, f"{receiver.url}/hook")
    emit(database, customer_id)
    deliver(settings, database)
    assert [each.path for each in receiver.received] == ["/hook"]
    (delivery,) = shown(database, customer_id, made)
    assert delivery.last_error == "it answered 307, and redirects are not followed"


def test_an_endpoint_that_is_gone_is_told_nothing_more_until_it_is_enabled(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers = [410, 200]
    made = endpoint(database, customer_id, receiver.url)
    emit(database, customer_id, 1)
    deliver(settings, database)
    assert shown_endpoint(database, customer_id, made).disabled_reason == "it answered 410 Gone"
    emit(database, customer_id, 2)
    assert deliver(settings, database) == 0
    with database.customer(customer_id) as session:
        webhooks.enable(session, made.id)
    assert deliver(settings, database) == 1
    assert [delivery.state for delivery in shown(database, customer_id, made)] == [DeliveryState.DELIVERED]


def test_an_endpoint_for_which_all_has_failed_for_days_is_disabled(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers = [500]
    made = endpoint(database, customer_id, receiver.url)
    for days, disabled in ((4, False), (6, True)):
        emit(database, customer_id)
        deliver(settings, database)
        with database.system() as session:
            session.execute(text("DELETE FROM webhook_events"))
            since = text("UPDATE webhook_endpoints SET failing_since = now() - :days * interval '1 day'")
            session.execute(since, {"days": days})
        emit(database, customer_id)
        deliver(settings, database, webhook_failing_days=5)
        found = shown_endpoint(database, customer_id, made)
        assert (found.disabled_at is not None) is disabled
    assert found.disabled_reason == "all has failed for 5 days, last: it answered 500"


def test_two_deliverers_send_each_event_once(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    for path in ("a", "b", "c"):
        endpoint(database, customer_id, f"{receiver.url}/{path}")
    for number in range(8):
        emit(database, customer_id, number)

    async def run() -> None:
        deliverers = [Deliverer(settings, database, LOOPBACK) for _ in range(2)]
        while sum(await asyncio.gather(*(each.begin() for each in deliverers))):
            await asyncio.gather(*(each.finish() for each in deliverers))

    asyncio.run(run())
    sent = [(request.path, request.headers["webhook-id"]) for request in receiver.received]
    assert len(sent) == len(set(sent)) == 24


def test_many_who_claim_at_once_claim_each_delivery_once_and_wait_for_nobody(
    database: Database, customer_id: UUID
) -> None:
    for path in range(5):
        endpoint(database, customer_id, f"https://example.com/{path}")
    for number in range(20):
        emit(database, customer_id, number)

    def claim(_: int) -> list[UUID]:
        found: list[UUID] = []
        while True:
            with database.system() as session:
                claimed = webhook_deliveries.claim(session, 3, lease_seconds=60, most_of_endpoint=2)
            if not claimed:
                return found
            found += [sending.delivery_id for sending in claimed]

    with database.system() as session:
        held = webhook_deliveries.claim(session, 1, lease_seconds=60, most_of_endpoint=1)
        with ThreadPoolExecutor(4) as threads:
            found = [each for of_one in threads.map(claim, range(4)) for each in of_one]
    found += [sending.delivery_id for sending in held]
    assert len(found) == len(set(found))
    assert len(found) + len(claim(0)) == 100


def test_a_slow_endpoint_does_not_hold_up_others(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    endpoint(database, customer_id, f"{receiver.url}/slow")
    endpoint(database, customer_id, f"{receiver.url}/fast")
    for number in range(100):
        emit(database, customer_id, number)

    async def run() -> None:
        ended = asyncio.Event()
        quick = settings.model_copy(update={"webhook_poll_seconds": 0.05})
        running = asyncio.create_task(Deliverer(quick, database, LOOPBACK).run(ended))
        await asyncio.to_thread(eventually, lambda: len(receiver.of("/fast")) == 100, what="all to the fast one")
        assert len(receiver.of("/slow")) == AT_ONCE_TO_AN_ENDPOINT
        ended.set()
        receiver.go_on.set()
        await running

    asyncio.run(run())


def test_of_an_endpoint_that_fails_one_delivery_is_tried_at_a_time(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    receiver.answers = [500]
    endpoint(database, customer_id, receiver.url)
    for number in range(6):
        emit(database, customer_id, number)
    assert deliver(settings, database) == AT_ONCE_TO_AN_ENDPOINT
    assert deliver(settings, database) == 1


def test_what_a_killed_deliverer_had_claimed_is_delivered_by_another(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    made = endpoint(database, customer_id, f"{receiver.url}/slow")
    emit(database, customer_id)
    environment = {
        **os.environ,
        "BPT_DATABASE_URL": settings.database_url.get_secret_value(),
        "BPT_SYSTEM_DATABASE_URL": settings.system_database_url.get_secret_value(),
        "BPT_REDIS_URL": settings.redis_url.get_secret_value(),
        "BPT_OBJECTS_URL": settings.objects_url,
        "BPT_WEBHOOK_INSECURE": "1",
        "BPT_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    process = subprocess.Popen([sys.executable, "-m", "worker.webhooks"], env=environment)
    try:
        eventually(lambda: bool(receiver.received), what="the first attempt")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 1)
    assert timedelta(seconds=15) < delivery.next_at - datetime.now(UTC) <= timedelta(seconds=30)
    assert deliver(settings, database) == 0, "the lease of the one that died still holds"
    receiver.go_on.set()
    make_due(database)
    assert deliver(settings, database) == 1
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 2)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1


def test_a_late_failure_of_an_attempt_that_was_replaced_changes_nothing(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    made = endpoint(database, customer_id, "https://example.com")
    emit(database, customer_id)
    claims = []
    for _ in range(2):
        with database.system() as session:
            claims += webhook_deliveries.claim(session, 1, lease_seconds=-1, most_of_endpoint=1)
    first, second = claims
    with database.system() as session:
        webhook_deliveries.failed(session, first, 500, "late", retry_seconds=[HOUR] * 9, failing_days=5)
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.attempts, delivery.last_error) == (2, None)
    with database.system() as session:
        webhook_deliveries.delivered(session, second, 200)
        webhook_deliveries.failed(session, second, 500, "late", retry_seconds=[HOUR] * 9, failing_days=5)
    (delivery,) = shown(database, customer_id, made)
    assert (delivery.state, delivery.last_error) == (DeliveryState.DELIVERED, None)


def test_what_resolves_to_a_private_address_at_the_time_of_sending_is_not_sent(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    rebinding = Outside(insecure=True, resolve=lambda _: answers.pop(0))
    url = receiver.url.replace("127.0.0.1", "rebinding.test")
    rebinding.check(url)
    made = endpoint(database, customer_id, url)
    emit(database, customer_id)
    deliver(settings, database, rebinding)
    assert receiver.received == []
    (delivery,) = shown(database, customer_id, made)
    assert delivery.last_error == "nothing is sent to this URL: its host has an address that is not public"


def test_the_connection_goes_to_the_judged_address_and_host_stays_the_name(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    # Two closed doors first: the addresses of a name are tried one after the other.
    outside = Outside(LOOPBACK.networks, True, lambda _: ["127.0.0.2", "127.0.0.3", "127.0.0.1"])
    endpoint(database, customer_id, receiver.url.replace("127.0.0.1", "hooks.test"))
    emit(database, customer_id)
    deliver(settings, database, outside)
    (request,) = receiver.received
    assert request.headers["Host"] == f"hooks.test:{receiver.url.rsplit(':', 1)[1]}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_asks_for_the_name_and_believes_no_other(
    settings: Settings, database: Database, customer_id: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"]
    subprocess.run([*made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    outside = Outside(LOOPBACK.networks, resolve=lambda _: ["127.0.0.1"])
    with Receiver.start(tls) as receiver:
        for name, state in (("hooks.test", DeliveryState.DELIVERED), ("other.test", DeliveryState.PENDING)):
            there = endpoint(database, customer_id, receiver.url.replace("127.0.0.1", name))
            emit(database, customer_id)
            deliver(settings, database, outside)
            (delivery, *_) = shown(database, customer_id, there)
            assert (delivery.state, asked[-1]) == (state, name)
    assert "certificate verify failed" in str(delivery.last_error)


def test_of_an_answer_without_an_end_little_is_read(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver
) -> None:
    made = endpoint(database, customer_id, f"{receiver.url}/endless")
    emit(database, customer_id)
    deliver(settings, database, webhook_timeout_seconds=2)
    assert [delivery.state for delivery in shown(database, customer_id, made)] == [DeliveryState.DELIVERED]


def test_a_proxy_of_the_environment_is_not_asked(
    settings: Settings, database: Database, customer_id: UUID, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    made = endpoint(database, customer_id, receiver.url)
    emit(database, customer_id)
    deliver(settings, database)
    assert [delivery.state for delivery in shown(database, customer_id, made)] == [DeliveryState.DELIVERED]
