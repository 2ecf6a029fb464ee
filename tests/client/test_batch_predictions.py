"""Batch predictions: what is sent, what is shown, and results that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpt_client import errors
from bpt_client.cli import main
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server

CSV = b"image,prompt_set\na.jpg,birds:3\n"
USED = {"name": "birds", "version": 3, "artifact_sha256": "ab", "backbone": "vit", "backbone_fingerprint": "f"}


def job(state: str = "queued", content: bytes = CSV, **given: Any) -> dict[str, Any]:
    file = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    result = {"images": 1, "rows": 1, "errors": 0, "files": {"csv": file}} if state == "succeeded" else None
    known = {"id": "job_1", "state": state, "dataset": "ds_1", "prompt_sets": [USED], "top_k": 5, "images": 1}
    return {**known, "created_at": "2026-01-02T03:04:05Z", "result": result, **given}


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "bpt_key", timeout=5) as client:
        yield client


def test_what_is_not_given_is_not_sent(server: Server, client: Client) -> None:
    server.will(server.json(job(), 201))
    made = client.batch_predictions.create("ds_1", ["birds@production"])
    client.batch_predictions.create(
        "ds_1", ("birds", "quality:4"), split="test", top_k=3, priority="low", metadata={"a": "b"}
    )
    first, second = (json.loads(request.body) for request in server.received)
    assert first == {"dataset": "ds_1", "prompt_sets": ["birds@production"]}
    assert second == {
        **{"dataset": "ds_1", "prompt_sets": ["birds", "quality:4"], "split": "test", "top_k": 3},
        "priority": "low",
        "metadata": {"a": "b"},
    }
    assert [(used.name, used.version) for used in made.prompt_sets] == [("birds", 3)]
    assert made.result is None


def test_waiting_ends_with_the_job_and_tells_a_failure(server: Server, client: Client) -> None:
    server.will(server.json(job("running", progress={"done": 0, "total": 1})), server.json(job("succeeded")))
    done = client.batch_predictions.wait("job_1")
    assert done.result is not None
    assert done.result.files["csv"].bytes == len(CSV)
    server.will(server.json(job("failed", error={"code": "out_of_memory", "detail": "no room"})))
    with pytest.raises(errors.BatchPredictionFailed, match="no room"):
        client.batch_predictions.wait("job_1")


def test_results_are_written_whole_or_not_at_all(server: Server, client: Client, tmp_path: Path) -> None:
    server.will(server.json(job("succeeded")), server.raw(200, CSV, Content_Type="text/csv; charset=utf-8"))
    client.batch_predictions.download("job_1", tmp_path / "results.CSV")
    assert server.received[1].path == "/v1/batch-predictions/job_1/results?format=csv"
    assert (tmp_path / "results.CSV").read_bytes() == CSV
    server.will(server.json(job("succeeded")), server.raw(200, CSV[:-1], Content_Type="text/csv"))
    with pytest.raises(errors.TransferCorrupt):
        client.batch_predictions.download("job_1", tmp_path / "short.csv")
    unfinished = {"code": "job_unfinished", "detail": "the job is running"}
    server.will(server.json(job("running")), server.json(unfinished, 409))
    with pytest.raises(errors.Conflict):
        client.batch_predictions.download("job_1", tmp_path / "early.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["results.CSV"]


@pytest.mark.parametrize(("name", "wanted"), [("results.xlsx", None), ("results", None), ("results.csv", "xlsx")])
def test_a_format_that_is_none_is_refused_before_anything_is_asked(
    server: Server, client: Client, tmp_path: Path, name: str, wanted: str | None
) -> None:
    with pytest.raises(errors.InputError, match="csv"):
        client.batch_predictions.download("job_1", tmp_path / name, wanted)
    assert not server.received


def test_the_command_waits_shows_progress_and_writes_the_results(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")
    events = [
        server.event(1, "state", state="running"),
        server.event(2, "started", device="cpu", resumed=False),
        server.event(3, "progress", done=1, total=1),
        server.event(4, "state", state="succeeded"),
    ]
    server.will(
        server.json(server.dataset(state="ready")),
        server.json(job(), 201),
        server.events(*events),
        server.json(job("succeeded", progress={"done": 1, "total": 1})),
        server.json(job("succeeded")),
        server.raw(200, CSV, Content_Type="text/csv"),
    )
    output = tmp_path / "results.csv"
    arguments = ["predict-batch", "ds_1", "--prompt-set", "birds", "--prompt-set", "birds:3", "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    assert json.loads(server.received[1].body)["prompt_sets"] == ["birds", "birds:3"]
    assert output.read_bytes() == CSV
    assert "birds:3: 1/1 images" in told.err
    assert "succeeded" in told.out
    with pytest.raises(SystemExit) as ended:
        main(["predict-batch", "ds_1", "--prompt-set", "birds", "--output", "results.xlsx"])
    assert ended.value.code == 1
    assert len(server.received) == 6


def test_a_comparison_is_shown_with_its_classes_and_its_flips(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")
    compared = {
        **{"images": 4, "errors": 0, "lost": 2, "won": 1, "agreement": 0.25, "p_value": 0.5},
        "a": {"prompt_set": "birds:1", "accuracy": 0.75, "calibration_error": None},
        "b": {"prompt_set": "birds:2", "accuracy": 0.5, "calibration_error": 0.125},
        "classes": [{"name": "crow", "images": 1, "a": 1.0, "b": 0.0}],
    }
    server.will(server.json(compared))
    with pytest.raises(SystemExit):
        main(["batch-predictions", "compare", "job_1", "birds:1", "birds:2"])
    told = capsys.readouterr().out
    assert all(each in told for each in ("75.0 %", "50.0 %", "12.5 %", "crow", "2 that birds:1 is right about"))
    server.will(server.page({"image": "1.png", "flip": "lost", "labels": ["owl"], "a": ["owl"], "b": ["crow"]}))
    with pytest.raises(SystemExit):
        main(["batch-predictions", "compare", "job_1", "birds:1", "birds:2", "--flips"])
    assert "1.png" in capsys.readouterr().out
    at = "/v1/batch-predictions/job_1/comparison"
    assert [request.path for request in server.received] == [
        f"{at}?a=birds%3A1&b=birds%3A2",
        f"{at}/images?limit=100&a=birds%3A1&b=birds%3A2",
    ]
