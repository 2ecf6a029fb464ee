"""A gate from end to end: golden images, a check by a worker, and an alias that moves only to what passed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.prompt_sets import random_prompt_set
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from tests import archives
from tests.published import publish
from tests.service import Service


def always(prompt_set: PromptSet, label: int) -> PromptSet:
    """One that says the same of every image."""
    bias = torch.zeros(len(prompt_set.class_names))
    bias[label] = 9.0
    return replace(prompt_set, head_weight=torch.zeros_like(prompt_set.head_weight), head_bias=bias)


def test_an_alias_moves_only_to_a_version_that_a_worker_found_good_enough(service: Service) -> None:
    customer = service.new_customer()
    golden = customer.upload(archives.pictures(*(f"{'aab'[number % 3]}/{number}.jpg" for number in range(12))))
    assert golden["state"] == "ready", golden
    share = sum(golden["counts"]["a"].values()) / golden["image_count"]
    plain = replace(random_prompt_set(load_backbone(DEFAULT_BACKBONE), depth=None), class_names=("b", "a", "c"))
    name = publish(customer, always(plain, 1), always(plain, 0))
    path = f"/v1/prompt-sets/{name}"
    with customer.http() as http:
        gate = {"dataset": golden["id"], "floor": share, "aliases": ["production"]}
        assert http.put(f"{path}/gate", json=gate).status_code == 200
        alias = f"{path}/aliases/production"
        assert http.put(alias, json={"version": 1}).json()["code"] == "gate_not_passed"
        for version in (1, 2):
            job = customer.finished(http.post(f"{path}/versions/{version}/gate-checks").json())
            assert job["state"] == "succeeded", job
            [check] = http.get(f"{path}/versions/{version}/gate-checks").json()["data"]
            assert check["metrics"] == job["result"]["metrics"][f"{name}:{version}"]
            assert check["metrics"]["top1"] == pytest.approx(share if version == 1 else 1 - share)
            assert check["passed"] == (version == 1)
            assert check["metrics"]["balanced_top1"] == 0.5
        assert http.put(alias, json={"version": 2}).json()["code"] == "gate_not_passed"
        assert http.put(alias, json={"version": 1}).status_code == 200
        assert http.delete(f"/v1/datasets/{golden['id']}").json()["code"] == "dataset_in_use"
