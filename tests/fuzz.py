"""Requests that schemathesis makes up from the OpenAPI, and what the application answers held against it.

    python -m tests.fuzz [--minutes 10] [--seed 1]      # or: make fuzz MINUTES=10

The application runs in this process, on a PostgreSQL, a Redis and a storage of its own; no worker runs, so what is
queued stays queued. A customer who owns one of everything asks, and an administrator. Requests follow one another as
the replies suggest: what one has made is shown, changed and deleted by others.

Some of what schemathesis finds is meant to be as it is: `EXPECTED` says what, and why.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import schemathesis
from alembic import command
from fastapi import FastAPI
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.openapi import from_asgi
from schemathesis.python.asgi import shutdown_lifespans

from api.app import create_app
from api.idempotency import HEADER
from bpt_store import customers, roles
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from migrations.config import alembic_config
from tests.conftest import settings_for
from tests.estate import Estate, settle

ADMINISTRATION = "^/v1/(customers|api-keys)"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
_SHOWN = 2000  # characters of a reply


# Which requests an OpenAPI allows and the application refuses, by the parameter that it names, since they depend on
# more than that.
DEPENDS = {
    ("createDataset", None): "what the query may hold, on the type of the body",
    ("createDataset", "name"): "whether it is needed, on the type of the body",
    ("createDatasetVersion", None): "what the query may hold, on the type of the body",
    ("createDatasetVersion", ""): "each item once, and one at least",
    ("createUpload", ""): "a name or a dataset, not both",
    ("createPredictions", "prompt_sets"): "every image needs one, its own or that of all",
    ("listUsage", "from"): "not after the last day",
    ("setPromptSetGate", "metric"): "which there are, on the task of the dataset",
}


def _is_no_matter_of_form(case: Case[Any], response: Response) -> bool:
    if case.operation.path.startswith("/v2/"):
        return True
    problem: dict[str, Any] = response.json()
    identifier: str = case.operation.definition.raw["operationId"]
    return bool(problem["code"] != "invalid_request") or (identifier, problem["param"]) in DEPENDS


def _has_an_unknown_header(case: Case[Any], _response: Response) -> bool:
    return any("unknown" in name for name in case.headers or ())


def _is_a_name_in_an_ids_place(case: Case[Any], _response: Response) -> bool:
    return bool(case.operation.path == "/v1/webhook-endpoints/{endpoint_id}/deliveries/replay")


def _is_the_audit_log(case: Case[Any], _response: Response) -> bool:
    return str(case.operation.path).endswith("/audit-log")


def _is_no_part_from_the_beginning(case: Case[Any], _response: Response) -> bool:
    return str(case.operation.path).endswith(("/gate", "/aliases/{alias}", "/versions/{version}"))


# (what schemathesis calls it, where it is expected): why.
EXPECTED: dict[tuple[str, Callable[[Case[Any], Response], bool]], str] = {
    ("RejectedPositiveData", _is_no_matter_of_form): "an OpenAPI tells what requests look like, not what there is",
    ("AcceptedNegativeData", _has_an_unknown_header): "headers that nobody has declared are nobody's",
    ("EnsureResourceAvailability", _is_no_part_from_the_beginning): "what has been made has not all of it at once",
    ("UseAfterFree", _is_the_audit_log): "it stays when its customer is deleted",
    ("AllowHeaderMismatch", _is_a_name_in_an_ids_place): "GET shows a delivery, whatever it is called",
}


@dataclass
class Found:
    """`wrong`: what -> a request and the reply that show it. `answers`: by operation and status."""

    wrong: dict[str, str] = field(default_factory=dict)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)

    def saw(self, recorder: ScenarioRecorder) -> None:
        for case_id, interaction in recorder.interactions.items():
            operation, response = recorder.cases[case_id].value.operation.label, interaction.response
            if response is not None:
                self.answers[operation, response.status_code] += 1
            for check in recorder.checks.get(case_id, ()):
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    reply = "" if response is None else response.text[:_SHOWN]
                    what = f"{operation}: {failure.title} ({check.name})\n{failure.message}"
                    self.wrong.setdefault(what, f"{check.failure_info.code_sample}\n{reply}")
                elif check.status is Status.ERROR:
                    self.wrong.setdefault(f"{operation}: {check.name} could not be done", "")


def fuzz(
    app: FastAPI, token: str, *, administers: bool, phases: Sequence[str] = PHASES, seed: int, cases: int, seconds: int
) -> Found:
    """`cases`: of an operation in a phase, at most; each operation has some that are always tried, besides."""
    config = {
        "seed": seed,
        "max-time": seconds,
        "continue-on-failure": True,
        "generation": {"max-examples": cases, "database": "none", "no-shrink": True},
        "auth": {"openapi": {"HTTPBearer": {"bearer": token}}},
        "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
    }
    whole = from_asgi("/openapi.json", app, config=schemathesis.Config.from_dict(config))
    choose = whole.include if administers else whole.exclude
    found = Found()
    for event in from_schema(choose(path_regex=ADMINISTRATION)).execute():
        if isinstance(event, events.ScenarioFinished):
            found.saw(event.recorder)
        elif isinstance(event, events.NonFatalError):
            found.wrong.setdefault(f"{event.label}: {event.info.title}", str(event.value))
        elif isinstance(event, events.FatalError):
            raise event.exception
    return found


_number = itertools.count()


@schemathesis.hook
def before_call(_context: HookContext, case: Case[Any], _kwargs: object) -> None:
    """The same Idempotency-Key again and again would be one request, and be answered once."""
    key = case.headers.get(HEADER) if case.headers else None
    if isinstance(key, str) and 0 < len(key) < 200:
        case.headers[HEADER] = f"{next(_number)}-{key}"


@schemathesis.hook
def filter_failure(_context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    expected = [holds for name, holds in EXPECTED if name == type(failure).__name__]
    return not any(holds(case, response) for holds in expected)


# --- by hand -----------------------------------------------------------------------------------------------------


@contextmanager
def _prepared(directory: Path) -> Iterator[tuple[Settings, Database, Estate]]:
    with EmbeddedServices(directory / "embedded", durable=False) as services:
        settings = settings_for(services, "fuzz", directory / "objects")
        settings = settings.model_copy(update={"log_level": "CRITICAL"})
        roles.prepare(settings)
        assert settings.owner_database_url is not None
        command.upgrade(alembic_config(settings.owner_database_url.get_secret_value()), "head")
        database = Database(settings)
        yield settings, database, settle(database, Objects(settings.objects_url), directory, "owner")
        shutdown_lifespans()
        database.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="in all; stops earlier where nothing is left to try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=200, help="of an operation in a phase, at most")
    options = parser.parse_args(arguments)
    found: dict[str, Found] = {}
    with (
        TemporaryDirectory(prefix="bpt-fuzz-") as directory,
        Progress(console=Console(stderr=True), transient=True) as progress,
        _prepared(Path(directory)) as (settings, database, estate),
    ):
        with database.system() as session:
            _, administrator = customers.create_key(session, None, "administrator", [Scope.ADMIN])
        app = create_app(settings)
        # The administrator comes last: what he suspends and deletes may be the customer.
        for who, token, share in (("customer", estate.token, 0.8), ("administrator", administrator, 0.2)):
            progress.add_task(f"asking as a {who}", total=None)
            seconds = max(1, round(60 * share * options.minutes))
            administers = who == "administrator"
            found[who] = fuzz(
                app, token, administers=administers, seed=options.seed, cases=options.cases, seconds=seconds
            )
    show(found)
    return int(any(each.wrong for each in found.values()))


def show(found: dict[str, Found]) -> None:
    console = Console()
    table = Table("asked by", "operations", "requests", "2xx", "4xx", "5xx", "wrong", box=box.SIMPLE)
    for who, each in found.items():
        by_class: Counter[int] = Counter()
        for (_, status), count in each.answers.items():
            by_class[status // 100] += count
        operations, requests = len({operation for operation, _ in each.answers}), each.answers.total()
        counts = (operations, requests, by_class[2], by_class[4], by_class[5], len(each.wrong))
        table.add_row(who, *(f"{count:,}" for count in counts))
        for what, example in each.wrong.items():
            console.print(f"\n{what}\n\n{example}\n", markup=False, highlight=False)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
