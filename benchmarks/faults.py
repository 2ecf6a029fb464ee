"""Random faults over many tiny jobs: is any lost, finished twice, or stuck?

    python -m benchmarks.faults [--schedules 200] [--seed 1] [--jobs 10] [--redis-away 60] [--json FILE]

The whole service runs on loopback, with leases of 3 seconds and two workers that tune a ViT of two small blocks, the
clock of the one an hour fast, that of the other an hour slow. A schedule is three seconds in which a client asks for
jobs while processes are killed, frozen or asked to end: API, workers, starters, trainers, sweep, Redis (also emptied),
PostgreSQL. The client asks again, with the same Idempotency-Key, until it has an answer, and keeps a ledger of what it
was told.

After every tenth schedule the service is left alone until all is done, or nothing has come to its end for 60 seconds:
how much waits is a matter of the machine, that it goes on is not. Then ledger and database must agree: every job that
was accepted has succeeded, once, with one version of its prompt set, its events numbered without a gap; and there is no
job that nobody was told of. Exit status 1, and the seed, where they do not.

At the end Redis is away for a minute, while jobs are asked for as before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4
from zipfile import ZipFile

import httpx
import psutil
import redis
from rich.console import Console
from rich.progress import track
from sqlalchemy import create_engine, text

from bpt_core import samples
from bpt_store.models import JobKind
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings
from bpt_store.up import environment_of

SCHEDULE_SECONDS = 3.0
SCHEDULES_IN_A_ROW = 10
STUCK_SECONDS = 60.0
FAULTS = (2, 4)  # at least and at most, of a schedule
FROZEN_SECONDS = (0.2, 5.0)  # longer than a lease, and shorter
SHORT_TIMES = {
    "BPT_LEASE_SECONDS": "3",
    "BPT_HEARTBEAT_SECONDS": "0.75",  # and a worker stops as long before the end of its lease
    "BPT_SWEEP_SECONDS": "0.2",
    "BPT_RING_AFTER_SECONDS": "1",
    "BPT_RETRY_BACKOFF_SECONDS": "0.1",
    "BPT_STOP_PATIENCE_SECONDS": "2",
    "BPT_DEAF_SECONDS": "10",
    "BPT_MAX_FAILURES": "1000",  # whoever is hit so often is not to blame here
    "BPT_QUEUED_JOBS_LIMIT": "100000",
    "BPT_THREADS": "1",
    "BPT_INGEST_DECODERS": "1",
    "OMP_NUM_THREADS": "1",
}
JOB: dict[str, Any] = {
    "method": {"type": "bpt-bilinear", "prompts": 2, "rank": 1},
    "hyperparameters": {"epochs": 3, "batch_size": 8, "head_fit_epochs": 1, "views": 1},
}
VICTIMS: dict[str, Callable[[list[psutil.Process]], list[psutil.Process]]] = {
    "api": lambda family: _running(family, "api.app"),
    "worker": lambda family: _running(family, "--queues tune"),
    "starter": lambda family: _running(family, "worker.starter"),
    "trainer": lambda family: [each for each in family if _says(each.name) == "tiny_trainer"],
    "sweep": lambda family: _running(family, "worker.sweep"),
    "redis": lambda family: [each for each in family if _says(each.name) == "redis-server"],
    "postgres": lambda family: [each for each in family if _says(each.name) == "postgres"][:1],
}
KINDS = [
    *(("kill", victim) for victim in ("api", "worker", "starter", "trainer", "trainer", "sweep", "redis", "postgres")),
    *(("freeze", victim) for victim in ("api", "worker", "worker", "trainer", "sweep", "redis")),
    *(("terminate", victim) for victim in ("api", "worker")),
    *(("empty", "redis"), ("ring", "twenty times")),
]


@dataclass
class Ledger:
    """What the client was told: the job it got for each of its keys."""

    jobs: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    answers: Counter[str] = field(default_factory=Counter)


@dataclass
class Findings:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unknown: int = 0
    gaps: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.unknown or self.gaps)


class Run:
    """One service, one customer, one dataset, and what is done to them."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[bytes], url: str) -> None:
        self.data_dir, self._process, self._url = data_dir, process, url
        self.environment = environment_of(data_dir)
        self._engine = create_engine(self.environment["BPT_SYSTEM_DATABASE_URL"], pool_pre_ping=True)
        self.ledger = Ledger()
        self.faults: Counter[str] = Counter()
        self._key = self._dataset = ""

    def close(self) -> None:
        self._engine.dispose()

    def prepare(self) -> None:
        command = [sys.executable, "-m", "bpt_store.admin", "bootstrap", "--data-dir", str(self.data_dir)]
        admin = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().split()[-1]
        with httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {admin}"}, timeout=60) as http:
            customer = http.post("/v1/customers", json={"name": "acme"}).json()["id"]
            self._key = http.post("/v1/api-keys", json={"customer": customer, "name": "key"}).json()["token"]
        with self._http() as http:
            sent = {"params": {"name": "flowers"}, "headers": {"Content-Type": "application/zip"}}
            dataset = http.post("/v1/datasets", content=_flowers(), **sent).json()["id"]  # type: ignore[arg-type]
            while (state := http.get(f"/v1/datasets/{dataset}").json()["state"]) != "ready":
                if state == "failed":
                    raise SystemExit("the dataset failed")
                time.sleep(0.1)
        self._dataset = dataset

    def schedule(self, chance: random.Random, jobs: int) -> None:
        """Three seconds of requests and faults."""
        begun = time.monotonic()
        acts: list[tuple[float, Callable[[], None]]] = []
        for _ in range(jobs):
            acts.append((chance.uniform(0, SCHEDULE_SECONDS), self._ask))
        for _ in range(chance.randint(*FAULTS)):
            kind, victim = chance.choice(KINDS)
            pick, seconds = chance.random(), chance.uniform(*FROZEN_SECONDS)
            acts.append(
                (
                    chance.uniform(0, SCHEDULE_SECONDS),
                    lambda kind=kind, victim=victim, pick=pick, seconds=seconds: self._fault(  # type: ignore[misc]
                        kind, victim, pick, seconds
                    ),
                )
            )
        threads = []
        for at, act in sorted(acts, key=lambda each: each[0]):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            threads.append(threading.Thread(target=act))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def settled(self) -> Findings:
        """Leave the service alone until all that was accepted is done, or nothing goes on any more, and compare."""
        left, deadline = self._unfinished(), time.monotonic() + STUCK_SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            before, left = left, self._unfinished()
            if len(left) < len(before):
                deadline = time.monotonic() + STUCK_SECONDS
        findings = Findings(stuck=left)
        rows = {row.id.hex: row for row in self._rows(_JOBS)}
        for job in self.ledger.jobs.values():
            row = rows.get(job.removeprefix("job_"))
            if row is None or (row.state != "succeeded" and job not in left):
                findings.lost.append(job)
            elif row.ends > 1 or row.versions > 1:
                findings.doubled.append(job)
            elif row.events != row.last_event:
                findings.gaps.append(job)
        findings.unknown = len(rows) - len(self.ledger.jobs)
        return findings

    def redis_away(self, seconds: float, jobs: int) -> None:
        """Redis is killed and stays away, for nobody starts it again; meanwhile jobs are asked for."""
        supervisor = psutil.Process(self._process.pid)
        (server,) = VICTIMS["redis"](supervisor.children(recursive=True))
        supervisor.suspend()
        try:
            server.kill()
            ended = time.monotonic() + seconds
            for _ in range(jobs):
                self._ask()
            time.sleep(max(0.0, ended - time.monotonic()))
        finally:
            supervisor.resume()
        self.faults["redis away"] += 1

    def reclaims(self) -> list[float]:
        """Seconds from the last sign of life of an attempt to the beginning of the next one."""
        return [float(row.seconds) for row in self._rows(_RECLAIMS)]

    def count(self) -> dict[str, int]:
        return {
            "jobs": len(self.ledger.jobs),
            "requests": sum(self.ledger.answers.values()),
            "attempts": int(self._rows("SELECT coalesce(sum(attempt), 0) AS n FROM jobs WHERE kind = 'tune'")[0].n),
        }

    # --- the client ---

    def _ask(self) -> None:
        """Ask for a job until there is an answer, however often."""
        key = str(uuid4())
        self.ledger.asked += 1
        body = {"dataset": self._dataset, "prompt_set": f"set-{key[:8]}", **JOB}
        while True:
            try:
                with self._http() as http:
                    reply = http.post("/v1/tuning-jobs", json=body, headers={"Idempotency-Key": key})
            except httpx.HTTPError as error:
                self.ledger.answers[type(error).__name__] += 1
            else:
                self.ledger.answers[str(reply.status_code)] += 1
                if reply.status_code == 201:
                    self.ledger.jobs[key] = reply.json()["id"]
                    return
                if reply.status_code < 500 and reply.status_code != 409:
                    raise SystemExit(f"refused: {reply.text}")
            time.sleep(0.2)

    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {self._key}"}, timeout=15)

    # --- faults ---

    def _fault(self, kind: str, victim: str, pick: float, seconds: float) -> None:
        name = f"{kind} {victim}"
        with suppress(psutil.NoSuchProcess, redis.RedisError, OSError):
            if kind == "empty":
                with redis.Redis.from_url(self.environment["BPT_REDIS_URL"].replace("redis+socket", "unix")) as client:
                    client.flushall()
            elif kind == "ring":
                self._ring(20)
            else:
                found = VICTIMS[victim](psutil.Process(self._process.pid).children(recursive=True))
                if not found:
                    return
                process = found[int(pick * len(found))]
                if kind == "kill":
                    process.kill()
                elif kind == "terminate":
                    process.terminate()
                else:
                    process.suspend()
                    time.sleep(seconds)
                    process.resume()
            self.faults[name] += 1

    def _ring(self, times: int) -> None:
        names = ("database_url", "system_database_url", "redis_url", "objects_url")
        settings = Settings.model_validate({name: self.environment[f"BPT_{name.upper()}"] for name in names})
        with celery_app(settings) as app:
            for _ in range(times):
                Doorbell(app).ring(JobKind.TUNE)

    # --- the database ---

    def _unfinished(self) -> list[str]:
        accepted = set(self.ledger.jobs.values())
        rows = self._rows("SELECT id FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')")
        return [job for row in rows if (job := f"job_{row.id.hex}") in accepted]

    def _rows(self, query: str) -> Sequence[Any]:
        """Tried again while PostgreSQL is on its way back."""
        deadline = time.monotonic() + STUCK_SECONDS
        while True:
            try:
                with self._engine.connect() as connection:
                    return connection.execute(text(query)).all()
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


_JOBS = """
    SELECT id, state, last_event,
           (SELECT count(*) FROM job_events AS e WHERE e.job_id = jobs.id) AS events,
           (SELECT count(*) FROM job_events AS e
            WHERE e.job_id = jobs.id AND e.type = 'state' AND e.data ->> 'state' = 'succeeded') AS ends,
           (SELECT count(*) FROM prompt_set_versions AS v WHERE v.job_id = jobs.id) AS versions
    FROM jobs WHERE kind = 'tune'
"""
_RECLAIMS = """
    SELECT extract(epoch FROM min(e.created_at) - (
               SELECT max(before.created_at) FROM job_events AS before
               WHERE before.job_id = e.job_id AND before.attempt = e.attempt - 1
                 AND NOT (before.type = 'state' AND before.data ->> 'state' = 'queued'))) AS seconds
    FROM job_events AS e JOIN jobs ON jobs.id = e.job_id
    WHERE jobs.kind = 'tune' AND e.attempt > 1 GROUP BY e.job_id, e.attempt
"""


@contextmanager
def running(directory: Path) -> Iterator[Run]:
    """The service, and the end of it and of all its processes."""
    ready = directory / "ready.json"
    command = [sys.executable, "-m", "benchmarks.fault_service", "--data-dir", str(directory / "data")]
    with (directory / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--ready-file", str(ready)],
            env={**os.environ, **SHORT_TIMES},
            stdout=log,
            stderr=log,
        )
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit((directory / "service.log").read_text())
            time.sleep(0.1)
        run = Run(directory / "data", process, json.loads(ready.read_text())["url"])
        try:
            yield run
        finally:
            run.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=10, help="asked for in a schedule")
    parser.add_argument("--redis-away", type=float, default=60.0, metavar="SECONDS", help="at the end; 0: not at all")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    console = Console()
    with TemporaryDirectory(prefix="bpt-faults-") as directory, running(Path(directory)) as run:
        run.prepare()
        for number in track(range(options.schedules), description="schedules", console=console):
            run.schedule(random.Random(f"{options.seed}:{number}"), options.jobs)
            if (number + 1) % SCHEDULES_IN_A_ROW == 0 or number + 1 == options.schedules:
                findings = run.settled()
                if not findings.fine:
                    console.print(f"seed {options.seed}, up to schedule {number}: {findings}")
                    raise SystemExit(1)
        if options.redis_away:
            run.redis_away(options.redis_away, options.jobs)
            if not (findings := run.settled()).fine:
                console.print(f"Redis away for {options.redis_away:g} seconds: {findings}")
                raise SystemExit(1)
        results = summary(run)
    console.print_json(json.dumps(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def summary(run: Run) -> dict[str, Any]:
    reclaims = sorted(run.reclaims())
    return {
        **run.count(),
        "lost": 0,
        "finished_twice": 0,
        "stuck": 0,
        "reclaims": len(reclaims),
        "reclaim_seconds_p50": median(reclaims) if reclaims else None,
        "reclaim_seconds_p99": quantiles(reclaims, n=100)[98] if len(reclaims) > 1 else None,
        "faults": dict(sorted(run.faults.items())),
        "answers": dict(sorted(run.ledger.answers.items())),
    }


def _flowers() -> bytes:
    out = BytesIO()
    with ZipFile(out, "w") as archive:
        for split, count in (("train", 6), ("val", 2)):
            for label in range(2):
                for number in range(count):
                    picture = BytesIO()
                    samples.draw(label, 100 * label + 10 * count + number).resize((16, 16)).save(picture, "PNG")
                    archive.writestr(f"{split}/{samples.CLASS_NAMES[label]}/{number}.png", picture.getvalue())
    return out.getvalue()


def _running(family: list[psutil.Process], word: str) -> list[psutil.Process]:
    return [each for each in family if word in " ".join(_says(each.cmdline) or [])]


def _says(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except psutil.Error:
        return None


if __name__ == "__main__":
    main()
