"""What the client makes of answers, good and bad, from a real HTTP server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpt_client import errors
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server

PROBLEM = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "epochs must lie between 1 and 10000",
    "code": "invalid_setting",
    "param": "epochs",
    "request_id": "req_1",
    "errors": [{"param": "epochs", "detail": "too many"}],
}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "bpt_key", timeout=5) as client:
        yield client


def test_the_key_is_sent_as_a_bearer_token(server: Server, client: Client) -> None:
    server.will(server.json(server.dataset()))
    assert client.datasets.get("ds_1").state == "validating"
    assert server.received[0].headers["Authorization"] == "Bearer bpt_key"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidRequest),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (422, errors.InvalidRequest),
        (429, errors.TooManyRequests),
        (500, errors.ServerError),
        (507, errors.ServerError),
    ],
)
def test_a_status_becomes_its_error(server: Server, client: Client, status: int, kind: type[errors.ApiError]) -> None:
    server.will(server.json({**PROBLEM, "status": status}, status))
    with pytest.raises(errors.ApiError) as caught:
        client.tuning_jobs.create("ds_1", "flowers")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id) == (status, "invalid_setting", "epochs", "req_1")
    assert error.errors == ({"param": "epochs", "detail": "too many"},)
    assert str(error) == f"epochs must lie between 1 and 10000 ({status} invalid_setting, request req_1)"


def test_an_error_that_is_no_problem_document_still_has_a_code(server: Server, client: Client) -> None:
    server.will(server.raw(413, b"<h1>too large</h1>", X_Request_Id="req_2"))
    with pytest.raises(errors.InvalidRequest) as caught:
        client.customers.create("x")
    assert (caught.value.code, caught.value.request_id) == ("http_413", "req_2")


def test_an_answer_that_is_not_json_is_unexpected(server: Server, client: Client) -> None:
    server.will(server.raw(200, b"<h1>a login page</h1>"))
    with pytest.raises(errors.UnexpectedAnswer, match="login page"):
        client.datasets.get("ds_1")


def test_a_get_is_tried_again_when_the_connection_breaks_or_the_service_is_away(server: Server, client: Client) -> None:
    away = server.json({**PROBLEM, "code": "database_unavailable"}, 503, retry_after="0")
    server.will(server.raw(cut=True), away, server.json(server.dataset()))
    assert client.datasets.get("ds_1").id == "ds_1"
    assert len(server.received) == 3


def test_a_get_waits_as_long_as_the_service_asks(server: Server, client: Client) -> None:
    server.will(server.json(PROBLEM, 503, retry_after="1"), server.json(server.dataset()))
    began = time.monotonic()
    client.datasets.get("ds_1")
    assert time.monotonic() - began >= 1


def test_a_get_does_not_wait_for_minutes(server: Server, client: Client) -> None:
    server.will(server.json(PROBLEM, 503, retry_after="120"))
    with pytest.raises(errors.Unavailable) as caught:
        client.datasets.get("ds_1")
    assert (caught.value.retry_after_seconds, len(server.received)) == (120, 1)


def test_a_post_is_repeated_under_one_key_by_which_the_service_does_it_once(server: Server, client: Client) -> None:
    away = server.json({**PROBLEM, "code": "database_unavailable"}, 503, retry_after="0")
    busy = server.json({**PROBLEM, "code": "idempotency_in_progress"}, 409)
    for _ in range(2):
        server.will(server.raw(cut=True), away, busy, server.json(server.job()))
        assert client.tuning_jobs.create("ds_1", "flowers").id == "job_1"
    keys = [each.headers["Idempotency-Key"] for each in server.received]
    assert len({each.body for each in server.received}) == 1
    assert len(keys) == 8
    assert [len(set(keys[:4])), len(set(keys[4:])), len(set(keys))] == [1, 1, 2]


def test_what_was_too_fast_is_sent_again_and_a_limit_that_no_pause_helps_with_is_not(
    server: Server, client: Client
) -> None:
    fast = server.json({**PROBLEM, "code": "rate_limited"}, 429, retry_after="1")
    began = time.monotonic()
    server.will(fast, server.json(server.job()))
    assert client.tuning_jobs.create("ds_1", "flowers").id == "job_1"
    assert time.monotonic() - began >= 1
    server.will(server.json({**PROBLEM, "code": "rate_limited"}, 429, retry_after="3600"))
    with pytest.raises(errors.TooManyRequests) as caught:
        client.datasets.get("ds_1")
    assert caught.value.retry_after_seconds == 3600
    server.will(server.json({**PROBLEM, "code": "queue_limit"}, 429, retry_after="0"))
    with pytest.raises(errors.TooManyRequests):
        client.tuning_jobs.create("ds_1", "flowers")
    assert len(server.received) == 4


def test_a_post_is_given_up_after_some_tries_and_at_once_where_it_is_refused(server: Server, client: Client) -> None:
    server.will(server.raw(cut=True))
    with pytest.raises(errors.ConnectionFailed):
        client.tuning_jobs.create("ds_1", "flowers")
    assert len(server.received) == 4
    server.will(server.json({**PROBLEM, "code": "name_taken"}, 409))
    with pytest.raises(errors.Conflict):
        client.customers.create("x")
    assert len(server.received) == 5


def test_what_takes_no_key_is_never_repeated(server: Server, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    server.will(server.raw(cut=True))
    with pytest.raises(errors.ConnectionFailed):
        client.predict([tmp_path / "a.jpg"], "flowers")
    with pytest.raises(errors.ConnectionFailed):
        client.datasets.delete("ds_1")
    assert ["Idempotency-Key" in each.headers for each in server.received] == [False, False]


def test_nobody_listening_is_a_connection_that_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "k") as client, pytest.raises(errors.ConnectionFailed, match=str(port)):
        client.customers.create("x")


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.will(server.json(server.dataset()))
    with Client(server.url, "k") as client:
        assert client.datasets.get("ds_1").id == "ds_1"


def test_a_list_is_drawn_page_by_page(server: Server, client: Client) -> None:
    first = server.page(server.dataset(id="ds_3"), server.dataset(id="ds_2"), cursor="ds_2")
    server.will(first, server.page(server.dataset(id="ds_1")))
    found = client.datasets.list()
    assert [next(found).id, next(found).id] == ["ds_3", "ds_2"]
    assert len(server.received) == 1
    assert [each.id for each in found] == ["ds_1"]
    assert [each.path for each in server.received] == ["/v1/datasets?limit=100", "/v1/datasets?limit=100&after=ds_2"]


def test_a_name_cannot_leave_its_place_in_the_path(server: Server, client: Client) -> None:
    server.will(server.json(PROBLEM, 404))
    with pytest.raises(errors.NotFound):
        client.datasets.get("../customers?x=#y")
    assert server.received[0].path == "/v1/datasets/..%2Fcustomers%3Fx%3D%23y"
    with pytest.raises(errors.InputError):
        client.prompt_sets.get("..")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://host:port"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(errors.InputError):
        Client(url, "k")


@pytest.mark.parametrize("key", ["bpt\n1", "bpt 1", "bpt_é"])
def test_a_key_that_cannot_be_one_is_refused_at_once(key: str) -> None:
    with pytest.raises(errors.InputError, match="key"):
        Client("http://127.0.0.1", key)
