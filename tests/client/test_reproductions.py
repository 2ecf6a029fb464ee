"""`bpt prompt-sets reproduce` and `client.prompt_sets.reproduce`."""

from __future__ import annotations

from typing import Any

import pytest

from bpt_client import Client
from bpt_client.models import TensorDifference

EVALUATION = {"images": 8, "loss": 0.5, "top1": 0.875}
EQUAL = {"is_equal": True, "largest": 0.0, "relative": 0.0}
APART = {"is_equal": False, "largest": 0.5, "relative": 0.03125}
REPRODUCES = {"prompt_set": "flowers", "version": 3, "artifact_sha256": "ab"}


def reproduction(verdict: str) -> dict[str, Any]:
    learned = {"artifact_sha256": "ab", "metrics": {"best_epoch": 2, "val": EVALUATION, "test": None}}
    return {
        "verdict": verdict,
        "tensors": {"prompts": EQUAL if verdict == "identical" else APART, "head.bias": EQUAL},
        **{"split": "val", "images": 8, "agreement": 0.75},
        **{"then": {**learned, "code_version": None}, "now": {**learned, "code_version": "2.0"}},
    }


def test_a_job_is_asked_for_and_shown(server: Any, bpt: Any) -> None:
    server.will(server.json(server.job(state="queued", reproduces=REPRODUCES), 201))
    code, told, _ = bpt("prompt-sets", "reproduce", "flowers:3")
    assert (code, "flowers:3" in told, "verdict" in told) == (0, True, False)
    assert [(each.method, each.path) for each in server.received] == [
        ("POST", "/v1/prompt-sets/flowers/versions/3/reproduce")
    ]
    assert bpt("prompt-sets", "reproduce", "flowers")[0] == 1


@pytest.mark.parametrize(("verdict", "ends"), [("identical", 0), ("equivalent", 0), ("different", 1)])
def test_waited_for_it_tells_the_difference_and_says_by_its_exit_code_whether_it_matters(
    server: Any, bpt: Any, verdict: str, ends: int
) -> None:
    done = server.job(state="succeeded", reproduces=REPRODUCES, reproduction=reproduction(verdict))
    asked = server.json(server.job(state="queued", reproduces=REPRODUCES), 201)
    server.will(asked, server.events(server.event(1, "state", state="succeeded")), server.json(done))
    code, told, _ = bpt("prompt-sets", "reproduce", "flowers:3", "--wait")
    assert code == ends
    assert all(each in told for each in (verdict, "75.0 % of 8 images (val)", "?, 2.0"))
    assert ("differs by 3.12e-02 of its norm, by 5.00e-01 at most" in told) == (verdict != "identical")


def test_the_difference_is_read_as_dataclasses(server: Any) -> None:
    server.will(server.json(server.job(reproduces=REPRODUCES, reproduction=reproduction("different"))))
    with Client(server.url, "bpt_key") as client:
        job = client.prompt_sets.reproduce("flowers", 3)
    assert str(job.reproduces) == "flowers:3"
    assert job.reproduction is not None
    assert job.reproduction.tensors["prompts"] == TensorDifference(False, 0.5, 0.03125)
    assert job.reproduction.now.metrics.val is not None
    assert job.reproduction.now.metrics.val.score == 0.875
