"""`bpt datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, LimitOption, connect, find_dataset
from bpt_client.commands.dataset_tables import show_contents, show_counts, show_items, show_report
from bpt_client.dataset_models import DatasetReport
from bpt_client.files import written_whole
from bpt_client.models import Dataset, DatasetVersion, parse
from bpt_client.terminal import errors, first, show_facts, show_json, show_table
from bpt_client.uploads import OnSent

app = typer.Typer(no_args_is_help=True, help="Upload datasets, look at them, change them.")

DatasetArgument = Annotated[str, typer.Argument(help="Id (ds_...), or the name of one that is ready.")]
ItemArgument = Annotated[str, typer.Argument(help="Id (itm_...); see `bpt datasets items`.")]
NameOption = Annotated[str | None, typer.Option(help="By default the file's, folder's or URL's name.")]
TaskOption = Annotated[
    str | None,
    typer.Option(help="auto, single-label, multi-label, or unlabelled: images to predict and not to tune on."),
]
FirstFrameOption = Annotated[
    bool, typer.Option("--first-frame", help="Take the first picture of GIF and other animations.")
]
ShortSideOption = Annotated[int | None, typer.Option(help="Pixels of the shorter side that are kept.")]
BadImagesOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of images that may be left out as unreadable.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="file=NAME, label=NAME, split=NAME or group=NAME: how a column of your tables is called."),
]
MetadataOption = Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept with the dataset.")]
VersionOption = Annotated[int | None, typer.Option(min=1, help="By default the newest that is ready.")]
BaseOption = Annotated[
    int | None, typer.Option(min=1, help="Refuse unless this is still the newest version that is ready.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Until it is ready, or was refused.")]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(help="A folder: one folder per class, or train/ val/ test/ with those; or zip, tar, Parquet."),
    ],
    name: NameOption = None,
    task: TaskOption = None,
    first_frame: FirstFrameOption = False,
    short_side: ShortSideOption = None,
    bad_images: BadImagesOption = None,
    column: ColumnOption = None,
    metadata: MetadataOption = None,
    add_to: Annotated[
        str | None, typer.Option(help="Id (ds_...) or name of a dataset: the images become its next version.")
    ] = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Upload a dataset. Broken off and called again, it goes on where it was."""
    columns, kept = _pairs("--column", column), _pairs("--metadata", metadata)
    options = [name, task, short_side, bad_images, columns, kept, first_frame or None]
    if add_to is not None and any(each is not None for each in options):
        raise typer.BadParameter("goes with none of the options, for the dataset has its own", param_hint="--add-to")
    with connect(context) as client:
        if add_to is not None:
            dataset_id = _id(client, add_to)
            with _uploading() as on_sent:
                version = client.datasets.add(dataset_id, path, on_sent=on_sent)
            _end_version(client, version, wait, json)
            return
        with _uploading() as on_sent:
            dataset = client.datasets.upload(
                path,
                name=name,
                task=task,
                first_frame=first_frame or None,
                short_side=short_side,
                bad_images=bad_images,
                columns=columns,
                metadata=kept,
                on_sent=on_sent,
            )
        _end(client, dataset, wait, json)


@app.command("import")
def import_from(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="In object storage, s3://bucket/prefix/ for example.")],
    name: NameOption = None,
    task: TaskOption = None,
    first_frame: FirstFrameOption = False,
    short_side: ShortSideOption = None,
    bad_images: BadImagesOption = None,
    column: ColumnOption = None,
    metadata: MetadataOption = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Have the service fetch a dataset from object storage."""
    columns, kept = _pairs("--column", column), _pairs("--metadata", metadata)
    with connect(context) as client:
        dataset = client.datasets.import_from(
            url,
            name=name,
            task=task,
            first_frame=first_frame or None,
            short_side=short_side,
            bad_images=bad_images,
            columns=columns,
            metadata=kept,
        )
        _end(client, dataset, wait, json)


@app.command("list")
def list_datasets(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List datasets."""
    with connect(context) as client:
        found = first(client.datasets.list(), limit)
    if json:
        show_json(found)
        return
    rows = [
        (
            *(each.id, each.name, each.state, each.version, len(each.class_names) or None),
            *(each.images() or None, each.verdict, each.created_at),
        )
        for each in found
    ]
    show_table(("id", "name", "state", "version", "classes", "images", "verdict", "created"), rows)


@app.command()
def show(context: typer.Context, dataset: DatasetArgument, json: JsonOption = False) -> None:
    """Show a dataset: its state, and images per class and split."""
    with connect(context) as client:
        found = find_dataset(client, dataset)
    _show(found, json)
    if not json:
        show_counts(found.counts, found.splits)


@app.command()
def versions(
    context: typer.Context, dataset: DatasetArgument, limit: LimitOption = 100, json: JsonOption = False
) -> None:
    """List the versions of a dataset, newest first."""
    with connect(context) as client:
        found = first(client.datasets.versions(_id(client, dataset)), limit)
    if json:
        show_json(found)
        return
    rows = [
        (each.number, each.base, each.state, each.images() or None, each.verdict, each.created_at, each.error)
        for each in found
    ]
    show_table(
        ("version", "made from", "state", "images", "verdict", "created", "error"),
        [(*row, error.detail if error else None) for *row, error in rows],
    )


@app.command()
def items(
    context: typer.Context,
    dataset: DatasetArgument,
    version: VersionOption = None,
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    label: Annotated[str | None, typer.Option(help="Only images with this label.")] = None,
    finding: Annotated[str | None, typer.Option(help="Only images of this finding, blurred for example.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List the images of a dataset."""
    with connect(context) as client:
        wanted = client.datasets.items(_id(client, dataset), version=version, split=split, label=label, finding=finding)
        found = first(wanted, limit)
    if json:
        show_json(found)
    else:
        show_items(found)


@app.command()
def relabel(
    context: typer.Context,
    dataset: DatasetArgument,
    item: ItemArgument,
    label: Annotated[list[str], typer.Argument(help="What it shows; several for a multi-label dataset.")],
    base: BaseOption = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Give an image other labels: that makes the next version."""
    with connect(context) as client:
        version = client.datasets.change(_id(client, dataset), relabel={item: label}, base=base)
        _end_version(client, version, wait, json)


@app.command()
def exclude(
    context: typer.Context,
    dataset: DatasetArgument,
    item: Annotated[list[str], typer.Argument(help="Ids (itm_...); see `bpt datasets items`.")],
    base: BaseOption = None,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    """Leave images out: that makes the next version. Earlier ones keep them."""
    with connect(context) as client:
        version = client.datasets.change(_id(client, dataset), remove=item, base=base)
        _end_version(client, version, wait, json)


@app.command()
def image(
    context: typer.Context,
    dataset: DatasetArgument,
    item: ItemArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    version: VersionOption = None,
    thumbnail: Annotated[bool, typer.Option("--thumbnail", help="The small JPEG instead.")] = False,
) -> None:
    """Write an image of a dataset to a file, as it is stored."""
    with connect(context) as client:
        get = client.datasets.thumbnail if thumbnail else client.datasets.image
        content = get(_id(client, dataset), item, version=version)
    with written_whole(output) as file:
        file.write(content)


@app.command()
def report(
    context: typer.Context, dataset: DatasetArgument, version: VersionOption = None, json: JsonOption = False
) -> None:
    """Show what validation found; --json has all of it."""
    with connect(context) as client:
        found = client.datasets.report(_id(client, dataset), version=version)
    if json:
        show_json(found)
    else:
        show_report(parse(DatasetReport, found))


@app.command()
def describe(
    context: typer.Context,
    dataset: DatasetArgument,
    name: Annotated[str | None, typer.Option(help="What it is called from now on.")] = None,
    metadata: MetadataOption = None,
) -> None:
    """Change the name or the metadata of a dataset."""
    kept = _pairs("--metadata", metadata)
    with connect(context) as client:
        changed = client.datasets.describe(_id(client, dataset), name=name, metadata=kept)
    show_facts([("name", changed.name), *changed.metadata.items()])


@app.command()
def delete(
    context: typer.Context, dataset: Annotated[str, typer.Argument(help="Id (ds_...); names are not taken here.")]
) -> None:
    """Delete a dataset with all its versions. Prompt sets tuned on it stay."""
    with connect(context) as client:
        client.datasets.delete(dataset)


def _id(client: Client, wanted: str) -> str:
    return wanted if wanted.startswith("ds_") else find_dataset(client, wanted).id


def _pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """KEY=VALUE, as often as it was given; None where it never was."""
    found: dict[str, str] = {}
    for each in given or ():
        key, equals, value = each.partition("=")
        if not equals or not key or key in found:
            raise typer.BadParameter(f"KEY=VALUE is wanted, and each key once, not {each!r}", param_hint=option)
        found[key] = value
    return found or None


@contextmanager
def _uploading() -> Iterator[OnSent]:
    console = errors()
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


def _end(client: Client, dataset: Dataset, wait: bool, json: bool) -> None:
    if wait:
        with errors().status("validating ..."):
            dataset = client.datasets.wait(dataset.id)
    _show(dataset, json)


def _end_version(client: Client, version: DatasetVersion, wait: bool, json: bool) -> None:
    if wait:
        with errors().status("validating ..."):
            version = client.datasets.wait_version(version.dataset, version.number)
    if json:
        show_json(version)
        return
    show_contents([("dataset", version.dataset), ("version", version.number), ("made from", version.base)], version)


def _show(dataset: Dataset, json: bool) -> None:
    if json:
        show_json(dataset)
        return
    facts: list[tuple[str, Any]] = [("id", dataset.id), ("name", dataset.name), ("version", dataset.version)]
    show_contents(facts, dataset)
