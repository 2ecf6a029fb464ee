"""How good are settings that the service finds itself? Against the best of a random search, in accuracy and cost.

    python -m benchmarks.auto [archive.zip] [--depth deep-top4] [--epochs 16] [--random 50] [--seeds 3]

Both search learning rate and both weight decays over the same ranges on the same views. The random search trains every
one of its trials to the end and takes the best on the validation split. `auto` is `tune(..., search=...)` as the
service runs it. Without an archive it runs on drawn flowers. Cost is counted in epochs of one trial and in seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bpt_core import samples
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.compute import Compute
from bpt_core.dataset import PackedDataset, Split
from bpt_core.evaluate import evaluate
from bpt_core.methods import Depth, Method
from bpt_core.packing import pack
from bpt_core.recipe import Recipe, default_recipe
from bpt_core.sweep import RANGES, Search
from bpt_core.train import Group, Images
from bpt_core.tuning import tune
from bpt_core.views import SplitImages

console = Console()


@dataclass(frozen=True)
class Found:
    """`val` and `test` are top-1 shares; `runs` is the cost in whole runs of one trial."""

    search: str
    seed: int
    val: float
    test: float
    runs: float
    seconds: float
    learning_rate: float


def random_recipes(base: Recipe, count: int) -> list[Recipe]:
    """`count` recipes with rates and decays drawn log-uniformly from the ranges that `auto` has."""
    drawn = random.Random(base.seed + 1)

    def draw(name: str) -> float:
        low, high = RANGES[name]
        return math.exp(drawn.uniform(math.log(low), math.log(high)))

    drawings: list[dict[str, Any]] = [{name: draw(name) for name in RANGES} for _ in range(count)]
    return [replace(base, **values) for values in drawings]


def random_search(backbone: Backbone, dataset: PackedDataset, base: Recipe, count: int) -> Found:
    """Every trial to the end; the best on the validation split is the one that is tested."""
    started = time.monotonic()
    train, val, test = (SplitImages(dataset, split, backbone.image_size) for split in Split)
    images = Images(train, val, dataset.class_names, dataset.task)
    group = Group(backbone, images, random_recipes(base, count), Compute())
    if base.head_fit_epochs:
        group.fit_heads()
    for _ in track(range(base.epochs), f"{count} random trials, seed {base.seed}", console=console):
        group.one_epoch()
    best = max(group.trials, key=lambda trial: trial.best_score)
    group.trials = [best]
    if base.head_fit_epochs:
        group.fit_heads()
    best.restore_best()
    (logits,) = group.logits(group.kept.evaluation(test))
    return Found(
        f"best of {count}",
        base.seed,
        val=best.best_score[0],
        test=evaluate(logits, test.targets, dataset.class_names, dataset.task).score,
        runs=count,
        seconds=time.monotonic() - started,
        learning_rate=best.recipe.learning_rate,
    )


def auto(backbone: Backbone, dataset: PackedDataset, base: Recipe) -> Found:
    started = time.monotonic()
    tuned = tune(backbone, dataset, base, search=Search(tuple(RANGES)))
    epochs = sum(row["epochs"] for row in tuned.trials)
    return Found(
        "auto",
        base.seed,
        val=tuned.val.score,
        test=tuned.test.score if tuned.test else math.nan,
        runs=epochs / base.epochs,
        seconds=time.monotonic() - started,
        learning_rate=tuned.recipe.learning_rate,
    )


def default(backbone: Backbone, dataset: PackedDataset, base: Recipe) -> Found:
    started = time.monotonic()
    tuned = tune(backbone, dataset, base)
    test = tuned.test.score if tuned.test else math.nan
    return Found("default", base.seed, tuned.val.score, test, 1.0, time.monotonic() - started, base.learning_rate)


def packed(archive: Path | None, images: int, directory: Path) -> PackedDataset:
    """The archive, or drawn flowers, as a dataset."""
    if archive is None:
        archive = directory / "flowers.zip"
        samples.write_archive(archive, train=images, val=20, test=40)
    return PackedDataset(pack(archive, directory / "packed").shards)


def main() -> None:
    parser = argparse.ArgumentParser(description="Settings found by the service against a random search.")
    parser.add_argument("archive", type=Path, nargs="?", help="a zip of class folders; without it, drawn flowers")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--method", type=Method, default=Method.BPT_BILINEAR)
    parser.add_argument("--depth", type=Depth, default=Depth.DEEP_TOP4)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=40, help="drawn training images of each class")
    parser.add_argument("--random", type=int, default=50, help="trials of the random search")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, device=given.device)
    rows: list[Found] = []
    with tempfile.TemporaryDirectory() as directory:
        dataset = packed(given.archive, given.images, Path(directory))
        for seed in range(given.seeds):
            base = default_recipe(backbone, given.method, depth=given.depth, epochs=given.epochs, seed=seed, views=4)
            rows += [
                default(backbone, dataset, base),
                auto(backbone, dataset, base),
                random_search(backbone, dataset, base, given.random),
            ]
    table = Table("search", "seed", "val %", "test %", "runs", "seconds", "learning rate")
    for row in rows:
        figures = (f"{row.val:.1%}", f"{row.test:.1%}", f"{row.runs:.2f}", f"{row.seconds:.0f}")
        table.add_row(row.search, str(row.seed), *figures, f"{row.learning_rate:.3g}")
    console.print(table)
    gap = sum(row.val if row.search.startswith("best") else -row.val for row in rows if row.search != "default")
    console.print(f"auto is {100 * gap / given.seeds:.1f} points of validation accuracy below the random search")
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
