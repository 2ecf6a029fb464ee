"""`bpt predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bpt_client.client import Client
from bpt_client.commands.connection import JsonOption, connect
from bpt_client.errors import ApiError, InputError, InvalidRequest
from bpt_client.models import ImagePrediction, Problem, Seen, ServedVersion
from bpt_client.terminal import plain, show_json, show_table

_IMAGES_PER_REQUEST = 32  # below the service's limit, and small enough to keep answers coming


def predict(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    prompt_set: Annotated[
        list[str], typer.Option(help="Its newest version, name:version or name@alias; may be given several times.")
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Labels per image.")] = 3,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score for a label; by default what tuning has fitted.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Classify images; exit code 1 if one of them could not be read."""
    with connect(context) as client:
        served, answers = _predict(client, images, prompt_set, top_k, threshold)
    if json:
        show_json({"prompt_sets": served, "data": answers})
    else:
        rows = [
            (
                image,
                *([Text(plain(answer.error.detail), style="red")] if answer.error else map(_shown, answer.results)),
            )
            for image, answer in zip(images, answers, strict=True)
        ]
        width = 1 + len(served)
        padded = [(*row, *[None] * (width - len(row))) for row in rows]
        show_table(("image", *(f"{each.name}:{each.version}" for each in served)), padded)
    if any(answer.error for answer in answers):
        raise typer.Exit(1)


def _predict(
    client: Client, images: list[Path], prompt_sets: Sequence[str], top_k: int, threshold: float | None
) -> tuple[tuple[ServedVersion, ...], list[ImagePrediction]]:
    """All images in portions, all by the same versions, however long it takes."""
    served: tuple[ServedVersion, ...] = ()
    answers: list[ImagePrediction] = []
    refused: ApiError | None = None
    for start in range(0, len(images), _IMAGES_PER_REQUEST):
        portion = images[start : start + _IMAGES_PER_REQUEST]
        try:
            answer = client.predict(portion, prompt_sets, top_k=top_k, threshold=threshold)
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
        served = answer.prompt_sets
        prompt_sets = [f"{each.name}:{each.version}" for each in served]
        answers += [replace(each, index=start + each.index) for each in answer.data]
    if not served:
        raise refused or InputError("there are no images to predict")
    return served, answers


def _shown(seen: Seen) -> str:
    scores = "  ".join(f"{each.label} {100 * each.score:.1f} %" for each in seen.predictions)
    return f"unknown ({scores})" if seen.unknown else scores
