"""The service is saved while it works, goes on from there in another directory, and after a kill with what it has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
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


def test_a_service_saved_while_it_works_goes_on_elsewhere_and_killed_there_goes_on_again(
    service: Service, short_directory: Path
) -> None:
    elsewhere, place = (short_directory / name for name in ("elsewhere", "backups"))
    customer = service.new_customer()
    dataset = customer.upload(archives.flowers())
    done = customer.finished(customer.tune(dataset))
    job = customer.tune(dataset, **LONG)
    eventually(lambda: customer.job(job)["progress"], what="a first epoch")
    run("bpt_store.backup", place, "--data-dir", service.data_dir)
    told, events = predictions(customer), customer.events(done)
    run("bpt_store.restore", place, "--data-dir", elsewhere)
    (elsewhere / "admin-key").write_text(service.admin_key)
    with Service.start(elsewhere, dict(os.environ)) as saved:
        again = Customer(saved, customer.id, customer.key_id, customer.key)
        assert (predictions(again), again.events(done)) == (told, events)
        finished = again.finished(job)
        assert (finished["state"], finished["attempt"], finished["result"]["version"]) == ("succeeded", 2, 2)
        (resumed,) = [event["data"]["resumed"] for event in again.events(job) if event["type"] == "started"][1:]
        assert resumed
        # What was saved can be worked with: its shards are read once more.
        last = again.tune(dataset, "again", **LONG)
        eventually(lambda: again.job(last)["progress"], what="a first epoch")
        family = psutil.Process(saved.process.pid).children(recursive=True)
        saved.process.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=30)[1] == []
    with Service.start(elsewhere, dict(os.environ)) as killed:
        again = Customer(killed, customer.id, customer.key_id, customer.key)
        assert (predictions(again), again.job(done)["result"]) == (told, done["result"])
        finished = again.finished(last)
        assert (finished["state"], finished["result"]["version"]) == ("succeeded", 1)
    customer.finished(job)  # here, too
