"""What the demo shows at its end: predictions, figures, and where to go next."""

from __future__ import annotations

import shlex
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpt_client.models import Prediction, TuningJob
from bpt_client.terminal import percent, size


@dataclass(frozen=True)
class HeldOut:
    """A test image: unpacked at `path`, sent as `name`, which does not give its class away."""

    path: Path
    truth: str
    name: str
    content: bytes


def held_out_images(archive: Path, count: int, folder: Path) -> list[HeldOut]:
    """`count` images of the archive's test/ folder, the classes in turn; always the same, and no cleverer choice."""
    with zipfile.ZipFile(archive) as opened:
        by_class: dict[str, list[str]] = {}
        for name in sorted(opened.namelist()):
            split, label, *_ = [*name.split("/"), ""]
            if split == "test" and label:
                by_class.setdefault(label, []).append(name)
        labels = sorted(by_class)
        found = []
        for index in range(count):
            label = labels[index * len(labels) // count] if count <= len(labels) else labels[index % len(labels)]
            entry = by_class[label][index % len(by_class[label])]
            path = folder / Path(entry).parent.name / Path(entry).name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = opened.read(entry)
            path.write_bytes(content)
            found.append(HeldOut(path, label, f"image-{index + 1}{path.suffix}", content))
    return found


def print_predictions(console: Console, held_out: Sequence[HeldOut], prediction: Prediction) -> None:
    (served,) = prediction.prompt_sets
    table = Table("image", "truth", "top 3", "", title=f"Predictions by {served.name}:{served.version}", box=None)
    table.title_justify, table.title_style, table.header_style = "left", "bold", "bold"
    for column in table.columns:
        column.no_wrap = not console.is_terminal
    for image, answer in zip(held_out, prediction.data, strict=True):
        shown = f"test/{image.truth}/{image.path.name}"
        if answer.error is not None:
            table.add_row(shown, image.truth, Text(answer.error.detail, style="red"), "")
            continue
        best = answer.results[0].predictions
        is_right = best[0].label == image.truth
        top = Text("  ").join(
            Text(f"{each.label} {100 * each.score:.0f} %", style="bold" if each.label == image.truth else "dim")
            for each in best
        )
        table.add_row(
            Path(shown).name,
            image.truth,
            top,
            Text("right", style="green") if is_right else Text("wrong", style="red"),
        )
    console.print()
    console.print(table)


def print_summary(console: Console, linear_probe: TuningJob, bpt: TuningJob) -> None:
    table = Table("", "linear probe", "BPT", title="On the same frozen backbone", box=None)
    table.title_justify, table.title_style, table.header_style = "left", "bold", "bold"
    results = [job.result for job in (linear_probe, bpt)]
    rows: list[tuple[str, list[str | None]]] = [
        ("test accuracy", [percent(each.test.score) if each and each.test else None for each in results]),
        ("validation accuracy", [percent(each.val.score) if each else None for each in results]),
        ("parameters without head", [f"{job.parameters:,}" for job in (linear_probe, bpt)]),
        ("artifact", [size(each.artifact_bytes) if each else None for each in results]),
        ("version", [f"{each.prompt_set}:{each.version}" if each else None for each in results]),
    ]
    for name, values in rows:
        style = "bold green" if name == "test accuracy" else ""
        table.add_row(name, *(Text(value or "-", style=style) for value in values))
    console.print()
    console.print(table)


def print_next_steps(console: Console, data_dir: Path, image: Path, url: str, key: str, *, is_ending: bool) -> None:
    """Lines to copy; with `is_ending` the first of them starts the service again."""
    directory, picture, bpt = shlex.quote(str(data_dir)), shlex.quote(str(image)), _command()
    lines = []
    if is_ending:
        url = "http://127.0.0.1:8000"
        lines += [("start the service again on this data", f"{bpt} up --data-dir {directory}")]
    lines += [
        ("every operation, to try out", f"{url}/docs"),
        ("for the commands below", f"export BPT_URL={url} BPT_API_KEY={key}"),
        ("classify an image", f"{bpt} predict {picture} --prompt-set flowers"),
        (
            "the same without our client",
            f'curl -H "Authorization: Bearer {key}" -F prompt_sets=flowers -F images=@{picture} {url}/v1/predictions',
        ),
        ("tune for longer", f"{bpt} tune flowers --prompt-set flowers --epochs 60 --follow"),
        ("what there is", f"{bpt} prompt-sets show flowers; {bpt} jobs list; {bpt} datasets show flowers"),
        ("your own pictures, a folder per class", f"{bpt} datasets upload FOLDER --wait"),
        ("database, objects, logs", str(data_dir)),
    ]
    console.print(Text("\nWhere to go next", style="bold"))
    for what, line in lines:
        console.print(Text.assemble((f"  {what}\n", "dim"), f"    {line}"), soft_wrap=True)


def _command() -> str:
    """How to call `bpt` from here: as this process was called, if that is a path, since it may not be on PATH."""
    called = Path(sys.argv[0])
    if called.name != "bpt" or not called.is_file():
        return "bpt"
    here = Path.cwd()
    return shlex.quote(str(called.relative_to(here) if called.is_relative_to(here) else called))
