"""`bpt up`: the single machine, restartable on its data whatever happened to it."""

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


def test_a_killed_service_leaves_no_process_and_goes_on_with_its_data(short_directory: Path) -> None:
    data_dir = short_directory / "killed"
    with Service.start(data_dir, dict(os.environ)) as first:
        customer = first.new_customer()
        dataset = customer.upload(archives.flowers())
        done = customer.finished(customer.tune(dataset))
        job = customer.tune(dataset, hyperparameters={"epochs": 8, "batch_size": 4, "head_fit_epochs": 2, "views": 1})

        def has_progress() -> dict[str, Any] | None:
            progress: dict[str, Any] | None = customer.job(job)["progress"]
            return progress

        eventually(has_progress, what="a first epoch")
        family = psutil.Process(first.process.pid).children(recursive=True)
        first.process.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=30)[1] == []
    with Service.start(data_dir, dict(os.environ)) as second:
        again = Customer(second, customer.id, customer.key_id, customer.key)
        assert again.job(done)["result"] == done["result"]
        finished = again.finished(job)
        assert (finished["state"], finished["result"]["version"]) == ("succeeded", 2)
        with again.http() as http:
            form, files = {"prompt_sets": "flowers:1"}, {"images": archives.picture()}
            reply = http.post("/v1/predictions", data=form, files=files)
        assert reply.status_code == 200


def test_a_port_that_is_taken_is_a_clear_error_and_leaves_nothing_running(service: Service, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    arguments = [sys.executable, "-m", "bpt_store.up", "--data-dir", str(tmp_path / "d"), "--port", port]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_directory_in_use_is_a_clear_error(service: Service) -> None:
    arguments = [sys.executable, "-m", "bpt_store.up", "--data-dir", str(service.data_dir), "--port", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(service.data_dir) in done.stderr
