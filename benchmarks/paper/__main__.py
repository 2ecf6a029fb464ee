"""BPT against VPT, SPT and others with our own code: searched alike, tested with seeds that no search has seen.

    python -m benchmarks.paper                                        the bundled backbone, cut to two CPU cores
    python -m benchmarks.paper --size full --device cuda --side-by-side 12
    python -m benchmarks.paper --backbone vit_base_patch16_224.mae --dataset CUB_200_2011/ --recipe paper
    python -m benchmarks.paper --page docs/benchmarks/paper.md        writes the page from what is on record

Every finished run is a line on the disk: stop it at any time, give the same command again, and it goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.paper import plan, recipes, tasks
from benchmarks.paper.records import Records
from benchmarks.paper.report import TITLES, write_page
from benchmarks.paper.runner import Runner, Step, Task, steps
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.errors import BptError

DATASETS = Path("../shared/datasets")
NAMES = ("dogs-and-cats64.zip", "insects64.zip", "vehicles64.zip", "flowers5.zip")
SIZES = {"cut": plan.CUT, "full": plan.FULL}

console = Console(soft_wrap=True)


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    try:
        if given.page:
            write_page(given.page, given.results)
        else:
            _compare(given)
    except BptError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")


def _compare(given: argparse.Namespace) -> None:
    backbone = load_backbone(given.backbone, weights=given.weights, device=given.device)
    is_paper = given.recipe == "paper"
    size = plan.FULL if is_paper else SIZES[given.size]
    chosen = {field.name: getattr(given, field.name) for field in fields(size)}
    size = replace(size, **{name: value for name, value in chosen.items() if value is not None})
    if is_paper:
        backbone = replace(backbone, mean=recipes.IMAGENET_MEAN, std=recipes.IMAGENET_STD)
    sources = given.dataset or [DATASETS / name for name in NAMES]
    if missing := [str(source) for source in sources if not source.exists()]:
        raise BptError(f"there is no {', '.join(missing)}: name archives or folders of class folders with --dataset")
    _settle(given.results, backbone, size, sources, given.recipe)
    loaded = [
        Task(source.stem, tasks.load(source, given.results / "data", size, merged=is_paper), backbone.image_size)
        for source in sources
    ]
    if is_paper:
        todo: list[Step] = []
        for task in loaded:
            rows = recipes.configurations(backbone.name, backbone.pooling, task.name)
            todo += steps([plan.Suite("paper", rows)], [task], size.seeds)
        configurations = [step.configuration for step in todo]
    else:
        suites = plan.suites(backbone)
        wanted = [suites[name] for name in given.suites or suites]
        todo = list(steps(wanted, loaded, size.seeds))
        configurations = [each for suite in suites.values() for each in suite.configurations]
    runner = Runner(
        backbone,
        size,
        configurations,
        Records(given.results / "runs.jsonl"),
        side_by_side=given.side_by_side,
        machine=_machine(backbone),
        is_searched=not is_paper,
    )
    for number, step in enumerate(todo, start=1):
        started = time.monotonic()
        record = runner.run(step)
        console.print(
            f"{number}/{len(todo)} {step.task.name}, {step.configuration.name}, seed {step.seed}: "
            f"test {record.test:.1%}, validation {record.val:.1%}, {time.monotonic() - started:.0f} s"
        )


def _settle(results: Path, backbone: Backbone, size: plan.Size, sources: list[Path], recipe: str) -> None:
    """Results of one directory belong to one comparison: `settings.json` says which."""
    settings = {
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "pooling": backbone.pooling,
            "image_size": backbone.image_size,
            "patch_size": backbone.patch_size,
            "embed_dim": backbone.embed_dim,
            "depth": backbone.depth,
        },
        "recipe": recipe,
        "size": asdict(size),
        "tasks": [source.stem for source in sources],
    }
    file = results / "settings.json"
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise BptError(f"{results} holds another comparison (see {file}): name a directory with --results")
    results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")


def _machine(backbone: Backbone) -> str:
    if backbone.device.type == "cuda":
        return torch.cuda.get_device_name(backbone.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="of the catalogue, or any plain ViT of timm")
    parser.add_argument("--weights", type=Path, help="its weights; else the bundle or timm's hub")
    parser.add_argument("--dataset", type=Path, nargs="+", help="archives or folders of class folders")
    parser.add_argument("--recipe", choices=("search", "paper"), default="search")
    parser.add_argument("--size", choices=SIZES, default="cut", help="how much is run of a search")
    parser.add_argument("--suites", nargs="+", choices=TITLES, help="only these parts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side-by-side", type=int, default=1, help="trials of a search that train in shared batches")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/paper"))
    parser.add_argument("--page", type=Path, help="write the page about what is on record, and train nothing")
    for field in fields(plan.Size):
        kind = float if field.name == "crop_scale_min" else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"instead of the size's {field.name}")
    return parser


if __name__ == "__main__":
    main()
