"""What the API's own layers cost: routes that show metadata, beside default FastAPI handlers that do the same.

    python -m benchmarks.api [--seconds 3] [--rounds 7] [--clients 4] [--json FILE]

Two servers under the same uvicorn, on one PostgreSQL started for this: the API (role `api`), and a FastAPI application
of this file, without middleware, whose handlers authenticate by the same query, open the same transaction under
row-level security, ask the same and answer the same. The same closed loop asks both in turn. A ratio is the median over
rounds of the ratio within a round. CPU time is that of the server's process: less shaken by what else a machine does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
from fastapi import Depends, FastAPI, Header, Response
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy.orm import Session

from api.prompt_set_schemas import Alias, PromptSet
from api.routes import aliases as alias_routes
from api.routes import prompt_sets as prompt_set_routes
from api.schemas import Page
from api.tuning_schemas import TuningJob
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_store import aliases, customers, ids, jobs, prompt_sets
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.models import Dataset, DatasetState, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.settings import load_settings
from bpt_store.up import environment_of

GOAL_RATIO = 0.8
PROMPT_SETS = 20  # a page
SERVERS = {"bare": "benchmarks.api:bare", "service": "api.app:create_app"}
_BACKBONE = "vit_tiny_patch8_64.mae"


# --- the bare server ---------------------------------------------------------------------------------------------


def bare() -> FastAPI:
    """What the handlers ask and answer is the API's own; how they come to be called is plain FastAPI."""
    app, database = FastAPI(), Database(load_settings())

    def open_session(authorization: Annotated[str, Header()]) -> Iterator[Session]:
        with database.lookup() as session:
            identity = customers.authenticate(session, authorization.removeprefix("Bearer "))
        assert identity.customer_id is not None
        with database.customer(identity.customer_id) as session:
            yield session

    customer_session = Depends(open_session)

    @app.get("/v1/prompt-sets")
    def list_prompt_sets(session: Session = customer_session) -> Page[PromptSet]:
        return prompt_set_routes.list_prompt_sets(session)

    @app.get("/v1/prompt-sets/{name}")
    def get_prompt_set(name: str, session: Session = customer_session) -> PromptSet:
        return prompt_set_routes.get_prompt_set(name, session)

    @app.get("/v1/prompt-sets/{name}/aliases/{alias}")
    def get_alias(name: str, alias: str, response: Response, session: Session = customer_session) -> Alias:
        return alias_routes.get_prompt_set_alias(name, alias, session, response)

    @app.get("/v1/tuning-jobs/{job_id}")
    def get_tuning_job(job_id: str, session: Session = customer_session) -> TuningJob:
        return TuningJob.of(jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE))

    return app


# --- what is asked -----------------------------------------------------------------------------------------------


def fill(database: Database) -> tuple[str, dict[str, str]]:
    """-> a customer's key, and what to ask with it."""
    recipe = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0).to_dict()
    with database.system() as session:
        customer_id = customers.create(session, "benchmark").id
        _, token = customers.create_key(session, customer_id, "benchmark", CUSTOMER_SCOPES)
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="flowers", state=DatasetState.READY, latest=1)
        session.add(dataset)
        session.flush()
        payload: dict[str, Any] = {"backbone": _BACKBONE, "prompt_set": "flowers-1", "recipe": recipe}
        payload |= {"search": None, "budget": None, "continue_from": None, "estimated_seconds": 1.0, "parameters": 7}
        on: dict[str, Any] = {"dataset_id": dataset.id, "dataset_version": None}
        job = jobs.create(session, customer_id, JobKind.TUNE, payload=payload, **on)
        jobs.cancel(session, job.id, JobKind.TUNE)  # while it is queued, its place in the queue is asked for, too
        for number in range(1, PROMPT_SETS + 1):
            made = prompt_sets.get_or_create(session, customer_id, f"flowers-{number}")
            publication = Publication(b"artifact", _BACKBONE, "f", ["a", "b"], recipe, 7, {})
            prompt_sets.publish(session, made.id, publication, job_id=job.id, dataset_id=dataset.id)
            aliases.move(session, made.id, "production", 1, actor="benchmark")
        return token, {
            "a prompt set": "/v1/prompt-sets/flowers-1",
            f"a page of {PROMPT_SETS} prompt sets": "/v1/prompt-sets",
            "an alias": "/v1/prompt-sets/flowers-1/aliases/production",
            "a tuning job": f"/v1/tuning-jobs/{ids.public(ids.JOB, job.id)}",
        }


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """Under measurement; a list entry is a round: requests a second, and milliseconds of CPU time a request."""

    process: psutil.Process
    port: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, what: str, path: str, token: str, clients: int, seconds: float) -> None:
        before, begun = _cpu_seconds(self.process), time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            done = sum(pool.map(lambda _: self._ask(path, token, begun + seconds), range(clients)))
        elapsed, spent = time.perf_counter() - begun, _cpu_seconds(self.process) - before
        self.rates.setdefault(what, []).append(done / elapsed)
        self.cpu.setdefault(what, []).append(1000 * spent / done)

    def _ask(self, path: str, token: str, end: float) -> int:
        """How many requests were answered until then, one after another on one connection."""
        connection, done = http.client.HTTPConnection("127.0.0.1", self.port), 0
        while time.perf_counter() < end:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            reply = connection.getresponse()
            body = reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{reply.status}: {body.decode()}")
            done += 1
        connection.close()
        return done


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def running(factory: str, environment: dict[str, str]) -> Iterator[Server]:
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--no-access-log", "--port", "0"]
    log = Path(environment["BPT_WORK_DIRECTORY"]) / factory.replace(":", ".")
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        told = ""
        while "running on " not in told:
            if process.poll() is not None:
                raise RuntimeError(told)
            time.sleep(0.1)
            told = log.read_text()
        yield Server(psutil.Process(process.pid), int(told.partition("127.0.0.1:")[2].split()[0].strip('",')))
    finally:
        process.terminate()
        process.wait(timeout=30)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=4, help="that ask at once")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with (
        TemporaryDirectory(prefix="bpt-api-") as name,
        Progress(console=Console(stderr=True), transient=True) as progress,
        EmbeddedServices(Path(name)),
        ExitStack() as started,
    ):
        environment = {**os.environ, **environment_of(Path(name)), "BPT_ROLE": "api", "BPT_WORK_DIRECTORY": name}
        subprocess.run([sys.executable, "-m", "migrations"], env=environment, check=True)
        os.environ.update(environment)
        database = Database(load_settings())
        token, asked = fill(database)
        database.close()
        servers = {name: started.enter_context(running(each, environment)) for name, each in SERVERS.items()}
        task = progress.add_task("asking", total=len(asked) * (options.rounds + 1) * len(servers))
        for measured in range(options.rounds + 1):
            for what, path in asked.items():
                for server in servers.values():
                    server.measure(what, path, token, options.clients, options.seconds if measured else 0.5)
                    progress.advance(task)
            if not measured:  # threads, connections and compiled statements are there now
                for server in servers.values():
                    server.rates.clear()
                    server.cpu.clear()
    show(servers, options.clients)
    if options.json:
        facts = {name: {key: asdict(server)[key] for key in ("rates", "cpu")} for name, server in servers.items()}
        options.json.write_text(json.dumps({"machine": platform.machine(), **facts}, indent=1))


def show(servers: dict[str, Server], clients: int) -> None:
    ours, theirs = servers["service"], servers["bare"]
    table = Table(
        *("shown", "bare, requests/s", "service, requests/s", f"ratio (goal {GOAL_RATIO})"),
        *("bare, CPU ms", "service, CPU ms", "ratio of CPU"),
        title=f"{clients} clients, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        box=box.SIMPLE,
    )
    for what in ours.rates:
        ratio = median(mine / bare for mine, bare in zip(ours.rates[what], theirs.rates[what], strict=True))
        rates = f"{median(theirs.rates[what]):.0f}", f"{median(ours.rates[what]):.0f}"
        cpu = f"{median(theirs.cpu[what]):.2f}", f"{median(ours.cpu[what]):.2f}"
        of_cpu = median(bare / mine for mine, bare in zip(ours.cpu[what], theirs.cpu[what], strict=True))
        table.add_row(what, *rates, f"{ratio:.2f}", *cpu, f"{of_cpu:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
