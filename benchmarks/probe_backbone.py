"""How much do the features of a frozen backbone tell? Nearest neighbours and a linear probe on small photo sets.

    python -m benchmarks.probe_backbone A.safetensors B.safetensors [--json figures.json]

Figures are of a validation split carved out of each zip's train folder, 20 % of every class; the test folder is
not read unless --test is given: then all of train is fitted and the test images are scored.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import time
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from bpt_core.transforms import evaluation_view

DATASETS = Path("../shared/datasets")
TASKS = ("dogs-and-cats64.zip", "insects64.zip", "vehicles64.zip")
BATCH = 128  # images
WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Encoder(NamedTuple):
    model: Any  # timm's VisionTransformer, in eval mode; timm ships no types
    image_size: int  # pixels
    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]


def load_encoder(path: Path, device: str = "cpu") -> Encoder:
    """ValueError where the header has no card; RuntimeError where the weights are not those of its architecture."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if "card" not in header:
        raise ValueError(f"{path} has no card in its header: the architecture is not known")
    card = json.loads(header["card"])
    model = VisionTransformer(**{key: value for key, value in card["architecture"].items() if key != "class"})
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()}, strict=True)
    mean, std = (torch.tensor(card[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    return Encoder(model.to(device).eval(), model.patch_embed.img_size[0], mean, std)


@cache
def read_images(archive: Path, folder: str, size: int) -> tuple[Tensor, Tensor]:
    """<folder>/<class>/*.jpg|png of a zip -> evaluation views uint8 [N, 3, S, S], labels int64 [N].

    The classes are those of train, by name; ValueError where `folder` has another one.
    """
    with zipfile.ZipFile(archive) as file:
        found = [re.fullmatch(r"(train|test)/([^/]+)/[^/]+\.(?:jpe?g|png)", name) for name in sorted(file.namelist())]
        classes = sorted({match[2] for match in found if match and match[1] == "train"})
        wanted = [match for match in found if match and match[1] == folder]
        images = [Image.open(io.BytesIO(file.read(match[0]))).convert("RGB") for match in wanted]
    pixels = torch.from_numpy(np.stack([evaluation_view(image, size) for image in images])).permute(0, 3, 1, 2)
    return pixels, torch.tensor([classes.index(match[2]) for match in wanted])


@torch.inference_mode()
def features(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Batches of uint8 [B, 3, S, S] -> float32 [N, d] on the CPU: the mean of the patch tokens, then the final norm."""
    model, rows = encoder.model, []
    for pixels in batches:
        images = (pixels.to(encoder.mean.device).float() / 255 - encoder.mean) / encoder.std
        tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
        rows.append(model.fc_norm(tokens.mean(dim=1)).cpu())
    return torch.cat(rows)


def carve(labels: Tensor, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels [N] -> indices to fit on and indices held out, `share` of every class, drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        held.append(own[: round(len(own) * share)])
        kept.append(own[round(len(own) * share) :])
    return torch.cat(kept), torch.cat(held)


def knn_accuracy(
    known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Share of `asked` [M, d] that its k nearest of `known` [N, d] vote into its class `truth` [M].

    Nearest by cosine similarity s; votes weigh as exp(s / temperature). `labels` [N] are the classes of `known`.
    """
    similarity = functional.normalize(asked, dim=1) @ functional.normalize(known, dim=1).T
    nearest, index = similarity.topk(min(k, len(known)), dim=1)
    votes = functional.one_hot(labels[index]) * (nearest / temperature).softmax(1).unsqueeze(2)  # [M, k, C]
    return (votes.sum(1).argmax(1) == truth).double().mean().item()


def linear_probe_accuracy(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, weight_decay: float) -> float:
    """Accuracy on `asked` [M, d], `truth` [M] of a multinomial logistic regression on `known` [N, d], `labels` [N].

    Features are standardised by `known`; the loss is mean cross-entropy + weight_decay / 2 * |W|^2, fitted by LBFGS.
    """
    mean, std = known.mean(0), known.std(0) + 1e-6
    known, asked = (known - mean) / std, (asked - mean) / std
    weight = torch.zeros(int(labels.max()) + 1, known.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = functional.cross_entropy(functional.linear(known, weight, bias), labels)
        value = value + weight_decay / 2 * weight.square().sum()
        torch.autograd.backward(value)
        return value.item()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (functional.linear(asked, weight, bias).argmax(1) == truth).double().mean().item()


def probe(known: Tensor, labels: Tensor, test: tuple[Tensor, Tensor] | None = None) -> dict[str, float]:
    """Train features [N, d] and labels [N] (and test ones) -> both accuracies and the weight decay that was picked.

    The decay is the best on the carved validation split, so without `test` the linear figure flatters a little.
    """
    kept, held = carve(labels)
    split = known[kept], labels[kept], known[held], labels[held]
    linear = {decay: linear_probe_accuracy(*split, decay) for decay in WEIGHT_DECAYS}
    best = max(linear, key=linear.__getitem__)
    if test is None:
        return {"knn": knn_accuracy(*split), "linear": linear[best], "weight_decay": best}
    scored = known, labels, *test
    return {"knn": knn_accuracy(*scored), "linear": linear_probe_accuracy(*scored, best), "weight_decay": best}


def main() -> None:
    parser = argparse.ArgumentParser(description="k-nearest-neighbour and linear-probe accuracy of frozen backbones.")
    parser.add_argument("backbones", type=Path, nargs="+", help="safetensors files with a card in the header")
    parser.add_argument("--tasks", type=Path, nargs="+", default=[DATASETS / task for task in TASKS])
    parser.add_argument("--test", action="store_true", help="fit on all of train, score on the test folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if missing := [str(path) for path in given.backbones + given.tasks if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)} (zips with train/ and test/ are named with --tasks)")
    split, started = "test" if given.test else "validation", time.monotonic()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with Progress(transient=True) as progress:
        for path in given.backbones:
            encoder, row = load_encoder(path, given.device), figures.setdefault(str(path), {})
            for task in given.tasks:
                sets = []
                for folder in ("train", "test") if given.test else ("train",):
                    pixels, labels = read_images(task, folder, encoder.image_size)
                    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
                    tracked = progress.track(batches, description=f"{path.name}, {task.stem} {folder}")
                    sets.append((features(encoder, tracked), labels))
                row[task.stem] = probe(*sets[0], *sets[1:])
            row["mean"] = {kind: sum(task[kind] for task in row.values()) / len(row) for kind in ("knn", "linear")}
    seconds = time.monotonic() - started
    names = [*(task.stem for task in given.tasks), "mean"]
    table = Table(Column("backbone", overflow="fold"), title=f"accuracy on {split}, % ({seconds:.0f} s)")
    for name in names:
        table.add_column(f"{name}\n  knn linear", justify="right", no_wrap=True)
    for file, row in figures.items():
        table.add_row(file, *(f"{100 * row[name]['knn']:5.1f}  {100 * row[name]['linear']:5.1f}" for name in names))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"split": split, "seconds": seconds, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
