"""`bpt datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, LimitOption, connect, find_dataset
from bpt_client.models import Dataset
from bpt_client.terminal import errors, first, show_facts, show_json, show_table, size

app = typer.Typer(no_args_is_help=True, help="Upload datasets and look at them.")

DatasetArgument = Annotated[str, typer.Argument(help="Id (ds_...), or the name of one that is ready.")]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="A zip, or a folder: one folder per class, or train/ val/ test/ with those.")
    ],
    name: Annotated[str | None, typer.Option(help="By default the file's or folder's name.")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Images in any folders, to predict and not to tune on.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until the dataset is ready, or was refused.")] = False,
    json: JsonOption = False,
) -> None:
    """Upload a dataset."""
    with connect(context) as client:
        dataset = _upload(client, path, name, unlabelled)
        if wait:
            with errors().status("validating ..."):
                dataset = client.datasets.wait(dataset.id)
    _show(dataset, json)


@app.command("list")
def list_datasets(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List datasets."""
    with connect(context) as client:
        found = first(client.datasets.list(), limit)
    if json:
        show_json(found)
        return
    rows = [
        (each.id, each.name, each.state, len(each.class_names) or None, each.images() or None, each.created_at)
        for each in found
    ]
    show_table(("id", "name", "state", "classes", "images", "created"), rows)


@app.command()
def show(context: typer.Context, dataset: DatasetArgument, json: JsonOption = False) -> None:
    """Show a dataset: its state, and images per class and split."""
    with connect(context) as client:
        found = find_dataset(client, dataset)
    _show(found, json)
    if not json and found.counts:
        counts, splits = found.counts, found.splits
        rows = [(name, *(counts.get(name, {}).get(split, 0) for split in splits)) for name in found.class_names]
        show_table(("class", *splits), rows)


@app.command()
def report(context: typer.Context, dataset: DatasetArgument) -> None:
    """Print what validation found, as JSON."""
    with connect(context) as client:
        dataset_id = dataset if dataset.startswith("ds_") else find_dataset(client, dataset).id
        show_json(client.datasets.report(dataset_id))


@app.command()
def delete(
    context: typer.Context, dataset: Annotated[str, typer.Argument(help="Id (ds_...); names are not taken here.")]
) -> None:
    """Delete a dataset. Prompt sets tuned on it stay."""
    with connect(context) as client:
        client.datasets.delete(dataset)


def _upload(client: Client, path: Path, name: str | None, unlabelled: bool) -> Dataset:
    console = errors()
    with Progress(
        TextColumn("uploading"), BarColumn(), DownloadColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        return client.datasets.upload(
            path,
            name=name,
            unlabelled=unlabelled,
            on_sent=lambda sent, total: bar.update(task, completed=sent, total=total),
        )


def _show(dataset: Dataset, json: bool) -> None:
    if json:
        show_json(dataset)
        return
    source, error = dataset.source, dataset.error
    show_facts(
        [
            ("id", dataset.id),
            ("name", dataset.name),
            ("state", dataset.state),
            ("task", dataset.task),
            ("error", f"{error.detail} ({error.code})" if error else None),
            ("archive", size(source.bytes) if source else None),
            ("sha256", source.sha256 if source else None),
            ("classes", len(dataset.class_names) or None),
            ("images", dataset.images() or None),
            ("created", dataset.created_at),
        ]
    )
