"""The pre-training of the bundled backbone, in small: what it learns from, what it hides, and that it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks import pretrain_mae
from benchmarks.pretrain_mae import MEAN, STD, MaskedAutoencoder, Pretraining, Settings, augment, load_pixels
from bpt_core import images, samples

TINY = Settings(
    image_size=32, embed_dim=32, depth=2, heads=2, decoder_dim=32, decoder_depth=1, batch_size=16, epochs=5.0
)
PATCHES, SIDE = 16, 8  # patches of an image of TINY, pixels along one


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 drawn flowers in the Hugging Face layout, larger than TINY takes them."""
    path = tmp_path_factory.mktemp("photos") / "photos.parquet"
    rows = [{"bytes": images.encode(samples.draw(seed % 10, seed)), "path": f"{seed}.png"} for seed in range(64)]
    pq.write_table(pa.table({"image": rows, "label": [seed % 10 for seed in range(64)]}), path)
    return path


@pytest.fixture(scope="module")
def pixels(parquet: Path) -> Tensor:
    return load_pixels([parquet], TINY.image_size, Progress(disable=True))


@pytest.fixture
def model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(TINY)


@pytest.fixture
def photos() -> Tensor:
    """float32 [3, 3, 32, 32], normalised noise."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Noise [count, n] that masks, and what it hides: bool [count, n], three quarters of each row."""
    drawn = torch.rand(count, PATCHES, generator=torch.Generator().manual_seed(2))
    return drawn, drawn >= drawn.sort(dim=1).values[:, PATCHES // 4, None]


def patches(photos: Tensor) -> Tensor:
    """[B, 3, 32, 32] -> [B, n, 3, 8, 8]: patches from left to right, then downwards."""
    rows = [photos[..., y : y + SIDE, x : x + SIDE] for y in range(0, 32, SIDE) for x in range(0, 32, SIDE)]
    return torch.stack(rows, dim=1)


def painting(model: MaskedAutoencoder, change: Callable[[Tensor], Tensor]) -> None:
    """From now on `change` sees, and replaces, the patches that the decoder paints, [B, n, 3 * 8 * 8]."""
    model.paint.register_forward_hook(lambda module, inputs, painted: change(painted))


def test_files_are_read_in_order_and_to_size(parquet: Path, pixels: Tensor) -> None:
    assert pixels.shape == (64, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    wanted = samples.draw(3, 33).resize((32, 32), resample=3)  # bicubic
    assert pixels[33].permute(1, 2, 0).flatten().tolist() == list(wanted.tobytes())
    assert torch.equal(load_pixels([parquet, parquet], 32, Progress(disable=True)), torch.cat([pixels, pixels]))


def test_the_loss_falls_below_what_a_patch_mean_gives(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_mae, "REPORT_EVERY", 10)
    run = Pretraining(replace(TINY, epochs=15.0, learning_rate=4e-3), pixels)
    curve = list(run.steps())
    assert [step for step, _ in curve] == [10, 20, 30, 40, 50, 60]
    assert curve == run.curve
    assert curve[0][1] > 1.0
    assert curve[-1][1] < 0.9  # a painter of grey, which knows nothing of the image, is at 1


@pytest.mark.parametrize("fresh", [True, False], ids=["another process", "the run itself, taken back"])
def test_a_run_goes_on_where_it_was_stopped(
    pixels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    monkeypatch.setattr(pretrain_mae, "REPORT_EVERY", 6)  # in the middle of an epoch, which has 4 steps
    straight = Pretraining(TINY, pixels)
    list(straight.steps())
    stopped = Pretraining(TINY, pixels)
    assert next(stopped.steps())[0] == 6
    stopped.save_state(tmp_path / "state")

    resumed = Pretraining(TINY, pixels) if fresh else stopped
    if not fresh:
        list(resumed.steps())
    resumed.load_state(tmp_path / "state")
    assert resumed.step == 6
    list(resumed.steps())
    assert resumed.step == straight.step == 20
    assert resumed.curve == straight.curve
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_state_of_other_settings_is_refused(pixels: Tensor, tmp_path: Path) -> None:
    Pretraining(TINY, pixels).save_state(tmp_path / "state")
    with pytest.raises(ValueError, match="other settings"):
        Pretraining(replace(TINY, seed=1), pixels).load_state(tmp_path / "state")


def test_the_saved_encoder_is_the_one_that_learned(photos: Tensor, pixels: Tensor, tmp_path: Path) -> None:
    run = Pretraining(replace(TINY, mask_share=0.0), pixels)
    for parameter in run.model.parameters():  # so that no two tensors are alike
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim)))
    entered: list[Tensor] = []
    run.model.enter.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    run.model(photos, torch.linspace(0, 1, PATCHES).expand(3, -1))  # all patches visible, in their order

    path = tmp_path / "encoder.safetensors"
    run.save_encoder(path, {"objective": "a test"})
    state = load_file(path)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    encoder = VisionTransformer(**TINY.architecture)
    encoder.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
    torch.testing.assert_close(encoder.fc_norm(encoder.forward_features(photos)), entered[0], atol=5e-3, rtol=0)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["card"]) == {"objective": "a test"}

    again = Pretraining(TINY, pixels, init=path)
    for name, tensor in again.model.encoder.state_dict().items():
        assert torch.equal(tensor, run.model.encoder.state_dict()[name].half().float()), name


@pytest.mark.parametrize("hidden_is_right", [True, False])
def test_only_hidden_patches_count(model: MaskedAutoencoder, photos: Tensor, hidden_is_right: bool) -> None:
    """Right is each patch at its own mean 0 and variance 1, in the order of its pixels: then the loss is 0."""
    drawn, hidden = noise(3)
    cut = photos.reshape(3, 3, 4, SIDE, 4, SIDE).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    assert torch.equal(cut, patches(photos).flatten(2))
    target = (cut - cut.mean(-1, keepdim=True)) / cut.std(-1, keepdim=True)
    right = hidden if hidden_is_right else ~hidden
    painting(model, lambda painted: torch.where(right[..., None], target, target + 3))
    assert model(photos, drawn).item() == pytest.approx(0.0 if hidden_is_right else 9.0, abs=1e-4)


def test_hidden_pixels_reach_the_loss_alone_and_visible_ones_the_painter(
    model: MaskedAutoencoder, photos: Tensor
) -> None:
    drawn, hidden = noise(3)
    cover = hidden.float().view(3, 1, 4, 4).repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3)
    seen: list[Tensor] = []
    painting(model, lambda painted: seen.append(painted) or painted)  # type: ignore[func-returns-value]
    losses = [model(photos + change, drawn).item() for change in (0, cover * photos.flip(0), (1 - cover) * 0.5)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)
    assert losses[0] != losses[1]


def test_a_patch_is_known_by_its_place_and_not_by_its_turn(model: MaskedAutoencoder, photos: Tensor) -> None:
    """The noise orders the visible patches; any order of the same ones paints the same picture."""
    drawn, hidden = noise(3)
    seen: list[Tensor] = []
    painting(model, lambda painted: seen.append(painted) or painted)  # type: ignore[func-returns-value]
    model(photos, drawn)
    model(photos, torch.where(hidden, 1.0, torch.linspace(0, 0.9, PATCHES)))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)


def ramps(count: int) -> Tensor:
    """uint8 [count, 3, 32, 32]: red grows by 7 to the right, green by 7 downwards."""
    across = (torch.arange(32, dtype=torch.uint8) * 7).expand(32, 32)
    return torch.stack([across, across.T, torch.zeros_like(across)]).expand(count, -1, -1, -1)


def bytes_of(crops: Tensor) -> Tensor:
    """Normalised [B, 3, S, S] -> 0..255."""
    return (crops * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def augmented(pixels: Tensor, monkeypatch: pytest.MonkeyPatch, *draws: float) -> Tensor:
    """`augment` where the five numbers drawn (area, aspect, x, y, flip; 0..1 each) are `draws`, scale_min 0.25."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.tensor(draws).view(5, 1).expand(shape))
    return bytes_of(augment(pixels, 0.25, torch.Generator()))


def test_the_whole_image_comes_back_as_it_is_or_mirrored(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = augmented(pixels, monkeypatch, 1.0, 0.5, 0.3, 0.8, 0.5)
    torch.testing.assert_close(whole, pixels.float(), atol=0.02, rtol=0)
    mirrored = augmented(pixels, monkeypatch, 1.0, 0.5, 0.3, 0.8, 0.49)
    torch.testing.assert_close(mirrored, pixels.flip(3).float(), atol=0.02, rtol=0)


def test_a_crop_is_enlarged_without_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the image, at the right and at the top: pixel i lies at (i + 0.5) / 2 - 0.5 from there."""
    crop = augmented(ramps(1), monkeypatch, 0.0, 0.5, 1.0, 0.0, 0.9)[0]
    place = (torch.arange(32) + 0.5) / 2 - 0.5
    inside = slice(4, -4)  # nearer to an edge the kernel sees its reflection
    # torch's cubic kernel (a = -0.75) bends a straight ramp by up to a twentieth of a step.
    torch.testing.assert_close(crop[0, 9, inside], 7 * (16 + place)[inside], atol=0.5, rtol=0)
    torch.testing.assert_close(crop[1, inside, 9], 7 * place[inside], atol=0.5, rtol=0)


def test_crops_have_the_areas_and_aspects_that_are_said() -> None:
    generator = torch.Generator().manual_seed(5)
    crops = augment(ramps(500), 0.2, generator)
    assert crops.shape == (500, 3, 32, 32)
    assert crops.dtype == torch.float32
    red, green = bytes_of(crops)[:, 0, 16], bytes_of(crops)[:, 1, :, 16]
    across, down = (red[:, 24] - red[:, 8]) / 16 / 7, (green[:, 24] - green[:, 8]) / 16 / 7  # source pixels per pixel
    area, aspect = across.abs() * down, across.abs() / down
    assert area.min() == pytest.approx(0.2, abs=0.02)
    assert area.max() == pytest.approx(1.0, abs=0.05)
    assert aspect.min() == pytest.approx(3 / 4, abs=0.03)
    assert aspect.max() == pytest.approx(4 / 3, abs=0.03)
    assert 200 < (across < 0).sum() < 300
    assert bytes_of(crops).min() > -0.01
    assert bytes_of(crops).max() < 7 * 31 + 0.1 * 7  # hardly beyond the brightest pixel: there is nothing outside
    assert torch.equal(augment(ramps(500), 0.2, torch.Generator().manual_seed(5)), crops)
    assert not torch.equal(augment(ramps(500), 0.2, generator), crops)


def test_strong_contrast_stays_within_the_range_of_bytes() -> None:
    """The cubic kernel overshoots at an edge."""
    board = (torch.arange(32)[:, None] // 4 + torch.arange(32) // 4) % 2 * 255
    crops = bytes_of(augment(board.to(torch.uint8).expand(50, 3, 32, 32), 0.2, torch.Generator().manual_seed(0)))
    assert crops.min() >= -0.01
    assert crops.max() <= 255.01


def test_the_command_trains_and_goes_on_from_its_state(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "encoder.safetensors"
    settings = asdict(replace(TINY, epochs=1.5, warmup_epochs=0.5))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    arguments = [str(parquet), "--out", str(out), "--device", "cpu", "--note", "flowers", *options]
    monkeypatch.setattr(sys, "argv", ["pretrain_mae", *arguments])
    pretrain_mae.main()
    with safe_open(out, "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["architecture"] == TINY.architecture
    assert (card["data"], card["images"], card["settings"]) == ("flowers", 64, settings)
    assert [step for step, _ in card["curve"]] == [6]
    VisionTransformer(**card["architecture"]).load_state_dict({k: v.float() for k, v in load_file(out).items()})

    first = out.read_bytes()
    out.unlink()
    monkeypatch.setattr(Pretraining, "_one_step", lambda self: pytest.fail("there was nothing left to train"))
    pretrain_mae.main()
    assert out.read_bytes() == first
