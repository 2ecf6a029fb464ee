"""SIGTERM for a worker, whatever it is at: it ends in order, its job goes back at once, and another one finishes it.

The moments are held without a hook in the service: locks of the test's keep a transaction waiting, SIGSTOP a trainer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, text

from bpt_store.up import environment_of
from tests.service import Customer, Service, eventually

EPOCHS = 2
SHORT: dict[str, Any] = {"hyperparameters": {"epochs": EPOCHS, "batch_size": 4, "head_fit_epochs": 2, "views": 1}}
# Of bpt_customer: the sweep may wait for a lock of the test's, too.
WAITS = "SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND usename = 'bpt_customer'"


@contextmanager
def locked(service: Service, statement: str, **values: Any) -> Iterator[None]:
    """Until the end of the block nobody else gets what this statement locks."""
    engine = create_engine(environment_of(service.data_dir)["BPT_SYSTEM_DATABASE_URL"])
    try:
        with engine.begin() as connection:
            connection.execute(text(statement), values)
            yield
    finally:
        engine.dispose()


Moment = Callable[[Service, Customer, Callable[[], dict[str, Any]], ExitStack], dict[str, Any]]


def fetching_the_dataset(
    service: Service, customer: Customer, ask: Callable[[], dict[str, Any]], held: ExitStack
) -> dict[str, Any]:
    workers = service.processes("--queues tune")
    for worker in workers:
        worker.suspend()
    try:
        job = ask()
        held.enter_context(locked(service, "LOCK TABLE dataset_versions"))
    finally:
        for worker in workers:
            worker.resume()
    eventually(lambda: service.rows(WAITS) or None, what="a supervisor that waits")
    return job


def loading_the_backbone(
    service: Service, customer: Customer, ask: Callable[[], dict[str, Any]], held: ExitStack
) -> dict[str, Any]:
    job = ask()
    child: psutil.Process = eventually(lambda: service.processes("worker.trainer")[1:] or None, what="a trainer")[0]
    child.suspend()
    held.callback(child.resume)
    return job


def storing_an_epoch(
    service: Service, customer: Customer, ask: Callable[[], dict[str, Any]], held: ExitStack
) -> dict[str, Any]:
    """The trainer goes on meanwhile: it evaluates, or has come to its end."""
    held.enter_context(locked(service, "LOCK TABLE job_checkpoints IN SHARE MODE"))
    job = ask()
    eventually(lambda: service.rows(WAITS) or None, what="a supervisor that waits")
    return job


def publishing(
    service: Service, customer: Customer, ask: Callable[[], dict[str, Any]], held: ExitStack
) -> dict[str, Any]:
    job = ask()
    own = "SELECT 1 FROM prompt_sets WHERE customer_id = :id FOR UPDATE"
    held.enter_context(locked(service, own, id=customer.uuid))
    eventually(lambda: service.rows(WAITS) or None, what="a supervisor that waits")
    return job


@pytest.mark.parametrize(
    ("moment", "attempts"),
    [
        (fetching_the_dataset, 2),
        (loading_the_backbone, 2),
        (storing_an_epoch, 2),
        (publishing, 1),  # it is as good as done
    ],
)
def test_a_worker_that_is_stopped_ends_in_order_and_its_job_is_finished_once(
    service: Service, customer: Customer, dataset: dict[str, Any], moment: Moment, attempts: int
) -> None:
    log = service.data_dir / "up.log"
    told_before = len(log.read_bytes())
    with ExitStack() as held:
        job = moment(service, customer, lambda: customer.tune(dataset, **SHORT), held)
        main = service.processes("--queues tune")[0]
        main.send_signal(signal.SIGTERM)
    assert psutil.wait_procs([main], timeout=25)[1] == []
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"], finished["failures"]) == ("succeeded", attempts, 0)
    with customer.http() as http:
        assert [each["version"] for each in http.get("/v1/prompt-sets/flowers/versions").json()["data"]] == [1]
    told = log.read_bytes()[told_before:].decode()
    assert "worker-tune ended with status 0" in told


def test_a_worker_that_is_stopped_while_it_waits_for_work_ends_in_order(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    customer.finished(customer.tune(dataset, **SHORT))  # so it has begun to wait
    log = service.data_dir / "up.log"
    told_before = len(log.read_bytes())
    main = service.processes("--queues tune")[0]
    main.send_signal(signal.SIGTERM)
    assert psutil.wait_procs([main], timeout=25)[1] == []
    eventually(lambda: service.processes("--queues tune") or None, what="another worker")
    assert "worker-tune ended with status 0" in log.read_bytes()[told_before:].decode()
