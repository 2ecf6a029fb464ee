"""What does a customer's prompt set cost beside the bare frozen ViT, and how many of them share a batch?

    python -m benchmarks.serving [--device cuda] [--model vit_base_patch16_224] [--batch 64] [--json FILE]

R0 is the plain timm forward of the same model (random weights), dtype and batch, its input normalised and on the
device. Ours is `Predictor.launch`: from uint8 pixels in the host's memory to logits there, heads included. Prompt sets
are random, 50 prompts and 20 classes each. All contestants of a table take turns, round by round; a ratio is the
median over the rounds of the ratio within a round. Each turn has a thread of its own: a thread that lives on keeps its
OpenMP workers, and on few cores that slows down all the others.

    one set      deep, shallow (also beside a shallow forward written plainly: tokens through whole timm blocks)
    mixed        every image under another of 100 or 1,000 sets, beside one set for all
    baselines    64 distinct sets by one forward each; every customer with a model of its own
    misses       a batch of which a tenth is not on the device, and what a load takes
    engine       the batcher at saturation beside the raw loop, and one request on an idle engine
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from benchmarks.prompt_sets import random_prompt_set
from bpt_core.backbones import Backbone, freeze
from bpt_core.catalog import Pooling
from bpt_core.engine import Engine, Wanted
from bpt_core.methods import Depth
from bpt_core.predict import Picture, Predictor
from bpt_core.residency import Resident
from bpt_core.vit import insert

Result = TypeVar("Result")

PROMPTS, CLASSES = 50, 20
POOLINGS = (Pooling.CLS, Pooling.MEAN_PATCHES, Pooling.MEAN_ALL)
DISTINCT = 64


@dataclass(frozen=True)
class Line:
    """`ratio` is how fast it is in parts of `beside`, or so many milliseconds where the unit says so."""

    what: str
    beside: str
    ratio: float
    goal: str
    unit: str = "x"


class Bench:
    def __init__(self, model: str, device: str, batch: int, rounds: int) -> None:
        torch.manual_seed(0)
        made = timm.create_model(model, pretrained=False, num_classes=0)
        self.backbone: Backbone = freeze(made, model, pooling=Pooling.CLS, device=device)
        self.predictor = Predictor(self.backbone, device_bytes=6 << 30, host_bytes=1 << 30)
        self.plain = self.predictor.backbone.model  # in the dtype that is served
        self.batch, self.rounds = batch, rounds
        size = self.backbone.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (max(batch, DISTINCT), size, size, 3), np.uint8)
        self.pictures: list[Picture] = list(pixels)
        inputs = self.backbone.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        self.inputs = inputs.to(next(self.plain.parameters()).dtype).contiguous()
        self._made: dict[tuple[object, ...], Resident] = {}

    def sets(self, count: int, depth: Depth, pooling: Pooling = Pooling.CLS, length: int = PROMPTS) -> list[Resident]:
        """So many different prompt sets, resident and pinned."""
        return apart(lambda: self._sets(count, depth, pooling, length))

    def _sets(self, count: int, depth: Depth, pooling: Pooling, length: int) -> list[Resident]:
        found = []
        for seed in range(count):
            key = (depth, pooling, seed, length)
            if key not in self._made:
                prompt_set = random_prompt_set(
                    self.backbone, depth=depth, pooling=pooling, seed=seed, length=length, classes=CLASSES
                )
                resident = self.predictor.residency.load(str(key), prompt_set)
                assert resident is not None
                self._made[key] = resident
            found.append(self._made[key])
        return found

    @torch.inference_mode()
    def timm(self, images: int | None = None) -> None:
        self.plain(self.inputs[: images or self.batch])
        self.wait()

    def ours(self, residents: Sequence[Resident], images: int | None = None) -> None:
        """A batch in which the images meet these prompt sets in turn."""
        count = images or self.batch
        rows = [(index, residents[index % len(residents)]) for index in range(count)]
        self.predictor.launch(self.pictures[:count], rows).predictions()

    @torch.inference_mode()
    def plain_shallow(self, prompts: Tensor) -> None:
        """One prompt set, as it would be written plainly: inserted once, then timm's blocks."""
        model, tokens = self.plain, self.plain.patch_embed(self.inputs[: self.batch])
        tokens = insert(model.norm_pre(model._pos_embed(tokens)), prompts[None], model.num_prefix_tokens)
        model.norm(model.blocks(tokens))[:, 0]
        self.wait()

    def wait(self) -> None:
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize()

    def take_turns(
        self, contestants: Mapping[str, Callable[[], object]], progress: Progress, title: str
    ) -> dict[str, list[float]]:
        """Seconds of each in every round; one round before them warms up."""
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        task = progress.add_task(title, total=(self.rounds + 1) * len(contestants))
        for turn in range(self.rounds + 1):
            for name, contestant in contestants.items():
                taken = apart(lambda contestant=contestant: timed(contestant))  # type: ignore[misc]
                if turn:
                    seconds[name].append(taken)
                progress.advance(task)
        return seconds


def apart(function: Callable[[], Result]) -> Result:
    """What it gives, from a thread that then ends."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def timed(contestant: Callable[[], object]) -> float:
    """The seconds it takes, or those it says it took."""
    begun = time.perf_counter()
    said = contestant()
    return said if isinstance(said, float) else time.perf_counter() - begun


def ratio(seconds: Mapping[str, Sequence[float]], what: str, beside: str) -> float:
    return median(there / here for here, there in zip(seconds[what], seconds[beside], strict=True))


def one_set(bench: Bench, progress: Progress) -> Iterable[Line]:
    goals = {Pooling.CLS: "0.98", Pooling.MEAN_PATCHES: "0.98", Pooling.MEAN_ALL: "0.96"}
    shallow = random_prompt_set(bench.backbone, length=PROMPTS).prompts
    assert shallow is not None
    prompts = shallow[0].to(bench.inputs)
    contestants: dict[str, Callable[[], object]] = {"timm": bench.timm, "plain": lambda: bench.plain_shallow(prompts)}
    for depth in Depth:
        for pooling in POOLINGS if depth is Depth.DEEP else (Pooling.CLS,):
            chosen = bench.sets(1, depth, pooling)
            contestants[f"{depth}, {pooling}"] = lambda chosen=chosen: bench.ours(chosen)  # type: ignore[misc]
    seconds = bench.take_turns(contestants, progress, "one set")
    for pooling in POOLINGS:
        yield Line(f"deep, {pooling}", "timm", ratio(seconds, f"deep, {pooling}", "timm"), goals[pooling])
    yield Line("deep-top4, cls", "timm", ratio(seconds, "deep-top4, cls", "timm"), "")
    yield Line("shallow, cls", "timm", ratio(seconds, "shallow, cls", "timm"), "")
    yield Line("shallow, cls", "the same written plainly", ratio(seconds, "shallow, cls", "plain"), "")


def mixed(bench: Bench, progress: Progress, counts: Sequence[int]) -> Iterable[Line]:
    goals = {(Depth.DEEP, 100): "0.98", (Depth.DEEP, 1000): "0.97"}
    goals |= {(Depth.SHALLOW, 100): "0.99", (Depth.SHALLOW, 1000): "0.98"}
    generator = np.random.default_rng(0)

    def drawn(chosen: Sequence[Resident]) -> list[Resident]:
        picked = generator.choice(len(chosen), bench.batch, replace=len(chosen) < bench.batch)
        return [chosen[index] for index in picked]

    for depth in (Depth.DEEP, Depth.SHALLOW):
        contestants: dict[str, Callable[[], object]] = {}
        for count in (1, *counts):
            chosen = bench.sets(count, depth)

            contestants[str(count)] = lambda chosen=chosen: bench.ours(drawn(chosen))  # type: ignore[misc]
        lengths = [each for length in (10, 25, 50) for each in bench.sets(8, depth, length=length)]
        contestants["lengths"] = lambda lengths=lengths: bench.ours(lengths)  # type: ignore[misc]
        seconds = bench.take_turns(contestants, progress, f"{depth}, mixed")
        for count in counts:
            goal = goals.get((depth, count), "")
            yield Line(f"{depth}, {count:,} sets mixed", "1 set", ratio(seconds, str(count), "1"), goal)
        yield Line(f"{depth}, lengths 10, 25, 50 mixed", "1 set of 50", ratio(seconds, "lengths", "1"), "")
    chosen = [
        one
        for same in zip(*(bench.sets(8, depth) for depth in (Depth.SHALLOW, Depth.DEEP, Depth.DEEP_TOP4)), strict=True)
        for one in same
    ]
    alone = {str(depth): bench.sets(1, depth) for depth in Depth}
    contestants = {name: (lambda one=one: bench.ours(one)) for name, one in alone.items()}  # type: ignore[misc]
    contestants["all"] = lambda: bench.ours(chosen)
    seconds = bench.take_turns(contestants, progress, "depths mixed")
    thirds = [sum(each) / 3 for each in zip(*(seconds[name] for name in alone), strict=True)]
    together = median(one / other for one, other in zip(thirds, seconds["all"], strict=True))
    yield Line("shallow, deep, deep-top4 mixed", "the three each alone", together, "")


def baselines(bench: Bench, progress: Progress, models: int) -> Iterable[Line]:
    chosen = bench.sets(DISTINCT, Depth.DEEP)

    def one_by_one() -> None:
        for index, resident in enumerate(chosen):
            bench.predictor.launch([bench.pictures[index]], [(0, resident)]).predictions()

    own = [copy.deepcopy(bench.plain) for _ in range(models)]

    @torch.inference_mode()
    def own_models() -> None:
        for index in range(DISTINCT):
            own[index % models](bench.inputs[index : index + 1])
        bench.wait()

    seconds = bench.take_turns(
        {"ours": lambda: bench.ours(chosen, DISTINCT), "one by one": one_by_one, "own models": own_models},
        progress,
        "baselines",
    )
    yield Line(f"{DISTINCT} distinct sets in a batch", "a forward each", ratio(seconds, "ours", "one by one"), "5")
    yield Line(
        f"{DISTINCT} customers in a batch",
        f"a model each ({models} in memory)",
        ratio(seconds, "ours", "own models"),
        "",
    )


def misses(bench: Bench, progress: Progress) -> Iterable[Line]:
    """Sets that are not on the device, as an engine meets them: loaded by another thread while batches run."""
    resident = bench.sets(100, Depth.DEEP)
    fresh = [
        random_prompt_set(bench.backbone, depth=Depth.DEEP, length=PROMPTS, classes=CLASSES, seed=10_000 + seed)
        for seed in range(64)
    ]
    loads: list[float] = []
    number = iter(range(1_000_000))

    def load() -> Resident:
        at = next(number)
        begun = time.perf_counter()
        found = bench.predictor.residency.load(f"fresh {at}", fresh[at % len(fresh)])
        loads.append(time.perf_counter() - begun)
        assert found is not None
        return found

    def with_misses() -> None:
        """As many loads as a tenth of the batch has rows, beside the batch before."""
        wanted = max(1, bench.batch // 10)
        with_loaded = resident[: bench.batch - wanted]
        loaded: list[Resident] = []

        def work() -> None:
            loaded.extend(load() for _ in range(wanted))

        thread = threading.Thread(target=work)
        thread.start()
        bench.ours([*with_loaded, *(previous or resident[:wanted])])
        thread.join()
        for one in previous:
            bench.predictor.residency.release(one)
        previous[:] = loaded

    previous: list[Resident] = []
    seconds = bench.take_turns({"hits": lambda: bench.ours(resident), "misses": with_misses}, progress, "misses")
    yield Line("deep, 10 % not on the device", "all on it", ratio(seconds, "misses", "hits"), "0.98")
    loads.sort()
    yield Line("a load, median", "", 1000 * median(loads), "", "ms")
    yield Line("a load, p99", "", 1000 * loads[min(len(loads) - 1, int(0.99 * len(loads)))], "1", "ms")


def engine(bench: Bench, progress: Progress) -> Iterable[Line]:
    """Single images of many customers through the engine, beside batches launched in a bare loop."""
    batches, count = 4, 100
    chosen = bench.sets(count, Depth.DEEP)
    name = bench.backbone.name
    ready = [each.numpy() for each in bench.inputs[: bench.batch].float().cpu()]
    wanted = [Wanted(resident.key, name, _never) for resident in chosen]

    def through_engine(images: int) -> float:
        batcher = Engine(lambda _: bench.predictor, batch_rows=bench.batch, queue_rows=1 << 20, decode_threads=1)
        batcher.predictor(name)
        # One more in front, for what a new thread does once.
        batcher.submit(0, ready[:1], [[wanted[0]]]).result()
        begun = time.perf_counter()
        answers = [
            batcher.submit(index % 10, [ready[index % len(ready)]], [[wanted[index % count]]])
            for index in range(images)
        ]
        for answer in answers:
            answer.result()
        taken = time.perf_counter() - begun
        batcher.close()
        return taken

    def bare(images: int) -> float:
        bench.predictor.launch(ready[:1], [(0, chosen[0])]).predictions()
        begun = time.perf_counter()
        for first in range(0, images, bench.batch):
            rows = [(index, chosen[(first + index) % count]) for index in range(min(bench.batch, images))]
            bench.predictor.launch(ready[: len(rows)], rows).predictions()
        return time.perf_counter() - begun

    many = batches * bench.batch
    contestants: dict[str, Callable[[], object]] = {
        "engine": lambda: through_engine(many),
        "bare": lambda: bare(many),
        "idle engine": lambda: through_engine(1),
        "alone": lambda: bare(1),
    }
    seconds = bench.take_turns(contestants, progress, "engine")
    yield Line(
        f"engine, single images, batches of {bench.batch}", "a bare loop", ratio(seconds, "engine", "bare"), "0.95"
    )
    more = median(one - other for one, other in zip(seconds["idle engine"], seconds["alone"], strict=True))
    yield Line("one request on an idle engine, more than bare", "", 1000 * more, "1", "ms")


def _never() -> Any:
    raise AssertionError("it is on the device")


def room(bench: Bench) -> Iterable[Line]:
    """How many sets fit, by their size."""
    size = bench.predictor.residency.pool.element_size() * bench.backbone.embed_dim
    for depth in (Depth.DEEP, Depth.SHALLOW):
        pages = len(bench.sets(1, depth)[0].pages)
        yield Line(f"{depth} sets in 80 GB", "", 80e9 / (pages * size), "10,000" if depth is Depth.DEEP else "", "sets")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", help="a plain timm ViT; ViT-S/16 on a CPU, ViT-B/16 on a GPU")
    parser.add_argument("--batch", type=int, help="8 on a CPU, 64 on a GPU: the service's defaults")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sets", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--models", type=int, default=4, help="backbones in memory where every customer has his own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    on_gpu = options.device != "cpu"
    model = options.model or ("vit_base_patch16_224" if on_gpu else "vit_small_patch16_224")
    batch = options.batch or (64 if on_gpu else 8)
    bench = apart(lambda: Bench(model, options.device, batch, options.rounds))
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    dtype = str(bench.inputs.dtype).removeprefix("torch.")
    console = Console()
    lines: list[Line] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        lines += one_set(bench, progress)
        lines += mixed(bench, progress, options.sets)
        lines += baselines(bench, progress, options.models)
        lines += misses(bench, progress)
        lines += engine(bench, progress)
        lines += room(bench)
    table = Table(title=f"{model}, {machine}, {dtype}, batch {bench.batch}, {PROMPTS} prompts", box=box.SIMPLE)
    for column in ("ours", "beside", "ratio", "goal"):
        table.add_column(column, justify="right" if column in ("ratio", "goal") else "left")
    for line in lines:
        shown = f"{line.ratio:.3f}" if line.unit == "x" else f"{line.ratio:,.1f} {line.unit}"
        table.add_row(line.what, line.beside, shown, line.goal)
    console.print(table)
    if options.json:
        facts = {"model": model, "machine": machine, "dtype": dtype, "batch": bench.batch, "torch": torch.__version__}
        options.json.write_text(json.dumps({**facts, "lines": [asdict(line) for line in lines]}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
