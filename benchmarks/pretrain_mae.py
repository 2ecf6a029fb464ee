"""Pre-train a plain ViT as a masked autoencoder (He et al., CVPR 2022) on Parquet image files; save its encoder.

    python -m benchmarks.pretrain_mae photos-*.parquet --out encoder.safetensors --epochs 400

A run is a function of its settings: crops and masks are drawn from (seed, step), so one that was stopped and is
started again with the same command goes on from `<out>.state` and ends where it would have ended.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REPORT_EVERY = 50  # steps between two points of the loss curve
SAVE_EVERY = 500  # steps between two states on disk


@dataclass(frozen=True)
class Settings:
    """One pre-training run. `learning_rate` is the peak, reached after `warmup_epochs`, then half a cosine to 0."""

    image_size: int = 64
    patch_size: int = 8
    embed_dim: int = 192
    depth: int = 12
    heads: int = 3
    decoder_dim: int = 128
    decoder_depth: int = 2
    mask_share: float = 0.75
    epochs: float = 400.0
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    crop_scale_min: float = 0.2
    seed: int = 0

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of timm's VisionTransformer for the encoder."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.heads,
            "class_token": True,
            "global_pool": "avg",
            "num_classes": 0,
        }


class MaskedAutoencoder(nn.Module):
    """Encoder over the visible patches alone, and a narrow decoder that paints the hidden ones."""

    positions: Tensor  # [1, n, decoder_dim]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        side, width = settings.image_size // settings.patch_size, settings.decoder_dim
        # The final norm is `norm` while pre-training (the decoder reads tokens) and `fc_norm` in the saved encoder.
        self.encoder: Any = VisionTransformer(**settings.architecture | {"global_pool": "", "fc_norm": False})
        self.enter = nn.Linear(settings.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, width // 32) for _ in range(settings.decoder_depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.paint = nn.Linear(width, 3 * settings.patch_size**2)
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", _positions(side, width), persistent=False)
        with torch.no_grad():
            self.encoder.get_parameter("pos_embed").copy_(
                functional.pad(_positions(side, settings.embed_dim), (0, 0, 1, 0))
            )

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """images [B, 3, S, S] normalised, noise [B, n] whose smallest entries stay visible -> mean loss."""
        count = noise.shape[1]
        visible = noise.argsort(dim=1)[:, : round(count * (1 - self.settings.mask_share))]
        hidden = torch.ones_like(noise).scatter_(1, visible, 0)
        tokens = self.encoder._pos_embed(self.encoder.patch_embed(images))
        kept = tokens[:, 1:].gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
        encoded = self.enter(self.encoder.norm(self.encoder.blocks(torch.cat([tokens[:, :1], kept], dim=1))))
        canvas = self.mask_token.to(encoded.dtype).expand(len(images), count, -1)
        canvas = canvas.scatter(1, visible[..., None].expand(-1, -1, canvas.shape[-1]), encoded[:, 1:])
        decoded = self.blocks(torch.cat([encoded[:, :1], canvas + self.positions], dim=1))
        painted = self.paint(self.norm(decoded[:, 1:])).float()
        target = functional.pixel_unshuffle(images, self.settings.patch_size).flatten(2).transpose(1, 2)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        loss: Tensor = ((painted - target).square().mean(-1) * hidden).sum() / hidden.sum()
        return loss

    def encoder_state(self) -> dict[str, Tensor]:
        """The encoder under the names timm gives a ViT that pools by the mean."""
        state = self.encoder.state_dict()
        return {f"fc_{key}" if key.startswith("norm.") else key: value for key, value in state.items()}

    def load_encoder(self, path: Path) -> None:
        state = {key.removeprefix("fc_"): value.float() for key, value in load_file(path).items()}
        self.encoder.load_state_dict(state, strict=True)


def augment(pixels: Tensor, scale_min: float, generator: torch.Generator) -> Tensor:
    """uint8 [B, 3, S, S] -> float32, normalised: a random resized crop of each (bicubic, aspect 3/4..4/3), half of
    them flipped. Runs where the pixels are, a whole batch at a time."""
    count, device = len(pixels), pixels.device
    drawn = torch.rand(5, count, generator=generator).to(device)
    area = scale_min + (1 - scale_min) * drawn[0]
    aspect = ((drawn[1] * 2 - 1) * math.log(4 / 3)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(drawn[4] < 0.5, -1.0, 1.0)
    affine = torch.zeros(count, 2, 3, device=device)
    affine[:, 0, 0], affine[:, 1, 1] = width * flip, height
    affine[:, 0, 2], affine[:, 1, 2] = (drawn[2] * 2 - 1) * (1 - width), (drawn[3] * 2 - 1) * (1 - height)
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    crops = functional.grid_sample(pixels.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
    return (crops.clamp(0, 255) / 255 - mean) / std


class Pretraining:
    """A run: `steps()` trains and yields (step, loss); state and encoder can be saved after any step."""

    def __init__(self, settings: Settings, pixels: Tensor, *, device: str = "cpu", init: Path | None = None) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        self.pixels = pixels.to(self.device)  # 80,000 images of 64 pixels are 1 GB
        self.model = MaskedAutoencoder(settings)
        if init is not None:
            self.model.load_encoder(init)
        self.model.to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )
        self.steps_per_epoch = max(1, len(pixels) // settings.batch_size)
        self.total_steps = round(settings.epochs * self.steps_per_epoch)
        self.step = 0
        self.curve: list[tuple[int, float]] = []  # (step, mean loss since the last point)
        self._shuffled, self._order = -1, torch.empty(0)  # an epoch, and its order of the images

    def steps(self) -> Iterator[tuple[int, float]]:
        """Trains to the end, yielding (steps done, loss) every REPORT_EVERY steps and after the last."""
        total, counted = torch.zeros((), device=self.device), 0
        while self.step < self.total_steps:
            total += self._one_step()
            counted += 1
            self.step += 1
            if self.step % REPORT_EVERY == 0 or self.step == self.total_steps:
                self.curve.append((self.step, total.item() / counted))
                yield self.curve[-1]
                total, counted = torch.zeros((), device=self.device), 0

    def _one_step(self) -> Tensor:
        settings = self.settings
        epoch, at = divmod(self.step, self.steps_per_epoch)
        if epoch != self._shuffled:
            self._order = torch.from_numpy(np.random.default_rng((settings.seed, epoch)).permutation(len(self.pixels)))
            self._shuffled = epoch
        chosen = self._order[at * settings.batch_size : (at + 1) * settings.batch_size]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        images = augment(self.pixels[chosen.to(self.device)], settings.crop_scale_min, generator)
        noise = torch.rand(len(images), self.model.positions.shape[1], generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss: Tensor = self.model(images, noise.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _learning_rate(self) -> float:
        warmup = self.settings.warmup_epochs * self.steps_per_epoch
        if self.step < warmup:
            return self.settings.learning_rate * min(1, (self.step + 1) / warmup)
        share = (self.step - warmup) / max(1, self.total_steps - warmup)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def save_state(self, path: Path) -> None:
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": self.curve,
        }
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        beside.replace(path)

    def load_state(self, path: Path) -> None:
        """ValueError where the state is that of a run with other settings."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise ValueError(f"{path} was written with other settings: {state['settings']}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], [tuple(point) for point in state["curve"]]

    def save_encoder(self, path: Path, card: dict[str, Any]) -> None:
        """float16 safetensors that timm loads strictly (after casting to float32), with `card` in the header."""
        state = {key: value.half().cpu().contiguous() for key, value in self.model.encoder_state().items()}
        save_file(state, path, {"card": json.dumps(card, sort_keys=True)})


def load_pixels(paths: list[Path], image_size: int, progress: Progress) -> Tensor:
    """All images of Parquet files in the Hugging Face layout -> uint8 [N, 3, S, S]."""

    def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.array(image).transpose(2, 0, 1)

    files = [pq.ParquetFile(path) for path in paths]
    count = sum(file.metadata.num_rows for file in files)
    pixels = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
    task, at = progress.add_task("decoding", total=count, note=""), 0
    with ThreadPoolExecutor() as pool:
        for file in files:
            for batch in file.iter_batches(1000, columns=["image"]):
                rows: list[Any] = batch.column(0).to_pylist()
                for pixel in pool.map(decode, (row["bytes"] for row in rows)):
                    pixels[at] = torch.from_numpy(pixel)
                    at += 1
                progress.update(task, completed=at)
    return pixels


def _positions(side: int, width: int) -> Tensor:
    """Sine-cosine positions [1, side^2, width]."""
    return build_sincos2d_pos_embed([side, side], width, interleave_sin_cos=False).unsqueeze(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train a plain ViT as a masked autoencoder.")
    parser.add_argument("data", type=Path, nargs="+", help="Parquet files in the Hugging Face image layout")
    parser.add_argument("--out", type=Path, required=True, help="the encoder, a safetensors file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--init", type=Path, help="an encoder of the same shape to go on from")
    parser.add_argument("--note", default="", help="what the data is, for the card in the file's header")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    settings = Settings(**{name: given[name] for name in asdict(Settings())})
    out: Path = given["out"]
    state = out.with_name(out.name + ".state")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        run = Pretraining(
            settings,
            load_pixels(given["data"], settings.image_size, progress),
            device=given["device"],
            init=given["init"],
        )
        if state.is_file():
            run.load_state(state)
        started, first = time.monotonic(), run.step
        task = progress.add_task("training", total=run.total_steps, completed=first, note="")
        for step, loss in run.steps():
            pace = (step - first) * settings.batch_size / (time.monotonic() - started)
            note = f"epoch {step / run.steps_per_epoch:.1f}, loss {loss:.4f}, {pace:.0f} images/s"
            progress.update(task, completed=step, note=note)
            if step % SAVE_EVERY == 0:
                run.save_state(state)
    run.save_state(state)
    on_gpu = run.device.type == "cuda"
    card = {
        "objective": "masked autoencoder, normalised pixels",
        "data": given["note"] or ", ".join(path.name for path in given["data"]),
        "images": len(run.pixels),
        "settings": asdict(settings),
        "continued_from": given["init"] and given["init"].name,
        "loss": round(run.curve[-1][1], 4),
        "curve": [[step, round(loss, 4)] for step, loss in run.curve[:: max(1, len(run.curve) // 200)]],
        "command": "python -m benchmarks.pretrain_mae " + shlex.join(sys.argv[1:]),
        "hardware": torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads",
        "mean": MEAN,
        "std": STD,
        "architecture": settings.architecture,
    }
    run.save_encoder(out, card)


if __name__ == "__main__":
    main()
