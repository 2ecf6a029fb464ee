"""The name and the metadata of a dataset are changed; nothing else of it can be."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def url(http: TestClient) -> str:
    headers = {"Content-Type": "application/zip"}
    made = http.post("/v1/datasets?name=birds", content=b"zip", headers=headers)
    assert made.status_code == 201, made.text
    return str(made.headers["Location"])


def test_what_is_named_is_changed_and_the_rest_stays(http: TestClient, url: str) -> None:
    before = http.get(url).json()
    renamed = http.patch(url, json={"name": "birds of the lake"})
    assert (renamed.status_code, renamed.json()) == (200, {**before, "name": "birds of the lake"})
    labelled = http.patch(url, json={"metadata": {"team": "a"}}).json()
    assert labelled == {**before, "name": "birds of the lake", "metadata": {"team": "a"}}
    assert http.patch(url, json={}).json() == http.get(url).json() == labelled


@pytest.mark.parametrize(
    "body", [{"name": ""}, {"name": "x" * 201}, {"metadata": {"k" * 65: ""}}, {"metadata": []}, {"state": "ready"}]
)
def test_what_cannot_be_is_refused_and_changes_nothing(http: TestClient, url: str, body: dict[str, Any]) -> None:
    before = http.get(url).json()
    refused = http.patch(url, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert http.get(url).json() == before
