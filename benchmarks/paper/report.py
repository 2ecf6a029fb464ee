"""docs/benchmarks/paper.md from what is on record: whatever is missing is said to be missing.

What stands between the two lines `by hand` is kept as it is; all else is written anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill

from benchmarks.paper import drawing, plan
from benchmarks.paper.records import Record, Records
from bpt_core.catalog import Pooling
from bpt_core.errors import BptError

BY_HAND = ("<!-- by hand -->", "<!-- to here -->")
UNWRITTEN = "What the figures say has not been written yet."
COMMANDS = """## Doing it again

    python -m benchmarks.paper                    # this page's runs: the bundled backbone, cut to one CPU core
    python -m benchmarks.paper --size full --device cuda --side-by-side 12 --results DIRECTORY
    python -m benchmarks.paper --page docs/benchmarks/paper.md

Every finished run is a line of `runs.jsonl` in `--results`: stop it at any time, and the same command goes on. The last
command writes this page from what is there, and keeps what was written by hand. The photographs lie in
`../shared/datasets` or are named with `--dataset`: archives or folders of class folders. `--backbone` takes any plain
Vision Transformer of timm. With the paper's own data and weights, which are yours to bring,

    python -m benchmarks.paper --backbone vit_base_patch16_224.mae --weights mae_pretrain_vit_base.pth \\
        --dataset CUB_200_2011/ --recipe paper --device cuda --results DIRECTORY

trains bilinear prompts as the authors released it for that dataset (CUB, NABirds, Dogs, Cars, Flowers), on training and
validation images; the last epoch counts, and the best one on the test split, which they report, stands beside it.
`--batch-size 128` is what a step sees in their scripts (four processes of 32)."""
BURSTY_ROWS = ("vpt", "spt", "bpt-bilinear", "bpt-twhiten")


@dataclass(frozen=True)
class _Shape:
    """A backbone as `settings.json` describes it."""

    name: str
    fingerprint: str
    pooling: Pooling
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int


class Results:
    """The records of one comparison, by task and row."""

    def __init__(self, directory: Path) -> None:
        file = directory / "settings.json"
        if not file.is_file():
            raise BptError(f"{directory} holds no comparison: there is no {file.name}")
        settings = json.loads(file.read_text())
        self.backbone = _Shape(**{**settings["backbone"], "pooling": Pooling(settings["backbone"]["pooling"])})
        self.tasks: list[str] = settings["tasks"]
        self.recipe: str = settings["recipe"]
        self.size = plan.Size(**settings["size"])
        self.suites = plan.suites(self.backbone)
        self.records = Records(directory / "runs.jsonl").all()

    def tested(self, row: str, task: str) -> list[Record]:
        """By seed."""
        found = [
            each for each in self.records if (each.configuration, each.task) == (row, task) and each.test is not None
        ]
        return sorted(found, key=lambda record: record.recipe["seed"])

    def trials(self, row: str, task: str) -> list[Record]:
        return [each for each in self.records if (each.configuration, each.task) == (row, task) and each.test is None]


def write_page(page: Path, results: Path) -> None:
    """The page, and its pictures in `images` beside the page's directory."""
    found = Results(results)
    kept = _kept(page)
    pictures = page.parent.parent / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    sections = [_head(found), "\n".join([BY_HAND[0], kept, BY_HAND[1]]), COMMANDS]
    if found.recipe == "paper":
        sections.append(_table(found, "Released recipes", _rows(found)))
    else:
        sections += [_table(found, TITLES[name], _with_bases(suite, found)) for name, suite in found.suites.items()]
    sections += [_search(found), _burstiness(found), _pictures(found, pictures), _missing(found)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(section for section in sections if section) + "\n")


TITLES = {
    "methods": "BPT, VPT, SPT",
    "baselines": "Other ways to adapt the backbone",
    "convergence": "Four times the epochs",
    "length": "How many prompts",
    "width": "Which rank",
    "questions": "Choices that defaults rest on",
}


def mean_and_spread(values: Sequence[float]) -> str:
    """Shares as per cent: the mean, and the standard deviation between seeds where there are two at least."""
    if not values:
        return "-"
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * stdev(values):.1f}"


def mean_over_tasks(by_task: Mapping[str, Sequence[float]]) -> str:
    """The mean of the tasks' means; "-" while a task has none, for a mean over fewer would be of something else."""
    if not by_task or not all(by_task.values()):
        return "-"
    return f"{100 * fmean(fmean(values) for values in by_task.values()):.1f}"


def _kept(page: Path) -> str:
    text = page.read_text() if page.is_file() else ""
    _, begin, rest = text.partition(BY_HAND[0])
    kept, end, _ = rest.partition(BY_HAND[1])
    return kept.strip("\n") if begin and end else UNWRITTEN


def _head(found: Results) -> str:
    size = found.size
    seconds = sum(record.seconds for record in found.records)
    machines = sorted({record.machine for record in found.records})

    def number(count: int) -> str:
        return str(count) if count else "all"

    crops = f"crops of at least {size.crop_scale_min:.0%} of the area" + (
        f", {size.views} of each image drawn once" if size.views else ", new ones in every epoch"
    )
    if found.recipe == "paper":
        how = (
            "The authors' released recipe, without a search: trained on training and validation images; the test "
            "figure is that of the last epoch, and *best* that of the epoch that was best on the test split."
        )
    else:
        how = (
            f"Every row had the same search: {size.trials} trials over learning rate and both weight decays, "
            f"log-uniform, at the same places of their ranges; where the best learning rate was the least or greatest "
            f"tried, two more were added beyond it, {size.widenings} times at most. The best on the validation split "
            f"was trained again with {size.seeds} seeds that the search had not seen, each tested once."
        )
    return f"""# The paper's comparison, with our own code

`python -m benchmarks.paper` trains the methods of "Attention to the Burstiness in Visual Prompt Tuning!"
([arXiv 2506.22908](https://arxiv.org/abs/2506.22908)) and their rivals on one frozen backbone, and tests them on
photographs of classes that it never saw.

{fill(how, 118)}

| | |
|---|---|
| backbone | {found.backbone.name} |
| tasks | {", ".join(found.tasks)} |
| images of each class | {number(size.train)} to train on, {number(size.val)} to validate, {number(size.test)} to test |
| schedule | {size.epochs} epochs, batch {size.batch_size}, {size.warmup_epochs} of warm-up, {crops} |
| head | fitted alone for {size.head_fit_epochs} epochs before and after |
| runs | {len(found.records)}, {seconds / 3600:.1f} hours in all, on {" and ".join(machines)} |

Figures are top-1 accuracy in per cent, mean ± standard deviation over seeds. Parameters leave the head out."""


def _rows(found: Results) -> list[str]:
    return list(dict.fromkeys(record.configuration for record in found.records))


def _with_bases(suite: plan.Suite, found: Results) -> list[str]:
    """The suite's rows that were tested, each behind the one that it varies."""
    rows = [each for each in suite.configurations if any(found.tested(each.name, task) for task in found.tasks)]
    return list(dict.fromkeys(name for row in rows for name in (row.like, row.name) if name))


def _table(found: Results, title: str, rows: Sequence[str]) -> str:
    shown = [row for row in rows if any(found.tested(row, task) for task in found.tasks)]
    if not shown:
        return ""
    tasks = [task for task in found.tasks if any(found.tested(row, task) for row in shown)]
    best = ["best"] if found.recipe == "paper" else []
    lines = [_line(["", *tasks, "mean", *best, "parameters", "seconds a run"])]
    lines.append("|---" * (len(tasks) + 4 + len(best)) + "|")
    for row in shown:
        by_task = {task: [each.test or 0.0 for each in found.tested(row, task)] for task in tasks}
        tested = [record for task in tasks for record in found.tested(row, task)]
        highest = [f"{100 * fmean(record.val for record in tested):.1f}"] if best else []
        figures = [mean_and_spread(values) for values in by_task.values()]
        seconds = f"{fmean(record.seconds for record in tested):.0f}"
        lines.append(_line([row, *figures, mean_over_tasks(by_task), *highest, f"{tested[0].parameters:,}", seconds]))
    return "\n".join([f"## {title}", "", *lines])


def _search(found: Results) -> str:
    """What each search chose; a rate at the edge of what was tried is marked."""
    lines = [
        _line(["", "task", "learning rate", "weight decay", "of the head", "validation", "trials"]),
        "|---" * 7 + "|",
    ]
    for row in _rows(found):
        for task in found.tasks:
            trials = found.trials(row, task)
            if not trials:
                continue
            best = max(trials, key=lambda record: record.val).recipe
            rates = [record.recipe["learning_rate"] for record in trials]
            edge = " (edge)" if best["learning_rate"] in (min(rates), max(rates)) else ""
            values = [best["learning_rate"], best["weight_decay"], best["head_weight_decay"]]
            score = f"{100 * max(record.val for record in trials):.1f}"
            texts = [f"{value:.2g}" for value in values]
            lines.append(_line([row, task, texts[0] + edge, *texts[1:], score, str(len(trials))]))
    return "\n".join(["## What the searches chose", "", *lines]) if len(lines) > 2 else ""


def _burstiness(found: Results) -> str:
    lines = [
        _line(["", "what", "largest", "excess kurtosis", "energy of the top 0.1 %", "exponent"]),
        "|---" * 6 + "|",
    ]
    first = _bursty(found)
    for row, record in first.items():
        shown = {"prompts": record.burstiness["prompts"]}
        if row == next(iter(first)):
            shown = record.burstiness
        for what, figures in shown.items():
            values = [figures["largest"], figures["excess_kurtosis"], figures["top_energy_share"]]
            texts = [f"{value:.3g}" for value in values]
            name = row if what == "prompts" else "the backbone"
            lines.append(_line([name, what, *texts, f"{figures['shape_exponent']:.2f}"]))
    if len(lines) == 2:
        return ""
    note = (
        f"On {found.tasks[0]}, one seed. The exponent is that of a fitted generalised normal: 2 Gaussian, 1 Laplacian, "
        "less is hyper-Laplacian."
    )
    return "\n".join(["## Burstiness", "", note, "", *lines])


def _bursty(found: Results) -> dict[str, Record]:
    rows = [f"{method} {depth}" for depth in ("shallow", "deep") for method in BURSTY_ROWS]
    tested = {row: found.tested(row, found.tasks[0]) for row in rows}
    return {row: records[0] for row, records in tested.items() if records and records[0].burstiness}


def _pictures(found: Results, directory: Path) -> str:
    made = {
        "paper-curves": _curves(found),
        "paper-length": _lengths(found),
        "paper-burstiness": _histograms(found),
    }
    lines = []
    for name, drawn in made.items():
        if drawn:
            (directory / f"{name}.svg").write_text(drawn)
            lines.append(f"![{name}](../images/{name}.svg)")
    return "\n\n".join(["## Pictures", *lines]) if lines else ""


def _curves(found: Results) -> str:
    task, lines = found.tasks[0], {}
    prompted = [each for each in plan.METHODS.configurations if each.method.has_prompts]
    shown = {each.name for each in (*prompted, *plan.CONVERGENCE.configurations)}
    for row in _rows(found):
        records = found.tested(row, task)
        if records and row in shown:
            curves = [record.curve for record in records]
            epochs = min(map(len, curves))
            points = [(epoch, 100 * fmean(curve[epoch] for curve in curves)) for epoch in range(epochs)]
            lines[row] = [point for point in points if point[1] >= 0]
    return drawing.chart(f"Validation accuracy, {task}", "epoch", "per cent", lines) if lines else ""


def _lengths(found: Results) -> str:
    task = found.tasks[0]
    lines: dict[str, list[tuple[float, float]]] = {}
    varied = found.suites["length"].configurations
    bases = {row.like for row in varied}
    for configuration in (*varied, *(row for row in plan.METHODS.configurations if row.name in bases)):
        records = found.tested(configuration.name, task)
        if records:
            method = str(configuration.method)
            tests = [100 * (record.test or 0.0) for record in records]
            lines.setdefault(method, []).append((records[0].recipe["prompts"], fmean(tests)))
    lines = {method: sorted(points) for method, points in lines.items() if len(points) > 1}
    return drawing.chart(f"Test accuracy, {task}, shallow", "prompts", "per cent", lines) if lines else ""


def _histograms(found: Results) -> str:
    """In units of each tensor's standard deviation, which is what makes tails comparable."""
    first = _bursty(found)
    if not first:
        return ""
    some = next(iter(first.values())).burstiness
    shown = {what: figures["histogram"] for what, figures in some.items() if what != "prompts"}
    shown |= {f"P of {row}": record.burstiness["prompts"]["histogram"] for row, record in first.items()}
    lines = {name: _log_counts(**histogram) for name, histogram in shown.items()}
    title = f"Histograms, {found.tasks[0]}"
    return drawing.chart(title, "value / standard deviation", "log10 share of entries", lines)


def _log_counts(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float]]:
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    total = sum(counts)
    spread = math.sqrt(sum(n * x * x for n, x in zip(counts, centres, strict=True)) / total) or 1.0
    return [(x / spread, math.log10(n / total)) for n, x in zip(counts, centres, strict=True) if n]


def _missing(found: Results) -> str:
    if found.recipe == "paper":
        return ""
    lines = []
    for suite in found.suites.values():
        tasks = found.tasks[: suite.tasks or None]
        wanted = [(each.name, task) for task in tasks for each in suite.configurations]
        absent = sum(max(0, found.size.seeds - len(found.tested(*each))) for each in wanted)
        if absent:
            lines.append(f"- {TITLES[suite.name]}: {absent} of {len(wanted) * found.size.seeds} tested runs")
    return "\n".join(["## What is missing", "", *lines]) if lines else ""


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
