"""Checkpoints of a tuning job, and tuning that goes on from a version: as dataclasses and as commands."""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from bpt_client import errors
from bpt_client.cli import main
from bpt_client.client import Client
from bpt_client.models import JobEvent
from bpt_client.watch import JobWatch

if TYPE_CHECKING:
    from tests.client.conftest import Server

NOW = "2026-01-02T03:04:05Z"
VAL = {"images": 8, "loss": 0.4567, "top1": 0.875, "top5": 1.0, "per_class": {}}
BEGUN = {"prompt_set": "birds", "version": 3, "artifact_sha256": "f" * 64, "head": "carried"}
VERSION = {
    "prompt_set": "birds",
    "version": 4,
    "artifact_sha256": "a" * 64,
    "artifact_bytes": 2048,
    "backbone": "vit",
    "backbone_fingerprint": "f",
    "class_names": ["a", "b"],
    "metrics": {"best_epoch": 7, "val": VAL, "test": None, "calibration": None},
    "job": "job_1",
    "job_epoch": 7,
    "continued_from": BEGUN,
    "created_at": NOW,
}


def checkpoint(epoch: int) -> dict[str, Any]:
    facts = {"job": "job_1", "attempt": 2, "score": 0.875, "val": VAL, "artifact_sha256": "a" * 64}
    return {**facts, "epoch": epoch, "artifact_bytes": 2048, "created_at": NOW}


@pytest.fixture
def bpt(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `bpt` against the server -> (exit code, standard output)."""
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def page(*data: dict[str, Any]) -> dict[str, Any]:
    return {"data": [*data], "has_more": False, "next_cursor": None}


def test_checkpoints_and_the_version_of_one_are_typed(server: Server) -> None:
    server.will(server.json(page(checkpoint(8), checkpoint(7))), server.json(VERSION, 201))
    with Client(server.url, "bpt_key", timeout=5) as client:
        found = list(client.tuning_jobs.checkpoints("job_1"))
        version = client.tuning_jobs.publish("job_1", 7, prompt_set="birds")
    assert [(each.epoch, each.val.top1, each.attempt) for each in found] == [(8, 0.875, 2), (7, 0.875, 2)]
    assert server.received[0].path.startswith("/v1/tuning-jobs/job_1/checkpoints")
    assert server.received[1].path == "/v1/tuning-jobs/job_1/checkpoints/7/publish"
    assert json.loads(server.received[1].body) == {"prompt_set": "birds"}
    assert (version.version, version.job_epoch, str(version.continued_from)) == (4, 7, "birds:3")


def test_an_epoch_without_a_checkpoint_is_not_found(server: Server) -> None:
    server.will(server.json({"code": "not_found", "detail": "no"}, 404))
    with Client(server.url, "bpt_key", timeout=5) as client, pytest.raises(errors.NotFound):
        client.tuning_jobs.publish("job_1", 9)
    assert json.loads(server.received[0].body) == {}


def test_commands_list_and_publish(server: Server, bpt: Any) -> None:
    server.will(server.json(page(checkpoint(8), checkpoint(7))))
    code, out = bpt("jobs", "checkpoints", "job_1")
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["8", "87.5", "%", "0.457"]
    server.will(server.json(VERSION, 201))
    code, out = bpt("jobs", "publish", "job_1", "7", "--prompt-set", "birds")
    assert (code, json.loads(server.received[-1].body)) == (0, {"prompt_set": "birds"})
    assert ["prompt", "set", "birds:4"] in [line.split() for line in out.splitlines()]
    assert "job_1, epoch 7" in out
    server.will(server.json(VERSION))
    assert "birds:3" in bpt("prompt-sets", "show", "birds:4")[1]


def test_a_version_to_begin_with_is_sent_and_shown(server: Server, bpt: Any) -> None:
    server.will(server.json(server.dataset()), server.json(server.job(continue_from=BEGUN)))
    code, out = bpt("tune", "ds_1", "--prompt-set", "more", "--continue-from", "birds@production")
    assert code == 0
    assert "birds:3, carried head" in out
    assert json.loads(server.received[-1].body)["continue_from"] == "birds@production"


def test_a_lost_checkpoint_is_said() -> None:
    console = Console(file=StringIO(), width=200)
    with JobWatch(console, "flowers") as watch:
        watch.show(JobEvent(5, 2, "checkpoint_lost", {"epoch": 4, "reason": "it is missing"}))
    assert isinstance(console.file, StringIO)
    assert "the checkpoint of epoch 4 is lost: it is missing" in console.file.getvalue()
