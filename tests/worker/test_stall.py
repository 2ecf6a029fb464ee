"""A process that hangs is killed, and one that takes long is not."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from uuid import UUID

import psutil

from bpt_store.db import Database
from bpt_store.models import JobState
from bpt_store.settings import Settings
from tests.service import eventually, has_ended
from tests.worker.labour import ask, job_of, labour, reasons
from worker.stall import Stall

LIMIT = 0.5


def test_a_frozen_process_is_killed_with_its_group_and_the_next_attempt_goes_better(
    settings: Settings, database: Database, customer_id: UUID, tmp_path: Path
) -> None:
    """The supervisor lives, and its heartbeats with it."""
    note = tmp_path / "helper"
    do = f"""
import pathlib, subprocess, time
if attempt == 1:
    helper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pathlib.Path({str(note)!r}).write_text(f"{{__import__('os').getpid()}} {{helper.pid}} ")
    time.sleep(60)
"""
    job = ask(database, customer_id, do)
    worker = threading.Thread(target=labour, args=(settings,), kwargs={"stall_seconds": LIMIT})
    worker.start()
    said = eventually(lambda: note.exists() and note.read_text().endswith(" ") and note.read_text(), what="a process")
    group = [psutil.Process(int(number)) for number in str(said).split()]
    group[0].suspend()
    worker.join(20)
    assert not worker.is_alive()
    assert all(map(has_ended, group))
    ended = job_of(database, customer_id, job)
    assert (ended.state, ended.attempt, ended.failures) == (JobState.SUCCEEDED, 2, 1)
    assert reasons(database, customer_id, job) == ["labour_stalled: the process did nothing for 0.5 seconds"]


def test_a_job_that_hangs_again_and_again_fails_and_says_what_it_did(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    job = ask(database, customer_id, "import time; print('I wait', flush=True); time.sleep(60)")
    assert labour(settings, stall_seconds=0.2) == 3
    failed = job_of(database, customer_id, job)
    assert failed.error is not None
    assert (failed.state, failed.error["code"], failed.error["log"]) == ("failed", "labour_stalled", ["I wait"])


def test_who_computes_without_a_word_or_speaks_without_computing_does_not_hang(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    computing = "import time\nuntil = time.monotonic() + 1.2\nwhile time.monotonic() < until: pass"
    speaking = "import time\nfor n in range(12):\n    time.sleep(0.1)\n    child.event('epoch', {'epoch': n})"
    jobs = [ask(database, customer_id, do) for do in (computing, speaking)]
    begun = time.monotonic()
    assert labour(settings, stall_seconds=LIMIT) == 2
    assert time.monotonic() - begun > 2.4
    assert [job_of(database, customer_id, job).failures for job in jobs] == [0, 0]


def test_a_process_that_sleeps_hangs_once_it_was_silent_for_the_whole_limit() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        stall = Stall(process.pid, 0.3)
        for _ in range(4):
            time.sleep(0.15)
            assert not stall.hangs()
            stall.heard()
        eventually(lambda: stall.hangs() or None, seconds=5, what="a stall")
        process.kill()
