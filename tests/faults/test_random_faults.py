"""A few of the schedules of `python -m benchmarks.faults`, which has two hundred."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.faults import Run, running

SCHEDULES = 4
JOBS = 4


def test_whatever_is_killed_frozen_or_emptied_no_job_is_lost_doubled_or_stuck(short_directory: Path) -> None:
    directory = short_directory / "random-faults"
    directory.mkdir()
    with running(directory) as run:
        run.prepare()
        for number in range(SCHEDULES):
            run.schedule(random.Random(f"2:{number}"), JOBS)
        findings = run.settled()
        assert findings.fine, findings
        assert len(run.ledger.jobs) == SCHEDULES * JOBS
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
