"""The service is saved while it works, and goes on from there in another directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import archives
from tests.service import Customer, Service, eventually

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {"hyperparameters": {"epochs": 8, "batch_size": 4, "head_fit_epochs": 2, "views": 1}}


def run(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, timeout=120)


def predictions(customer: Customer) -> Any:
    with customer.http() as http:
        form, files = {"prompt_sets": "flowers:1"}, {"images": archives.picture()}
        reply = http.post("/v1/predictions", data=form, files=files)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def test_a_service_saved_while_it_works_goes_on_elsewhere(short_directory: Path) -> None:
    first_dir, second_dir, place = (short_directory / name for name in ("first", "second", "backups"))
    with Service.start(first_dir, dict(os.environ)) as first:
        customer = first.new_customer()
        dataset = customer.upload(archives.flowers())
        done = customer.finished(customer.tune(dataset))
        job = customer.tune(dataset, **LONG)
        eventually(lambda: customer.job(job)["progress"], what="a first epoch")
        run("bpt_store.backup", place, "--data-dir", first_dir)
        told, events = predictions(customer), customer.events(done)
    run("bpt_store.restore", place, "--data-dir", second_dir)
    (second_dir / "admin-key").write_text((first_dir / "admin-key").read_text())
    with Service.start(second_dir, dict(os.environ)) as second:
        again = Customer(second, customer.id, customer.key_id, customer.key)
        assert (predictions(again), again.events(done)) == (told, events)
        finished = again.finished(job)
        assert (finished["state"], finished["attempt"], finished["result"]["version"]) == ("succeeded", 2, 2)
        (resumed,) = [event["data"]["resumed"] for event in again.events(job) if event["type"] == "started"][1:]
        assert resumed
        # What was saved can be worked with: its shards are read once more.
        assert again.finished(again.tune(dataset, "again"))["state"] == "succeeded"
