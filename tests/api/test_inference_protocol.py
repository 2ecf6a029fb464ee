"""What holds below /v2 whatever comes: errors as the protocol has them, roles, readiness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from api.problems import RETRY_AFTER_SECONDS, STATUS, Problem
from bpt_store.settings import Role, Settings

NOWHERE = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/nothing")


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """Of the role api, with no database; below /v2/raise/ every error can be had by its code."""
    app = create_app(
        Settings(
            database_url=NOWHERE,
            system_database_url=NOWHERE,
            redis_url=SecretStr("redis://127.0.0.1:1"),
            objects_url=f"file://{tmp_path}",
            role=Role.API,
        )
    )

    def fail(code: str) -> None:
        raise Problem(code, f"this is {code}") if code in STATUS else ZeroDivisionError(code)

    for prefix in ("/v2/raise", "/v1/raise"):
        app.get(f"{prefix}/{{code}}")(fail)
    return app


@pytest.fixture
def http(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def test_every_error_is_the_protocol_s_below_v2_and_a_problem_document_elsewhere(http: TestClient) -> None:
    for code, status in STATUS.items():
        reply = http.get(f"/v2/raise/{code}")
        assert reply.json() == {"error": f"this is {code}"}
        assert reply.headers["content-type"] == "application/json"
        assert reply.status_code == (400 if status == 422 else status)
        assert reply.headers.get("retry-after") == (str(RETRY_AFTER_SECONDS) if status in (429, 503) else None)
        assert reply.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert reply.headers["x-request-id"]
        other = http.get(f"/v1/raise/{code}")
        assert (other.json()["code"], other.status_code) == (code, status)
        assert other.headers["content-type"] == "application/problem+json"


def test_a_bug_is_500_and_tells_nothing(http: TestClient) -> None:
    reply = http.get("/v2/raise/secret")
    assert reply.status_code == 500
    assert list(reply.json()) == ["error"]
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("GET", "/v2/models/a/b/c", 404), ("PUT", "/v2", 405), ("GET", "/v20", None)],
)
def test_paths_that_are_none(http: TestClient, method: str, path: str, status: int | None) -> None:
    reply = http.request(method, path)
    if status is None:
        assert reply.json()["code"] == "not_found"
    else:
        assert (reply.status_code, list(reply.json())) == (status, ["error"])


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_the_role_api_sends_to_predict(http: TestClient, path: str) -> None:
    reply = http.get(path)
    assert reply.status_code == 421
    assert "role predict" in reply.json()["error"]


@pytest.mark.parametrize("verb", ["", "/ready", "/infer"])
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_model_needs_a_key(http: TestClient, verb: str, version: str) -> None:
    reply = http.request("POST" if verb == "/infer" else "GET", f"/v2/models/birds{version}{verb}")
    assert (reply.status_code, list(reply.json())) == (401, ["error"])


def test_readiness_is_of_the_backbones_and_the_database(app: FastAPI, settings: Settings) -> None:
    for database, is_ready, status in ((settings, False, 503), (settings, True, 200), (None, True, 503)):
        one = create_app(database.model_copy(update={"role": Role.API})) if database else app
        # In place of what would load a backbone.
        one.state.serving = SimpleNamespace(is_ready=is_ready, begin=lambda: None, close=lambda: None)
        with TestClient(one) as http:
            reply = http.get("/v2/health/ready")
            assert reply.status_code == status
            assert ("retry-after" in reply.headers) is (status == 503)
            assert list(reply.json()) == ["ready" if status == 200 else "error"]
            assert http.get("/v2/health/live").json() == {"live": True}
            assert http.get("/v2").json() == {
                "name": "bpt-service",
                "version": "1",
                "extensions": ["binary_tensor_data", "classification"],
            }
