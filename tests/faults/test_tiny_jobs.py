"""Databases die, are emptied, or fall silent, and then anything at random: jobs are accepted or refused in time, and
done once. `python -m benchmarks.faults` does the same for longer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from benchmarks.faults import JOB, VICTIMS, Run, running
from tests.service import eventually, has_ended

SCHEDULES, JOBS = 2, 4
AWAY = 10.0  # seconds
LEASE = 3.0  # seconds, as benchmarks/faults.py has it


@pytest.fixture(scope="module")
def run(short_directory: Path) -> Iterator[Run]:
    directory = short_directory / "databases"
    directory.mkdir()
    with running(directory) as service:
        service.prepare()
        yield service


def family(run: Run) -> list[psutil.Process]:
    return psutil.Process(run._process.pid).children(recursive=True)


def ask(run: Run, count: int) -> None:
    for _ in range(count):
        run._ask()


def emptied(run: Run) -> bool:
    with redis.Redis.from_url(run.environment["BPT_REDIS_URL"].replace("redis+socket", "unix")) as client:
        return bool(client.flushall())


def test_workers_whose_clocks_are_hours_apart_let_one_another_be(run: Run) -> None:
    """Leases live on the database's clock. See benchmarks/fault_service.py; it is so in all the tests here."""
    environments = [worker.environ() for worker in VICTIMS["worker"](family(run))]
    assert {each["SKEW_SECONDS"] for each in environments} == {"3600", "-3600"}
    left = "SELECT extract(epoch FROM lease_expires_at - now()) AS seconds FROM jobs WHERE lease_expires_at IS NOT NULL"
    ask(run, 4)
    leases = eventually(lambda: run._rows(left) or None, what="a lease")
    assert all(abs(lease.seconds) < 60 for lease in leases)
    assert run.settled().fine
    assert len(run.reclaims()) <= 1, "jobs are not taken from somebody who lives; a machine that stalls may cost one"


def test_a_redis_that_is_killed_and_emptied_costs_no_job(run: Run) -> None:
    workers = VICTIMS["worker"](family(run))
    for worker in workers:
        worker.suspend()
    ask(run, 12)
    (server,) = VICTIMS["redis"](family(run))
    server.kill()
    asked_at = time.monotonic()
    ask(run, 4)  # while it is away, and on its way back
    assert time.monotonic() - asked_at < 15
    eventually(lambda: VICTIMS["redis"](family(run)) not in ([], [server]) or None, what="another Redis")
    eventually(lambda: emptied(run) or None, what="emptying it")
    for worker in workers:
        worker.resume()
    assert run.settled().fine
    assert set(run.ledger.answers) <= {"201", "503", "ConnectError", "ReadError", "RemoteProtocolError"}


def test_a_redis_that_is_silent_holds_up_no_request(run: Run) -> None:
    (server,) = VICTIMS["redis"](family(run))
    server.suspend()
    try:
        asked_at = time.monotonic()
        ask(run, 2)
        assert time.monotonic() - asked_at < 15
    finally:
        server.resume()
    assert run.settled().fine


def test_while_redis_is_away_jobs_are_accepted_and_afterwards_each_is_done_once(run: Run) -> None:
    """For ten seconds here; the benchmark has a minute."""
    before, answers = len(run.ledger.jobs), run.ledger.answers["201"]
    asked_at = time.monotonic()
    run.redis_away(AWAY, 6)
    assert AWAY <= time.monotonic() - asked_at < AWAY + 5, "the answers came without waiting for it"
    assert (len(run.ledger.jobs) - before, run.ledger.answers["201"] - answers) == (6, 6)
    findings = run.settled()
    assert findings.fine, findings


def test_a_killed_postgres_loses_nothing_that_was_answered(run: Run) -> None:
    ask(run, 6)
    (server,) = VICTIMS["postgres"](family(run))
    server.kill()
    ask(run, 2)
    findings = run.settled()
    assert findings.fine, findings


def test_whatever_is_killed_frozen_or_emptied_no_job_is_lost_doubled_or_stuck(run: Run) -> None:
    before = len(run.ledger.jobs)
    for number in range(SCHEDULES):
        run.schedule(random.Random(f"2:{number}"), JOBS)
    findings = run.settled()
    assert findings.fine, findings
    assert len(run.ledger.jobs) - before == SCHEDULES * JOBS
    assert sum(run.faults.values()) >= SCHEDULES
    the_ledger_is_believed_by_nobody_blindly(run)


def the_ledger_is_believed_by_nobody_blindly(run: Run) -> None:
    """What it would look like if jobs were lost, or were there that nobody was told of."""
    key, job = next(iter(run.ledger.jobs.items()))
    run.ledger.jobs[key] = "job_" + "0" * 32
    assert run.settled().lost == ["job_" + "0" * 32]
    del run.ledger.jobs[key]
    assert run.settled().unknown == 1
    run.ledger.jobs[key] = job
    assert run.settled().fine


def test_a_silent_postgres_is_a_503_in_time_and_a_trainer_stops_before_its_lease_is_over(run: Run) -> None:
    body = {"dataset": run._dataset, "prompt_set": "long", **JOB}
    body["hyperparameters"] = {**JOB["hyperparameters"], "epochs": 5000}
    with run._http() as http:
        job = http.post("/v1/tuning-jobs", json=body).json()["id"]
        eventually(lambda: http.get(f"/v1/tuning-jobs/{job}").json()["progress"], what="an epoch")
        (trainer,) = VICTIMS["trainer"](family(run))
        servers = [process for process in family(run) if process.name() == "postgres"]
        for server in servers:
            server.suspend()
        try:
            eventually(lambda: has_ended(trainer) or None, seconds=LEASE, what="the end of the trainer")
            silent_since = time.monotonic()
            with httpx.Client(base_url=run._url, headers=http.headers, timeout=60) as other:
                reply = other.get(f"/v1/tuning-jobs/{job}")
            assert reply.status_code == 503, reply.text
            assert "Retry-After" in reply.headers
            assert time.monotonic() - silent_since < 30
        finally:
            for server in servers:
                server.resume()
        eventually(lambda: http.post(f"/v1/tuning-jobs/{job}/cancel").status_code == 200 or None, what="cancelling")
        eventually(lambda: http.get(f"/v1/tuning-jobs/{job}").json()["state"] == "cancelled" or None, what="its end")
    findings = run.settled()
    assert findings.unknown == 1, "the long job, which is in no ledger"
    findings.unknown = 0
    assert findings.fine
