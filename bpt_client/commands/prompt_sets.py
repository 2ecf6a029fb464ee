"""`bpt prompt-sets` and `bpt predict`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.errors import ApiError, InputError, InvalidRequest
from bpt_client.models import ImagePrediction, Problem, ServedVersion
from bpt_client.terminal import first, percent, plain, show_facts, show_json, show_table, size

app = typer.Typer(no_args_is_help=True, help="List prompt sets, look at their versions, download artifacts.")

NameArgument = Annotated[str, typer.Argument(help="The prompt set's name, or name:version.")]

_IMAGES_PER_REQUEST = 32  # below the service's limit, and small enough to keep answers coming


@app.command("list")
def list_prompt_sets(context: typer.Context, limit: LimitOption = 100, json: JsonOption = False) -> None:
    """List prompt sets."""
    with connect(context) as client:
        found = first(client.prompt_sets.list(), limit)
    if json:
        show_json(found)
    else:
        rows = [(each.name, each.latest_version, each.id, each.created_at) for each in found]
        show_table(("name", "version", "id", "created"), rows)


@app.command()
def show(context: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show a prompt set's versions, or one version."""
    name, version = _split(name)
    with connect(context) as client:
        if version is None:
            prompt_set, versions = client.prompt_sets.get(name), list(client.prompt_sets.versions(name))
        else:
            one = client.prompt_sets.version(name, version)
    if version is not None:
        if json:
            show_json(one)
            return
        val, test = one.metrics.val, one.metrics.test
        show_facts(
            [
                ("prompt set", f"{one.prompt_set}:{one.version}"),
                ("backbone", one.backbone),
                ("fingerprint", one.backbone_fingerprint),
                ("method", one.method.type if one.method else None),
                ("parameters", one.parameters or None),
                ("classes", " ".join(one.class_names)),
                ("best epoch", one.metrics.best_epoch),
                ("validation", percent(val.score) if val else None),
                ("test", percent(test.score) if test else None),
                ("artifact", size(one.artifact_bytes)),
                ("sha256", one.artifact_sha256),
                ("job", one.job),
                ("dataset", one.dataset),
                ("created", one.created_at),
            ]
        )
    elif json:
        show_json({"prompt_set": prompt_set, "versions": versions})
    else:
        rows = [
            (
                f"{name}:{each.version}",
                each.method.type if each.method else None,
                percent(each.metrics.val.score) if each.metrics.val else None,
                percent(each.metrics.test.score) if each.metrics.test else None,
                size(each.artifact_bytes),
                each.created_at,
            )
            for each in versions
        ]
        show_table(("version", "method", "validation", "test", "artifact", "created"), rows)


@app.command()
def download(
    context: typer.Context,
    name: NameArgument,
    out: Annotated[Path | None, typer.Option("--out", help="By default NAME-VERSION.safetensors here.")] = None,
) -> None:
    """Download an artifact (safetensors); its SHA-256 is checked."""
    name, version = _split(name)
    with connect(context) as client:
        facts = client.prompt_sets.version(name, version)
        path = out or Path(f"{facts.prompt_set}-{facts.version}.safetensors")
        client.prompt_sets.download(name, path, facts.version)
    show_facts([("file", path), ("sha256", facts.artifact_sha256), ("size", size(facts.artifact_bytes))])


def predict(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    prompt_set: Annotated[str, typer.Option(help="Its newest version, or name:version.")],
    top_k: Annotated[int, typer.Option(min=1, help="Labels per image.")] = 3,
    json: JsonOption = False,
) -> None:
    """Classify images; exit code 1 if one of them could not be read."""
    with connect(context) as client:
        served, answers = _predict(client, images, prompt_set, top_k)
    if json:
        show_json({"prompt_set": served, "data": answers})
    else:
        rows = [
            (image, Text(plain(answer.error.detail), style="red") if answer.error else _labels(answer))
            for image, answer in zip(images, answers, strict=True)
        ]
        show_table(("image", f"{served.name}:{served.version}"), rows)
    if any(answer.error for answer in answers):
        raise typer.Exit(1)


def _predict(
    client: Client, images: list[Path], prompt_set: str, top_k: int
) -> tuple[ServedVersion, list[ImagePrediction]]:
    """All images in portions, all by the same version, however long it takes."""
    served: ServedVersion | None = None
    answers: list[ImagePrediction] = []
    refused: ApiError | None = None
    for start in range(0, len(images), _IMAGES_PER_REQUEST):
        portion = images[start : start + _IMAGES_PER_REQUEST]
        try:
            answer = client.predict(portion, prompt_set, top_k=top_k)
        except InvalidRequest as error:
            if error.param != "images":
                raise
            # Not one image of the portion can be read; those of the next ones may be fine.
            refused, problem = error, Problem(error.code, error.detail)
            answers += [
                ImagePrediction(start + index, path.name, error.status, error=problem)
                for index, path in enumerate(portion)
            ]
            continue
        served = answer.prompt_set
        prompt_set = f"{served.name}:{served.version}"
        answers += [replace(each, index=start + each.index) for each in answer.data]
    if served is None:
        raise refused or InputError("there are no images to predict")
    return served, answers


def _labels(answer: ImagePrediction) -> str:
    return "  ".join(f"{each.label} {100 * each.score:.1f} %" for each in answer.predictions)


def _split(name: str) -> tuple[str, int | None]:
    """ "birds:3" -> ("birds", 3), "birds" -> ("birds", None)."""
    name, colon, version = name.partition(":")
    if not colon:
        return name, None
    if not (version.isascii() and version.isdigit()):
        raise InputError(f"{version!r} is no version: they are numbers, as in {name}:1")
    return name, int(version)
