"""Does every parameter count the paper prints come out of our formula, and of the modules that are really trained?

    python -m benchmarks.parameter_counts

ViT-B/16 (12 blocks, width 768), without the classification head, as the paper counts (arXiv 2506.22908). The modules
are built with these shapes on torch's meta device: no weights, no memory. Exits 1 where a figure differs.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from bpt_core.methods import Depth, Method, parameter_count, prompted_blocks, trained_mixing
from bpt_core.prompts import BilinearPrompts, PlainPrompts, WhitenedPrompts

BLOCKS, WIDTH = 12, 768


class Setting(NamedTuple):
    """`paper` as printed: the count itself (written with a comma), or 10^-2 million with two decimals."""

    method: Method
    depth: Depth
    prompts: int
    rank: int
    paper: tuple[str, ...]

    def __str__(self) -> str:
        shape = "".join(f" {name}={value}" for name, value in (("m", self.prompts), ("p", self.rank)) if value)
        return f"{self.method} {self.depth}{shape}"

    def by_formula(self) -> int:
        return parameter_count(self.method, self.depth, self.prompts, self.rank, WIDTH, BLOCKS)

    def on_modules(self) -> int:
        return sum(parameter.numel() for parameter in _module(self).parameters())


def _bilinear(depth: Depth, prompts: int, rank: int, *paper: str) -> Setting:
    return Setting(Method.BPT_BILINEAR, depth, prompts, rank, paper)


TABLES: dict[str, tuple[Setting, ...]] = {
    "length, at p = 75": tuple(
        _bilinear(Depth.SHALLOW, length, 75, paper)
        for length, paper in ((64, "6.24"), (81, "6.37"), (100, "6.51"), (144, "6.84"), (196, "7.23"))
    ),
    "width, at m = 100": tuple(
        _bilinear(Depth.SHALLOW, 100, width, paper)
        for width, paper in ((25, "2.17"), (50, "4.34"), (75, "6.51"), (100, "8.68"))
    ),
    "methods, shallow": (
        Setting(Method.LINEAR_PROBE, Depth.SHALLOW, 0, 0, ("0.00",)),
        *(
            Setting(method, Depth.SHALLOW, 100, 0, ("76,800", "7.68"))
            for method in (Method.VPT, Method.SPT, Method.BPT_FWHITEN)
        ),
        Setting(Method.BPT_TWHITEN, Depth.SHALLOW, 100, 0, ("666,624", "66.66")),
        _bilinear(Depth.SHALLOW, 100, 75, "65,100", "6.51"),
    ),
    "deep (the first is printed, the others follow the paper's rules)": (
        _bilinear(Depth.DEEP, 50, 50, "183,600", "18.36"),
        Setting(Method.BPT_TWHITEN, Depth.DEEP, 50, 0, ("2,820,096",)),
        _bilinear(Depth.DEEP_TOP4, 50, 50, "163,600"),
    ),
}


def _module(setting: Setting) -> nn.Module:
    """What a trial trains beside its head, unfilled: P [k, m, d], W [k, d, d], A [k, m, p], B [k, d, p]."""
    k, trained = len(prompted_blocks(setting.depth, BLOCKS)), trained_mixing(setting.depth, BLOCKS)
    with torch.device("meta"):
        if not setting.method.has_prompts:
            return nn.Module()
        if setting.method is Method.BPT_BILINEAR:
            a, b = torch.empty(k, setting.prompts, setting.rank), torch.empty(k, WIDTH, setting.rank)
            return BilinearPrompts(a, b, trained)
        plain = torch.empty(k, setting.prompts, WIDTH)
        if setting.method in (Method.VPT, Method.SPT):
            return PlainPrompts(plain)
        matrices = torch.empty(k, WIDTH, WIDTH)
        return WhitenedPrompts(plain, matrices, trained if setting.method is Method.BPT_TWHITEN else 0)


def _agrees(count: int, figure: str) -> bool:
    return figure == (f"{count:,}" if "," in figure else f"{count / 1e4:.2f}")


def main() -> None:
    console, wrong = Console(width=max(90, Console().width)), 0
    for title, settings in TABLES.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("setting", no_wrap=True)
        for name in ("paper", "formula", "modules", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for setting in settings:
            counts = (setting.by_formula(), setting.on_modules())
            right = all(_agrees(count, figure) for count in counts for figure in setting.paper)
            wrong += not right
            mark = "[green]✓[/]" if right else "[red]✗[/]"
            table.add_row(str(setting), " = ".join(setting.paper), *(f"{count:,}" for count in counts), mark)
        console.print(table)
    console.print("figures with two decimals are in 10⁻² million")
    if wrong:
        console.print(f"[red]{wrong} differ[/]")
        sys.exit(1)


if __name__ == "__main__":
    main()
