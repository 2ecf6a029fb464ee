from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from bpt_core import facts, images, samples
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical, Facts


def measured(image: Image.Image) -> Facts:
    return facts.measure(image, image.size)


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def texture(side: int, seed: int = 0) -> Image.Image:
    """A picture with the spectrum of photographs, 1/f²."""
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    drawn = np.fft.irfft2(noise / frequency, s=(side, side))
    return grey(np.clip(128 + 45 * drawn / drawn.std(), 0, 255))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return images.canonical(out.getvalue())


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [samples.draw(n % 10, n) for n in range(30)]


def bits_apart(first: Image.Image, second: Image.Image) -> int:
    return (measured(first).hash ^ measured(second).hash).bit_count()


@pytest.mark.parametrize(
    ("levels", "brightness", "contrast", "entropy"),
    [
        (np.zeros((40, 40)), 0.0, 0.0, 0.0),
        (np.full((300, 400), 255), 1.0, 0.0, 0.0),
        (np.indices((64, 64)).sum(axis=0) % 2 * 255, 0.5, 0.5, 1.0),
        (np.tile(np.arange(256), (8, 1)).reshape(32, 64), 0.5, np.std(np.arange(256) / 255), 8.0),
    ],
    ids=["black", "white", "chess board", "all levels alike"],
)
def test_brightness_contrast_and_entropy_are_those_of_the_luma(
    levels: np.ndarray, brightness: float, contrast: float, entropy: float
) -> None:
    found = measured(grey(levels))
    assert found.brightness == pytest.approx(brightness, abs=1e-6)
    assert found.contrast == pytest.approx(contrast, abs=1e-6)
    assert found.entropy == pytest.approx(entropy, abs=1e-6)


def test_green_is_brighter_than_red_and_red_than_blue() -> None:
    bright = [measured(Image.new("RGB", (8, 8), colour)).brightness for colour in ("lime", "red", "blue")]
    assert bright == pytest.approx([0.587, 0.299, 0.114], abs=0.003)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    spot = np.zeros((9, 9))
    spot[4, 4] = 255  # the Laplacian is -4 there and 1 at its four neighbours
    assert measured(grey(spot)).sharpness == pytest.approx(20 / 81)
    edge = np.zeros((4, 10))
    edge[:, 5:] = 255  # 1 on the one side and -1 on the other, as far as the border and not beyond
    assert measured(grey(edge)).sharpness == pytest.approx(8 / 40)
    assert measured(grey(np.tile(np.arange(0, 200, 2), (50, 1)))).sharpness < 1e-4


def test_sharp_pictures_of_all_sizes_are_alike_sharp_and_blurred_ones_are_not() -> None:
    large = texture(512)
    sharp = [measured(resized(large, side / 512)).sharpness for side in (64, 128, 200, 320, 512)]
    assert max(sharp) < 2 * min(sharp)
    for side in (64, 128, 320, 512):
        picture = resized(large, side / 512)
        assert measured(picture.filter(ImageFilter.GaussianBlur(side / 64))).sharpness < min(sharp) / 4
    assert measured(resized(resized(large, 1 / 16), 8)).sharpness < min(sharp) / 4  # enlarged from 32 pixels


def test_detail_finer_than_the_scale_of_128_pixels_does_not_count() -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    found = measured(grey(board))
    assert (found.contrast, found.sharpness) == pytest.approx((0, 0), abs=1e-3)
    assert measured(grey(board[:128, :128])).sharpness > 10


def test_the_size_is_that_of_the_original() -> None:
    found = facts.measure(Image.new("RGB", (32, 24)), (4_000, 3_000))
    assert (found.width, found.height) == (4_000, 3_000)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 9), low=st.integers(0, 255))
def test_pictures_of_any_size_have_facts_in_their_ranges(width: int, height: int, seed: int, low: int) -> None:
    pixels = np.random.default_rng(seed).integers(low, 256, (height, width, 3), dtype=np.uint8)
    found = measured(Image.fromarray(pixels))
    assert 0 <= found.brightness <= 1
    assert 0 <= found.contrast <= 0.5
    assert 0 <= found.sharpness <= 64
    assert 0 <= found.entropy <= 8
    assert 0 <= found.hash < 1 << 64


@pytest.mark.parametrize("size", [(1, 1), (480, 1), (1, 2), (300, 100_000)])
def test_strips_have_facts_and_a_thumbnail_too(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "gray")
    found = measured(image)
    assert (found.sharpness, found.entropy, found.hash) == (0, 0, 0)
    assert images.sniff(facts.thumbnail(image)) == "JPEG"


@pytest.mark.parametrize("colour", ["black", "white", "gray", "red", (7, 99, 201)])
def test_pictures_of_one_colour_all_have_the_hash_zero(colour: str | tuple[int, int, int]) -> None:
    assert measured(Image.new("RGB", (90, 60), colour)).hash == 0


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded at quality 75": lambda image: jpeg(image, 75),
    "encoded at quality 40": lambda image: jpeg(image, 40),
    "halved": lambda image: resized(image, 0.5),
    "smaller and encoded": lambda image: jpeg(resized(image, 0.67), 60),
    "doubled": lambda image: resized(image, 2),
    "a little cropped": lambda image: cropped(image, 0.02),
    "brighter": lambda image: image.point([min(255, level + 20) for level in range(256)] * 3),
    "darker": lambda image: image.point([max(0, level - 20) for level in range(256)] * 3),
    "more contrast": lambda image: image.point([min(255, max(0, round(1.2 * level - 25))) for level in range(256)] * 3),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_have_hashes_few_bits_apart(copy: str, drawn: list[Image.Image]) -> None:
    apart = sorted(bits_apart(image, COPIES[copy](image)) for image in drawn)
    assert apart[len(drawn) * 2 // 3] <= 4
    assert apart[-2] <= 6


def test_different_pictures_have_hashes_many_bits_apart(drawn: list[Image.Image]) -> None:
    hashes = [measured(image).hash for image in drawn]
    apart = [(a ^ b).bit_count() for at, a in enumerate(hashes) for b in hashes[:at]]
    assert min(apart) >= 8
    assert 28 <= np.mean(apart) <= 33  # half of the bits: each says something


def test_turned_and_mirrored_pictures_are_different_ones() -> None:
    picture = texture(96, seed=3)
    for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180):
        assert bits_apart(picture, picture.transpose(turn)) > 16


@pytest.mark.parametrize(
    ("size", "shown"), [((320, 240), (96, 72)), ((240, 320), (72, 96)), ((96, 40), (96, 40)), ((30, 20), (30, 20))]
)
def test_a_thumbnail_is_a_jpeg_with_96_pixels_at_most(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = samples.draw(4, 4).resize(size)
    data = facts.thumbnail(image)
    small = Image.open(io.BytesIO(data))
    assert (small.format, small.size) == ("JPEG", shown)
    assert not dict(small.getexif())
    difference = np.asarray(small).astype(int) - np.asarray(image.resize(shown, Image.Resampling.BOX)).astype(int)
    assert np.abs(difference).mean() < 12
    assert data == facts.thumbnail(image)


@pytest.mark.parametrize("turned", [False, True])
def test_examining_a_file_gives_all_that_is_kept_of_it(turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    out = io.BytesIO()
    samples.draw(2, 2).resize((500, 400)).save(out, "JPEG", exif=exif)
    (found,) = facts.examine([out.getvalue()], short_side=100, pixel_limit=1_000_000)
    assert isinstance(found, Canonical)
    image = images.canonical(out.getvalue(), short_side=100)
    assert images.decode(found.encoded).tobytes() == image.tobytes()
    assert (found.digest, found.size, found.format) == (images.pixel_hash(image), image.size, "JPEG")
    assert found.facts == facts.measure(image, (400, 500) if turned else (500, 400))
    assert found.thumbnail == facts.thumbnail(image)


def test_examining_knows_the_limits_and_the_option_of_canonical() -> None:
    out = io.BytesIO()
    samples.draw(2, 2).save(out, "GIF")
    options = [{"pixel_limit": 10_000}, {"pixel_limit": 10_000, "first_frame": True}]
    options.append({"pixel_limit": 9_000, "first_frame": True})
    refused, found, large = (facts.examine([out.getvalue()], short_side=32, **each)[0] for each in options)  # type: ignore[arg-type]
    assert isinstance(refused, ImageError)
    assert "GIF" in str(refused)
    assert isinstance(found, Canonical)
    assert (found.size, found.format) == ((32, 32), "GIF")
    assert isinstance(large, ImageError)
    assert large.code == "image_too_large"


def test_what_is_said_of_a_picture_does_not_depend_on_those_beside_it() -> None:
    """To the last bit: a dataset must not depend on the order of its files."""
    files = []
    for number in range(40):
        out = io.BytesIO()
        side = (64, 64, 64, 90, 200)[number % 5]
        texture(side, number).resize((side + number % 3, side)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    files[11], files[12] = b"", files[13]
    examine = partial(facts.examine, short_side=100, pixel_limit=1_000_000)
    together = examine(files)
    assert isinstance(together[11], ImageError)
    for data, found in zip(files, together, strict=True):
        (alone,) = examine([data])
        assert found == alone or (data == b"" and isinstance(alone, ImageError))
    assert examine(reversed(files))[::-1][:11] == together[:11]
