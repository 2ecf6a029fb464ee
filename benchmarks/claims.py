"""Claims: what one costs with few jobs waiting and with very many.

    python -m benchmarks.claims [--jobs 100 10000 100000] [--customers 1000] [--claims 300] [--json FILE]

A PostgreSQL of its own, with the tables of the service; so many jobs of so many customers wait in it. Then claims, one
after another as workers make them, each a transaction of its own, and beside them the look of the sweep for what waits.
The goal is that they cost the same, however many jobs wait.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from alembic import command
from pydantic import SecretStr
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import make_url, text

from bpt_store import jobs, roles, scheduling
from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.models import JobKind
from bpt_store.settings import Settings
from migrations.config import alembic_config

JOBS = """
    INSERT INTO jobs (customer_id, kind, state, payload, created_at)
    SELECT customers.id, 'tune', 'queued', '{}', now() - random() * interval '1 day'
    FROM (SELECT id, row_number() OVER () - 1 AS number FROM customers) AS customers
    JOIN generate_series(0, :jobs - 1) AS job ON job % :customers = customers.number
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 10_000, 100_000])
    parser.add_argument("--customers", type=int, default=1_000)
    parser.add_argument("--claims", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    with (
        TemporaryDirectory(prefix="bpt-claims-") as directory,
        EmbeddedServices(Path(directory) / "embedded") as services,
    ):
        results = [
            measure(_database(services, f"claims_{count}"), count, min(options.customers, count), options.claims)
            for count in track(options.jobs, description="filling and claiming")
        ]
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def measure(database: Database, count: int, customers: int, claims: int) -> dict[str, Any]:
    """Milliseconds of claims and of the sweep's look, with `count` jobs waiting."""
    with database.system() as session:
        made = text("INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, :customers) AS n")
        session.execute(made, {"customers": customers})
        session.execute(text(JOBS), {"jobs": count, "customers": customers})
    with database.system() as session:
        session.execute(text("ANALYZE"))
    claimed, looked = [], []
    for _ in range(min(claims, count)):
        begun = time.perf_counter()
        with database.system() as session:
            assert jobs.claim(session, JobKind.TUNE, "worker", 3600) is not None
        claimed.append(1e3 * (time.perf_counter() - begun))
        begun = time.perf_counter()
        with database.system() as session:
            scheduling.kinds_waiting(session, 0)
        looked.append(1e3 * (time.perf_counter() - begun))
    database.close()
    return {
        "jobs": count,
        "customers": customers,
        "claim_ms": {"p50": median(claimed), "p99": quantiles(claimed, n=100)[98]},
        "look_ms": {"p50": median(looked), "p99": quantiles(looked, n=100)[98]},
    }


def show(results: list[dict[str, Any]]) -> None:
    table = Table("jobs waiting", "customers", "claim p50", "p99", "look p50", "p99", box=box.SIMPLE)
    for each in results:
        times = [f"{each[name][part]:.2f} ms" for name in ("claim_ms", "look_ms") for part in ("p50", "p99")]
        table.add_row(f"{each['jobs']:,}", f"{each['customers']:,}", *times)
    Console().print(table)
    ratio = results[-1]["claim_ms"]["p50"] / results[0]["claim_ms"]["p50"]
    Console().print(f"a claim with {results[-1]['jobs']:,} jobs takes {ratio:.2f} times as long as with the fewest")


def _database(services: EmbeddedServices, name: str) -> Database:
    superuser = make_url(services.superuser_url)

    def url(role: str) -> SecretStr:
        return SecretStr(
            superuser.set(username=role, password="benchmark", database=name).render_as_string(hide_password=False)
        )

    settings = Settings(
        database_url=url("bpt_customer"),
        system_database_url=url("bpt_system"),
        owner_database_url=url("bpt_owner"),
        superuser_database_url=SecretStr(services.superuser_url),
        redis_url=SecretStr(services.redis_url),
        objects_url="memory:///",
    )
    roles.prepare(settings)
    assert settings.owner_database_url is not None
    command.upgrade(alembic_config(settings.owner_database_url.get_secret_value()), "head")
    return Database(settings)


if __name__ == "__main__":
    main()
