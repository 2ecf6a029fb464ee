"""`bpt predict-batch` and `bpt batch-predictions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpt_client.batch_predictions import results_format
from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, LimitOption, connect, dataset_reference
from bpt_client.models import BatchPrediction, Comparison
from bpt_client.terminal import errors, first, percent, show_facts, show_json, show_table, size
from bpt_client.watch import JobWatch

app = typer.Typer(no_args_is_help=True, help="Look at batch predictions, follow, cancel, download, delete them.")

JobArgument = Annotated[str, typer.Argument(help="The job's id (job_...).")]
OutputOption = Annotated[Path, typer.Option("--output", help="Ends in .csv, .jsonl or .parquet.")]


def predict_batch(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Id or name; `:3` behind it means version 3.")],
    prompt_set: Annotated[list[str], typer.Option(help="Once or more: name, name:version or name@alias.")],
    split: Annotated[str | None, typer.Option(help="train, val or test; by default all images.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Labels per image.")] = None,
    priority: Annotated[str | None, typer.Option(help="Among your own jobs that wait: low, normal or high.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Wait, and write the results here: .csv, .jsonl or .parquet.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Classify a whole dataset with one or more prompt sets."""
    if output is not None:
        results_format(output)  # refused before anything is computed
    with connect(context) as client:
        reference = dataset_reference(client, dataset)
        job = client.batch_predictions.create(reference, prompt_set, split=split, top_k=top_k, priority=priority)
        if output is not None:
            job = _follow(client, job)
            client.batch_predictions.download(job.id, output)
    _show(job, json)


@app.command("list")
def list_batch_predictions(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, running for example.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List batch predictions, newest first."""
    with connect(context) as client:
        found = first(client.batch_predictions.list(state=state), limit)
    if json:
        show_json(found)
        return
    rows = [(job.id, job.state, _prompt_sets(job), _images(job), job.attempt, job.created_at) for job in found]
    show_table(("id", "state", "prompt sets", "images", "attempt", "created"), rows)


@app.command()
def show(context: typer.Context, job: JobArgument, json: JsonOption = False) -> None:
    """Show a batch prediction."""
    with connect(context) as client:
        found = client.batch_predictions.get(job)
    _show(found, json)


@app.command()
def follow(context: typer.Context, job: JobArgument, json: JsonOption = False) -> None:
    """Show progress until the job ends; exit code 1 unless it succeeds."""
    with connect(context) as client:
        found = _follow(client, client.batch_predictions.get(job))
    _show(found, json)


@app.command()
def download(context: typer.Context, job: JobArgument, output: OutputOption) -> None:
    """Download the results; their SHA-256 is checked."""
    with connect(context) as client:
        client.batch_predictions.download(job, output)
    show_facts([("file", output), ("size", size(output.stat().st_size))])


@app.command()
def compare(
    context: typer.Context,
    job: JobArgument,
    a: Annotated[str, typer.Argument(help="One of its prompt sets, as birds:3.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    flips: Annotated[bool, typer.Option("--flips", help="List the images that only one is right about.")] = False,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """Hold two prompt sets against each other on the labelled images."""
    with connect(context) as client:
        if flips:
            images = first(client.batch_predictions.flips(job, a, b), limit)
        else:
            found = client.batch_predictions.compare(job, a, b)
    if json:
        show_json(images if flips else found)
    elif flips:
        rows = [(each.image, each.flip, *map(" ".join, (each.labels, each.a, each.b))) for each in images]
        show_table(("image", "flip", "labels", a, b), rows)
    else:
        _show_comparison(found)


@app.command()
def cancel(context: typer.Context, job: JobArgument) -> None:
    """Cancel a job; one that runs winds down first."""
    with connect(context) as client:
        found = client.batch_predictions.cancel(job)
    show_facts([("id", found.id), ("state", found.state)])


@app.command()
def delete(context: typer.Context, job: JobArgument) -> None:
    """Delete a job that has ended, with its results."""
    with connect(context) as client:
        client.batch_predictions.delete(job)


def _follow(client: Client, job: BatchPrediction) -> BatchPrediction:
    # Progress goes to standard error, so that --json leaves nothing else on standard output.
    with JobWatch(errors(), _prompt_sets(job), doing="predicting") as watch:
        watch.show_all(client.batch_predictions.follow(job.id))
    return client.batch_predictions.wait(job.id)


def _show_comparison(found: Comparison) -> None:
    a, b = found.a, found.b
    show_facts(
        [
            ("images", found.images),
            ("not readable", found.errors or None),
            ("lost", f"{found.lost} that {a.prompt_set} is right about and {b.prompt_set} is not"),
            ("won", f"{found.won} the other way round"),
            ("p-value", f"{found.p_value:.2g}"),
            ("same answer", percent(found.agreement)),
        ]
    )
    rows: list[tuple[object, ...]] = [
        ("all", found.images, percent(a.accuracy), percent(b.accuracy)),
        *((each.name, each.images, percent(each.a), percent(each.b)) for each in found.classes),
        ("calibration error", None, percent(a.calibration_error), percent(b.calibration_error)),
    ]
    show_table(("class", "images", a.prompt_set, b.prompt_set), rows)


def _prompt_sets(job: BatchPrediction) -> str:
    return " ".join(f"{used.name}:{used.version}" for used in job.prompt_sets)


def _images(job: BatchPrediction) -> str:
    done = job.progress.done if job.progress else 0
    return f"{done}/{job.images}"


def _show(job: BatchPrediction, json: bool) -> None:
    if json:
        show_json(job)
        return
    result, error = job.result, job.error
    show_facts(
        [
            ("id", job.id),
            ("state", job.state),
            ("priority", job.priority if job.priority != "normal" else None),
            ("error", f"{error.detail} ({error.code})" if error else None),
            ("prompt sets", _prompt_sets(job)),
            ("dataset", job.dataset),
            ("split", job.split),
            ("images", _images(job)),
            ("attempt", job.attempt or None),
            ("rows", result.rows if result else None),
            ("errors", result.errors if result else None),
            *((name, size(file.bytes)) for name, file in sorted(result.files.items() if result else ())),
            ("created", job.created_at),
            ("finished", job.finished_at),
        ]
    )
