"""How much faster is our tuning than bilinear prompt tuning written down as research code does it?

    python -m benchmarks.tuning_speed [--device cuda] [--backbone vit_base_patch16_224.augreg_in21k] [--json FILE]

N0 (`NaiveRun`, ours but naive): prompts are tokens in every block they enter, folded again for every row; images are
JPEG files decoded in every epoch; a moving average of everything trained; the loss is read in every step. Ours is
`bpt_core.train.Group`. Both have the same backbone (random weights), photos, crops, optimiser, seed, dtype, and start
from the same tensors, so that both must reach the same losses: in float32 a difference above 1e-2 ends with status 1.

Runs take turns epoch by epoch (N0, ours, N0, ours, ...; every depth in every round); times are medians over epochs,
validation included in both. On a CPU busy with other work the ratio of CPU times is the steadier one. The first epochs
warm up, and in deep-top4 they fill the kept views: --views of them, far fewer than a real job's 8, whose whole cost
is projected. deep-top4 is set beside N0 of its own depth, and beside N0 with prompts in every block, which is what
the paper's users would have run. Photos are drawn flowers enlarged to a short side of 256;
N0 gets JPEG bytes and ours a packed dataset of the very same pixels, which it decodes once.

Memory: on CUDA the peak of allocated bytes, weights and kept tokens included. On a CPU the process's own figure tells
little, so it is the peak of bytes in distinct storages that autograd saves for backward, frozen weights left out.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from bpt_core import images, samples
from bpt_core.backbones import Backbone, freeze
from bpt_core.catalog import CATALOG, Pooling
from bpt_core.compute import Compute, Precision
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.methods import Depth, Method, prompted_blocks
from bpt_core.recipe import Recipe
from bpt_core.train import Group, Images
from bpt_core.transforms import Pixels, evaluation_view, training_view
from bpt_core.trial import Trial, learning_rate
from bpt_core.views import SplitImages

SHORT_SIDE = 256  # pixels of a stored photo
EMA_DECAY = 0.9999
SAME_LOSS = 1e-2  # nats, in float32
SIZES = {Depth.SHALLOW: (100, 75), Depth.DEEP: (50, 50), Depth.DEEP_TOP4: (50, 50)}  # the paper's m and p
SPEED_GOALS = {Depth.SHALLOW: 1.2, Depth.DEEP: 1.5, Depth.DEEP_TOP4: 4.0}
MEMORY_GOALS = {Depth.DEEP_TOP4: 0.45}
JOB_EPOCHS, JOB_VIEWS = 100, 8  # of a real job in depth deep-top4


class Photos(NamedTuple):
    """The same pixels twice: as ours stores them, and as JPEG bytes of each split in the same order."""

    packed: PackedDataset
    jpegs: dict[Split, list[bytes]]
    labels: dict[Split, list[int]]


def write_photos(directory: Path, *, train: int, val: int, classes: int = 10, short_side: int = SHORT_SIDE) -> Photos:
    """So many drawn flowers in all, their classes in turn."""
    counts = {Split.TRAIN: train, Split.VAL: val}
    labels = {split: [index % classes for index in range(count)] for split, count in counts.items()}
    jpegs: dict[Split, list[bytes]] = {split: [] for split in counts}
    with ShardWriter(directory, samples.CLASS_NAMES[:classes]) as writer:
        for split in counts:
            for index, label in enumerate(labels[split]):
                out, image = io.BytesIO(), samples.draw(label, index + (split is Split.VAL) * 1_000_000)
                scale = short_side / min(image.size)
                image.resize((round(image.width * scale), round(image.height * scale))).save(out, "JPEG", quality=90)
                jpegs[split].append(out.getvalue())
                pixels = images.encode(decode_jpeg(out.getvalue()))
                writer.write(Item(pixels, f"{split}/{index}.jpg", (label,), split))
    return Photos(PackedDataset(writer.shards), jpegs, labels)


def decode_jpeg(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


class NaiveRun:
    """N0: `recipe` (bilinear) from the tensors that `trial` starts with, without any of our savings."""

    def __init__(self, backbone: Backbone, photos: Photos, trial: Trial, pooling: Pooling, compute: Compute) -> None:
        assert trial.recipe.method is Method.BPT_BILINEAR
        assert pooling is not Pooling.MAP
        self.backbone, self.photos, self.recipe = backbone, photos, trial.recipe
        self.pooling, self.compute = pooling, compute
        self.trainables = copy.deepcopy(trial.trainables)
        self.prompts: Any = self.trainables["prompts"]  # its A [k, m, p], B [.., d, p] and the B of lower blocks
        self.head = self.trainables["head"]
        factors, bias = [self.prompts.A, self.prompts.B], [self.head.bias]
        decays = ((factors, self.recipe.weight_decay), ([self.head.weight], self.recipe.head_weight_decay), (bias, 0.0))
        self.optimizer = torch.optim.AdamW([{"params": each, "weight_decay": decay} for each, decay in decays])
        self.average = copy.deepcopy(self.trainables).requires_grad_(False)
        self.epochs_done = 0
        self.losses: list[float] = []  # of every step
        self.val_loss = 0.0

    def one_epoch(self) -> float:
        """-> mean training loss; validates, too."""
        recipe, labels = self.recipe, torch.tensor(self.photos.labels[Split.TRAIN], device=self.backbone.device)
        view = self.epochs_done % recipe.views if recipe.views else self.epochs_done
        order = np.random.default_rng((recipe.seed, self.epochs_done, 0)).permutation(len(labels))
        batches = np.split(order, range(recipe.batch_size, len(order), recipe.batch_size))
        total = 0.0

        def crop(index: int) -> Pixels:
            rng = np.random.default_rng((recipe.seed, view, index))
            image = decode_jpeg(self.photos.jpegs[Split.TRAIN][index])
            return training_view(image, self.backbone.image_size, rng, recipe.crop_scale_min)

        for batch, pixels in zip(batches, self._loaded(batches, crop), strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, len(self.losses), len(batches))
            loss = functional.cross_entropy(self._logits(pixels), labels[torch.from_numpy(batch)])
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            with torch.no_grad():
                for mean, value in zip(self.average.parameters(), self.trainables.parameters(), strict=True):
                    mean.mul_(EMA_DECAY).add_(value, alpha=1 - EMA_DECAY)
            self.losses.append(loss.item())
            total += self.losses[-1] * len(batch)
        self.epochs_done += 1
        self._validate()
        return total / len(labels)

    @torch.no_grad()
    def _validate(self) -> None:
        jpegs, size = self.photos.jpegs[Split.VAL], self.recipe.batch_size
        batches = np.split(np.arange(len(jpegs)), range(size, len(jpegs), size))

        def crop(index: int) -> Pixels:
            return evaluation_view(decode_jpeg(jpegs[index]), self.backbone.image_size)

        logits = torch.cat([self._logits(pixels) for pixels in self._loaded(batches, crop)])
        labels = torch.tensor(self.photos.labels[Split.VAL], device=logits.device)
        self.val_loss = functional.cross_entropy(logits, labels).item()

    @staticmethod
    def _loaded(batches: Sequence[Any], draw: Callable[[int], Pixels]) -> Iterator[Tensor]:
        """uint8 [B, 3, S, S] of each batch, made by two threads while the model works, as data-loader workers do."""
        with ThreadPoolExecutor(2) as pool:
            waiting = [[pool.submit(draw, int(index)) for index in batch] for batch in batches]
            for batch in waiting:
                yield torch.from_numpy(np.stack([each.result() for each in batch])).permute(0, 3, 1, 2)

    def _logits(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, C]: whole timm blocks, prompts among the tokens."""
        model, t, m = self.backbone.model, self.backbone.model.num_prefix_tokens, self.recipe.prompts
        prompted = prompted_blocks(self.recipe.depth, self.backbone.depth)
        with self.compute.autocast(self.backbone.device):
            x = model.norm_pre(model._pos_embed(model.patch_embed(self.backbone.normalise(pixels))))
            for index, block in enumerate(model.blocks):
                if index in prompted:
                    patches = x[:, t:] if index == prompted.start else x[:, t + m :]
                    x = torch.cat([x[:, :t], self._folded(index - prompted.start, len(x)), patches], dim=1)
                x = block(x)
            if self.pooling is Pooling.CLS:
                pooled = x[:, 0]
            else:
                pooled = x[:, t if self.pooling is Pooling.MEAN_ALL else t + m :].mean(dim=1)
            features = model.fc_norm(model.norm(pooled))
        logits: Tensor = self.head(features.float())
        return logits

    def _folded(self, at: int, rows: int) -> Tensor:
        """Prompts of the prompted block number `at`, once for every row: [rows, m, d]."""
        a, own = self.prompts.A[at], at - len(self.prompts.fixed)
        b = self.prompts.fixed[at] if own < 0 else self.prompts.B[own]
        folded: Tensor = a.expand(rows, -1, -1) @ b.expand(rows, -1, -1).mT
        return folded


class SavedBytes:
    """Bytes that autograd holds for backward inside `measured`: distinct storages, the frozen weights left out."""

    class _Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def __init__(self, frozen: Any) -> None:
        self._frozen = {weight.untyped_storage().data_ptr() for weight in frozen.parameters()}
        self._holders: Counter[int] = Counter()  # by storage
        self._bytes = self.peak = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor):
            yield

    def _pack(self, tensor: Tensor) -> _Held:
        held, storage = self._Held(tensor), tensor.untyped_storage()
        if storage.data_ptr() not in self._frozen:
            self._count(storage.data_ptr(), storage.nbytes(), 1)
            weakref.finalize(held, self._count, storage.data_ptr(), storage.nbytes(), -1)
        return held

    def _count(self, storage: int, size: int, holders: int) -> None:
        before = self._holders[storage]
        self._holders[storage] += holders
        self._bytes += size * (bool(self._holders[storage]) - bool(before))
        self.peak = max(self.peak, self._bytes)


class AllocatedBytes:
    """Bytes on the CUDA device that one run of several holds or allocates inside `measured`, and the weights."""

    def __init__(self, frozen: Any) -> None:
        self._own = sum(weight.nbytes for weight in frozen.parameters())
        self.peak = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield
        self.peak = max(self.peak, self._own + torch.cuda.max_memory_allocated() - before)
        self._own += torch.cuda.memory_allocated() - before


class Contender:
    """One of the runs that take turns, and what its epochs came to."""

    def __init__(self, one_epoch: Callable[[], float], backbone: Backbone, warm_up: int) -> None:
        self._one_epoch, self._warm_up = one_epoch, warm_up
        on_cuda = backbone.device.type == "cuda"
        self._synchronise: Callable[[], object] = torch.cuda.synchronize if on_cuda else lambda: None
        self.memory = AllocatedBytes(backbone.model) if on_cuda else SavedBytes(backbone.model)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []  # of all threads: what a machine busy with other work disturbs less
        self.losses: list[float] = []

    def turn(self) -> None:
        """One epoch. Memory is measured while warming up, so that it costs the timed epochs nothing."""
        warming = len(self.seconds) < self._warm_up
        measuring: AbstractContextManager[None] = self.memory.measured() if warming else nullcontext()
        self._synchronise()
        started, cpu_started = time.perf_counter(), time.process_time()
        with measuring:
            self.losses.append(self._one_epoch())
        self._synchronise()
        self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds.append(time.process_time() - cpu_started)

    @property
    def first(self) -> float:
        """Seconds of an epoch while warming up."""
        return median(self.seconds[: self._warm_up])

    @property
    def later(self) -> float:
        return median(self.seconds[self._warm_up :])

    @property
    def later_cpu(self) -> float:
        return median(self.cpu_seconds[self._warm_up :])


class Pair(NamedTuple):
    naive: Contender
    ours: Contender


def make_recipe(depth: Depth, backbone: Backbone, *, batch: int, epochs: int, views: int) -> Recipe:
    """The paper's m and p where the backbone has as many patches; starts at random, so no whitening."""
    prompts, rank = (min(size, backbone.model.patch_embed.num_patches) for size in SIZES[depth])
    views = views if depth is Depth.DEEP_TOP4 else 0
    sizes: dict[str, Any] = {"prompts": prompts, "rank": rank, "batch_size": batch, "epochs": epochs, "views": views}
    return Recipe(Method.BPT_BILINEAR, depth, **sizes, warmup_epochs=1, learning_rate=1e-2)


def make_pair(backbone: Backbone, photos: Photos, decoded: Images, recipe: Recipe, compute: Compute) -> Pair:
    group = Group(backbone, decoded, [recipe], compute)
    naive = NaiveRun(backbone, photos, group.trials[0], group.pooling, compute)
    warm_up = max(1, recipe.views)
    return Pair(
        Contender(naive.one_epoch, backbone, warm_up),
        Contender(lambda: group.one_epoch().train_loss, backbone, warm_up),
    )


def decode_once(photos: Photos, image_size: int) -> Images:
    splits = [SplitImages(photos.packed, split, image_size) for split in (Split.TRAIN, Split.VAL)]
    return Images(splits[0], splits[1], tuple(photos.packed.class_names), photos.packed.task)


def figures(depth: Depth, against: Depth, pairs: dict[Depth, Pair], precision: Precision) -> dict[str, Any]:
    """What `depth` of ours came to beside N0 of the depth `against`."""
    naive, ours = pairs[against].naive, pairs[depth].ours
    filling = JOB_VIEWS if depth is Depth.DEEP_TOP4 else 0
    whole = filling * ours.first + (JOB_EPOCHS - filling) * ours.later
    row: dict[str, Any] = {"depth": depth, "against": against, "precision": precision}
    row |= {"naive_seconds": naive.seconds, "ours_seconds": ours.seconds}
    row |= {"naive_epoch": naive.later, "ours_epoch": ours.later, "ours_first_epoch": ours.first}
    row |= {"speed_up": naive.later / ours.later, "speed_goal": SPEED_GOALS[depth]}
    row |= {"speed_up_in_cpu_seconds": naive.later_cpu / ours.later_cpu}
    row |= {"speed_up_of_a_job": JOB_EPOCHS * naive.later / whole}
    row |= {"naive_bytes": naive.memory.peak, "ours_bytes": ours.memory.peak}
    row |= {"memory": ours.memory.peak / naive.memory.peak, "memory_goal": MEMORY_GOALS.get(depth)}
    return row | {"naive_losses": naive.losses, "ours_losses": ours.losses}


def loss_difference(row: dict[str, Any]) -> float:
    """The largest between the losses of N0 and ours after equally many epochs; 0 where they are of two depths."""
    if row["depth"] is not row["against"]:
        return 0.0
    pairs: list[tuple[float, float]] = list(zip(row["naive_losses"], row["ours_losses"], strict=True))
    return max(abs(naive - ours) for naive, ours in pairs)


def _mark(reached: bool) -> str:
    return "[green]✓[/]" if reached else "[red]✗[/]"


def _table(*names: str, title: str | None = None) -> Table:
    table = Table("ours", "N0", "dtype", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_figures(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    times = _table("N0 s/epoch", "ours", "first", "faster", "goal", "", "by CPU time", "job", title=title)
    rest = _table("N0 MiB", "ours", "ratio", "goal", "", "N0 loss", "ours")
    for row in rows:
        who = [str(row[name]) for name in ("depth", "against", "precision")]
        seconds = [f"{row[name]:.2f}" for name in ("naive_epoch", "ours_epoch", "ours_first_epoch")]
        reached = _mark(row["speed_up"] >= row["speed_goal"])
        goal = f"≥ {row['speed_goal']:.1f}"
        ratios = [f"{row[f'speed_up{kind}']:.2f}×" for kind in ("", "_in_cpu_seconds", "_of_a_job")]
        times.add_row(*who, *seconds, ratios[0], goal, reached, *ratios[1:])
        sizes = [f"{row[name] / 2**20:.0f}" for name in ("naive_bytes", "ours_bytes")]
        wanted = row["memory_goal"]
        memory = ["", ""] if wanted is None else [f"≤ {wanted}", _mark(row["memory"] <= wanted)]
        losses = [f"{row[name][-1]:.5f}" for name in ("naive_losses", "ours_losses")]
        rest.add_row(*who, *sizes, f"{row['memory']:.2f}", *memory, *(losses if who[0] == who[1] else ["", ""]))
    console.print(times, rest)


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds per epoch and memory of tuning, naive and ours in turn.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--backbone", default="vit_base_patch16_224.mae", help="its shape and pooling; random weights")
    parser.add_argument("--depths", type=Depth, nargs="+", default=list(Depth))
    parser.add_argument("--images", type=int, help="to train on, and a quarter of it to validate with")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--epochs", type=int, default=3, help="timed, after those that warm up")
    parser.add_argument("--views", type=int, default=1, help="kept views of an image, in depth deep-top4")
    parser.add_argument("--precision", type=Precision, nargs="+", help="default: float32, and on CUDA bf16 too")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    on_cuda = given.device == "cuda"
    count, batch = given.images or (512 if on_cuda else 16), given.batch or (32 if on_cuda else 8)
    precisions = given.precision or [Precision.BF16, Precision.FLOAT32][0 if on_cuda else 1 :]
    warm_up = max(1, given.views)
    backbone = _backbone(given.backbone, given.device)
    machine = torch.cuda.get_device_name() if on_cuda else f"{torch.get_num_threads()} threads, {platform.machine()}"
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as directory, Progress(transient=True) as progress:
        photos = write_photos(Path(directory), train=count, val=max(1, count // 4))
        decoded = decode_once(photos, backbone.image_size)
        for precision in precisions:
            pairs = {}
            for depth in given.depths:
                recipe = make_recipe(depth, backbone, batch=batch, epochs=warm_up + given.epochs, views=given.views)
                pairs[depth] = make_pair(backbone, photos, decoded, recipe, Compute(precision))
            for _ in progress.track(range(warm_up + given.epochs), description=f"rounds, {precision}"):
                for pair in pairs.values():
                    pair.naive.turn()
                    pair.ours.turn()
            rows += [figures(depth, depth, pairs, precision) for depth in pairs]
            if {Depth.DEEP, Depth.DEEP_TOP4} <= set(pairs):  # what a job of the paper's would have cost instead
                rows.append(figures(Depth.DEEP_TOP4, Depth.DEEP, pairs, precision))
    settings = f"{given.backbone}, {backbone.pooling}, {count} images, batch {batch}, {machine}"
    console = Console(width=max(110, Console().width))
    print_figures(console, settings, rows)
    console.print(f"job: {JOB_EPOCHS} epochs, in deep-top4 with {JOB_VIEWS} views to keep first (projected)")
    console.print(f"memory: {'peak allocated' if on_cuda else 'saved for backward, without weights and kept tokens'}")
    if given.json:
        given.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    worst = max((loss_difference(row) for row in rows if row["precision"] is Precision.FLOAT32), default=0.0)
    if not worst <= SAME_LOSS:
        console.print(f"[red]the losses differ by {worst:.4f} in float32: the two do not train the same[/]")
        sys.exit(1)


def _backbone(name: str, device: str) -> Backbone:
    spec = CATALOG.get(name)
    torch.manual_seed(0)
    if spec is None:
        return freeze(timm.create_model(name, pretrained=False, num_classes=0), name, device=device)
    shape = spec.architecture
    model = VisionTransformer(**shape) if shape else timm.create_model(name, pretrained=False, num_classes=0)
    return freeze(model, name, pooling=spec.pooling, mean=spec.mean, std=spec.std, device=device)


if __name__ == "__main__":
    main()
