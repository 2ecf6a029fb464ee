"""`bpt tune` and `bpt jobs`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bpt_client.client import Client
from bpt_client.commands import report_tables
from bpt_client.commands.connection import JsonOption, LimitOption, connect, dataset_reference
from bpt_client.models import ContinuedFrom, MethodSettings, TuningJob, TuningPlan
from bpt_client.terminal import duration, errors, fail, first, percent, show_facts, show_json, show_table, size
from bpt_client.watch import JobWatch

app = typer.Typer(no_args_is_help=True, help="Look at tuning jobs, follow, pause and cancel them.")

JobArgument = Annotated[str, typer.Argument(help="The job's id (job_...).")]


def tune(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Id or name; `:3` behind it means version 3.")],
    prompt_set: Annotated[str, typer.Option(help="Gets a new version; made if absent.")],
    method: Annotated[str | None, typer.Option(help="bpt-bilinear (default), vpt, linear-probe, ..., or auto.")] = None,
    depth: Annotated[str | None, typer.Option(help="shallow (default), deep, deep-top4 or auto.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A backbone the service offers.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Number of prompts, m.")] = None,
    rank: Annotated[str | None, typer.Option(help="Rank of the two factors, p, or auto.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    learning_rate: Annotated[str | None, typer.Option(help="A number, or auto.")] = None,
    weight_decay: Annotated[str | None, typer.Option(help="Of the prompts: a number, or auto.")] = None,
    head_weight_decay: Annotated[str | None, typer.Option(help="A number, or auto.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials for what is auto.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    continue_from: Annotated[
        str | None, typer.Option(help="Begin with this version: name:3, name@alias or name.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes of running; the best so far is published.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="Among your own jobs that wait: low, normal or high.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan: parameters, estimated time.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Tune a prompt set on a dataset. What is not given is the service's default."""
    given = {
        "epochs": epochs,
        "learning_rate": _number_or_auto("--learning-rate", learning_rate, float),
        "weight_decay": _number_or_auto("--weight-decay", weight_decay, float),
        "head_weight_decay": _number_or_auto("--head-weight-decay", head_weight_decay, float),
        "batch_size": batch_size,
    }
    with connect(context) as client:
        wanted: dict[str, Any] = {
            "backbone": backbone,
            "method": method,
            "depth": depth,
            "prompts": prompts,
            "rank": _number_or_auto("--rank", rank, int),
            "hyperparameters": {name: value for name, value in given.items() if value is not None},
            "trials": trials,
            "seed": seed,
            "continue_from": continue_from,
            "max_minutes": max_minutes,
        }
        reference = dataset_reference(client, dataset)
        if dry_run:
            _show_plan(client.tuning_jobs.plan(reference, prompt_set, **wanted), json)
            return
        job = client.tuning_jobs.create(reference, prompt_set, **wanted, priority=priority)
        if follow:
            job = follow_job(client, job)
    show_job(job, json)


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
    show_job(found, json)


@app.command()
def follow(context: typer.Context, job: JobArgument, json: JsonOption = False) -> None:
    """Show a job's progress until it ends; exit code 1 unless it succeeds."""
    with connect(context) as client:
        found = follow_job(client, client.tuning_jobs.get(job))
    show_job(found, json)


@app.command()
def report(context: typer.Context, job: JobArgument, limit: LimitOption = 20, json: JsonOption = False) -> None:
    """Show probable label errors, the hardest images and confused classes; --json has all of them."""
    with connect(context) as client:
        found = client.tuning_jobs.report(job)
    if json:
        show_json(found)
    elif found.error is None:
        report_tables.show(found, limit)
    if found.error is not None:
        fail(f"{found.error.detail} ({found.error.code})")
        raise typer.Exit(1)


@app.command()
def checkpoints(context: typer.Context, job: JobArgument, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List what the epochs of a job left and can be published, newest first."""
    with connect(context) as client:
        found = first(client.tuning_jobs.checkpoints(job), limit)
    if json:
        show_json(found)
        return
    rows = [
        (each.epoch, percent(each.score), f"{each.val.loss:.3f}", size(each.artifact_bytes), each.created_at)
        for each in found
    ]
    show_table(("epoch", "validation", "loss", "artifact", "created"), rows)


@app.command()
def publish(
    context: typer.Context,
    job: JobArgument,
    epoch: Annotated[int, typer.Argument(min=1, help="One that `bpt jobs checkpoints` lists.")],
    prompt_set: Annotated[str | None, typer.Option(help="Gets the new version; by default the job's own.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a checkpoint a version of a prompt set, also while the job runs."""
    with connect(context) as client:
        version = client.tuning_jobs.publish(job, epoch, prompt_set=prompt_set)
    if json:
        show_json(version)
        return
    val = version.metrics.val
    show_facts(
        [
            ("prompt set", f"{version.prompt_set}:{version.version}"),
            ("job", f"{version.job}, epoch {version.job_epoch}"),
            ("validation", percent(val.score) if val else None),
            ("artifact", size(version.artifact_bytes)),
            ("sha256", version.artifact_sha256),
        ]
    )


@app.command()
def cancel(context: typer.Context, job: JobArgument) -> None:
    """Cancel a job; one that runs winds down first."""
    with connect(context) as client:
        found = client.tuning_jobs.cancel(job)
    show_facts([("id", found.id), ("state", found.state)])


@app.command()
def pause(context: typer.Context, job: JobArgument) -> None:
    """Pause a job; one that runs winds down first and keeps its last checkpoint."""
    with connect(context) as client:
        found = client.tuning_jobs.pause(job)
    show_facts([("id", found.id), ("state", found.state)])


@app.command()
def resume(context: typer.Context, job: JobArgument) -> None:
    """Let a paused job go on."""
    with connect(context) as client:
        found = client.tuning_jobs.resume(job)
    show_facts([("id", found.id), ("state", found.state)])


@app.command()
def retry(context: typer.Context, job: JobArgument) -> None:
    """Try a job that failed or was cancelled again, from its last checkpoint if that is still there."""
    with connect(context) as client:
        found = client.tuning_jobs.retry(job)
    show_facts([("id", found.id), ("state", found.state)])


@app.command()
def delete(context: typer.Context, job: JobArgument) -> None:
    """Delete a job that has ended, with its events and checkpoints; versions that it published stay."""
    with connect(context) as client:
        client.tuning_jobs.delete(job)


def follow_job(client: Client, job: TuningJob) -> TuningJob:
    # Progress goes to standard error, so that --json leaves nothing else on standard output.
    with JobWatch(errors(), job.prompt_set) as watch:
        watch.show_all(client.tuning_jobs.follow(job.id))
    return client.tuning_jobs.wait(job.id)


def _number_or_auto(option: str, value: str | None, kind: type[float] | type[int]) -> float | str | None:
    if value is None or value == "auto":
        return value
    try:
        return kind(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor auto", param_hint=option) from None


def _show_plan(plan: TuningPlan, json: bool) -> None:
    if json:
        show_json(plan)
        return
    hyperparameters = sorted(plan.hyperparameters.items())
    show_facts(
        [
            ("backbone", plan.backbone),
            ("continues", _begun(plan.continue_from)),
            ("method", _method(plan.method)),
            ("trials", plan.trials),
            ("parameters", plan.parameters or None),
            ("estimated seconds", round(plan.estimated_seconds)),
            ("budget", f"{plan.budget.max_minutes:g} minutes" if plan.budget else None),
            *((name.replace("_", " "), value) for name, value in hyperparameters),
        ]
    )


def _method(method: MethodSettings) -> str:
    if not method.prompts:
        return method.type
    rank = f", rank {method.rank}" if method.rank else ""
    return f"{method.type}, {method.depth}, {method.prompts} prompts{rank}"


def _begun(version: ContinuedFrom | None) -> str | None:
    return f"{version}, {version.head} head" if version else None


_WHY = {
    "backoff": "after a crash, for a moment",
    "running_limit": "until one of your running jobs has ended",
    "behind_others": "behind others",
    "workers_busy": "as the next one",
    "no_worker": "for a worker: none is at work",
}


def _waiting(job: TuningJob) -> str | None:
    if job.waiting is None:
        return None
    why, start = _WHY.get(job.waiting.reason, job.waiting.reason), job.waiting.start_in_seconds
    ahead = f", {job.waiting.ahead} before it" if job.waiting.ahead else ""
    return why + ahead + (f", some {duration(start)}" if start is not None else "")


def _epochs(job: TuningJob) -> str | None:
    return f"{job.progress.epoch}/{job.progress.epochs}" if job.progress else None


def show_job(job: TuningJob, json: bool) -> None:
    if json:
        show_json(job)
        return
    result, error = job.result, job.error
    show_facts(
        [
            ("id", job.id),
            ("state", job.state),
            ("waits", _waiting(job)),
            ("priority", job.priority if job.priority != "normal" else None),
            ("error", f"{error.detail} ({error.code})" if error else None),
            ("prompt set", f"{result.prompt_set}:{result.version}" if result else job.prompt_set),
            ("reproduces", str(job.reproduces) if job.reproduces else None),
            ("dataset", job.dataset),
            ("backbone", job.backbone),
            ("continues", _begun(job.continue_from)),
            ("method", _method(job.method)),
            ("parameters", job.parameters or None),
            ("epoch", _epochs(job)),
            ("stopped by", job.stopped_by),
            ("budget", f"{job.budget.max_minutes:g} minutes" if job.budget else None),
            ("worked", duration(job.worked_seconds) if job.worked_seconds else None),
            ("attempt", job.attempt or None),
            ("best epoch", result.best_epoch if result else None),
            ("validation", percent(result.val.score) if result else None),
            ("test", percent(result.test.score) if result and result.test else None),
            ("artifact", size(result.artifact_bytes) if result else None),
            *(report_tables.reproduction(job.reproduction) if job.reproduction else ()),
            ("created", job.created_at),
            ("finished", job.finished_at),
            ("done by about", job.estimated_finish_at),
            *(("log" if number == 0 else "", line) for number, line in enumerate(error.log if error else ())),
        ]
    )
