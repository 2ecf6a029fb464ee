"""`bpt tune` and `bpt jobs`."""

from __future__ import annotations

from typing import Annotated

import typer

from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, LimitOption, connect, find_dataset
from bpt_client.models import TuningJob
from bpt_client.terminal import errors, first, percent, show_facts, show_json, show_table, size
from bpt_client.watch import JobWatch

app = typer.Typer(no_args_is_help=True, help="Look at tuning jobs, follow and cancel them.")

JobArgument = Annotated[str, typer.Argument(help="The job's id (job_...).")]


def tune(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Id (ds_...), or the name of one that is ready.")],
    prompt_set: Annotated[str, typer.Option(help="Gets a new version; made if absent.")],
    method: Annotated[str | None, typer.Option(help="bpt-bilinear (default) or linear-probe.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A backbone the service offers.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Number of prompts, m.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the two factors, p.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Tune a prompt set on a dataset. What is not given is the service's default."""
    given = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    with connect(context) as client:
        job = client.tuning_jobs.create(
            find_dataset(client, dataset).id,
            prompt_set,
            backbone=backbone,
            method=method,
            prompts=prompts,
            rank=rank,
            hyperparameters={name: value for name, value in given.items() if value is not None},
            seed=seed,
        )
        if follow:
            job = _follow(client, job)
    _show(job, json)


@app.command("list")
def list_jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, running for example.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List tuning jobs, newest first."""
    with connect(context) as client:
        found = first(client.tuning_jobs.list(state=state), limit)
    if json:
        show_json(found)
        return
    rows = [
        (job.id, job.state, job.prompt_set, job.method.type, _epochs(job), job.attempt, job.created_at) for job in found
    ]
    show_table(("id", "state", "prompt set", "method", "epoch", "attempt", "created"), rows)


@app.command()
def show(context: typer.Context, job: JobArgument, json: JsonOption = False) -> None:
    """Show a tuning job."""
    with connect(context) as client:
        found = client.tuning_jobs.get(job)
    _show(found, json)


@app.command()
def follow(context: typer.Context, job: JobArgument, json: JsonOption = False) -> None:
    """Show a job's progress until it ends; exit code 1 unless it succeeds."""
    with connect(context) as client:
        found = _follow(client, client.tuning_jobs.get(job))
    _show(found, json)


@app.command()
def cancel(context: typer.Context, job: JobArgument) -> None:
    """Cancel a job; one that runs winds down first."""
    with connect(context) as client:
        found = client.tuning_jobs.cancel(job)
    show_facts([("id", found.id), ("state", found.state)])


def _follow(client: Client, job: TuningJob) -> TuningJob:
    # Progress goes to standard error, so that --json leaves nothing else on standard output.
    with JobWatch(errors(), job.prompt_set) as watch:
        watch.show_all(client.tuning_jobs.follow(job.id))
    return client.tuning_jobs.wait(job.id)


def _epochs(job: TuningJob) -> str | None:
    return f"{job.progress.epoch}/{job.progress.epochs}" if job.progress else None


def _show(job: TuningJob, json: bool) -> None:
    if json:
        show_json(job)
        return
    result, error, method = job.result, job.error, job.method
    tokens = f", {method.prompts} prompts, rank {method.rank}" if method.prompts else ""
    show_facts(
        [
            ("id", job.id),
            ("state", job.state),
            ("error", f"{error.detail} ({error.code})" if error else None),
            ("prompt set", f"{result.prompt_set}:{result.version}" if result else job.prompt_set),
            ("dataset", job.dataset),
            ("backbone", job.backbone),
            ("method", method.type + tokens),
            ("parameters", job.parameters or None),
            ("epoch", _epochs(job)),
            ("attempt", job.attempt or None),
            ("best epoch", result.best_epoch if result else None),
            ("validation", percent(result.val.top1) if result else None),
            ("test", percent(result.test.top1) if result and result.test else None),
            ("artifact", size(result.artifact_bytes) if result else None),
            ("created", job.created_at),
            ("finished", job.finished_at),
        ]
    )
