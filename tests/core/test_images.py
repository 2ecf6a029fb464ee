from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from bpt_core import images
from bpt_core.errors import ImageError


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A smooth picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 // max(1, width - 1), y * 255 // max(1, height - 1)
    pixels = np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(kind: bytes, data: bytes) -> bytes:
    """A sound PNG with one more chunk before the pixels."""
    plain = encoded(photo(), "PNG")
    return plain[:33] + chunk(kind, data) + plain[33:]


def png_header_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def code(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        images.canonical(data, **options)
    assert len(str(caught.value)) < 300
    assert "0x" not in str(caught.value)
    return caught.value.code


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_every_accepted_format_keeps_its_pixels(kind: str) -> None:
    data = encoded(photo(), kind, quality=95)
    assert images.sniff(data) == kind
    image = images.canonical(data)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.abs(array(image) - array(photo())).max() <= 12


@pytest.mark.parametrize(
    "content",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"<!doctype html><script>alert(1)</script>",
        b"BM is how this text begins, and it goes on for a while",
        b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(64),
        encoded(photo(), "GIF"),
        encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    ],
    ids=["svg", "pdf", "html", "text", "video", "still gif", "float tiff"],
)
def test_content_of_no_accepted_format_is_unsupported_whatever_its_name(content: bytes) -> None:
    assert code(content) == "image_unsupported"


def heic(picture: bytes = b"", major: bytes = b"heic", others: bytes = b"mif1heic") -> bytes:
    return (16 + len(others)).to_bytes(4) + b"ftyp" + major + bytes(4) + others + picture


@pytest.fixture
def no_heif_known() -> Iterator[None]:
    """Pillow as it is before anybody has asked for HEIF, also afterwards."""
    images._has_heif.cache_clear()
    yield
    images._has_heif.cache_clear()
    Image.OPEN.pop("HEIF", None)
    if "HEIF" in Image.ID:
        Image.ID.remove("HEIF")


@pytest.mark.usefixtures("no_heif_known")
def test_heic_without_a_decoder_is_unsupported_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="no decoder for HEIF") as caught:
        images.canonical(heic())
    assert caught.value.code == "image_unsupported"


@pytest.mark.usefixtures("no_heif_known")
def test_heic_is_read_where_its_decoder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is played by one that finds a PNG behind the first box."""

    class Decoder(ModuleType):
        @staticmethod
        def register_heif_opener(*, decode_threads: int) -> None:
            def opened(file: IO[bytes], name: str | bytes) -> PngImagePlugin.PngImageFile:
                return PngImagePlugin.PngImageFile(io.BytesIO(file.read()[24:]))

            Image.register_open("HEIF", opened)

    monkeypatch.setitem(sys.modules, "pillow_heif", Decoder("pillow_heif"))
    image = images.canonical(heic(encoded(photo(), "PNG")))
    assert (array(image) == array(photo())).all()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (heic(), "HEIF"),
        (heic(major=b"mif1"), "HEIF"),
        (heic(major=b"mif1", others=b"miafavif"), "AVIF"),
        (heic(major=b"avif", others=b"mif1heic"), "AVIF"),
        (heic(major=b"heic", others=b"mif1avif"), "HEIF"),
        (heic(major=b"crx ", others=b"isom"), None),
        (heic(major=b"mif1", others=b"")[:16] + b"heic", None),
        (heic(major=b"mif1", others=b"isom" * 100 + b"heic"), None),
        (b"\0\0\0\x10ftyp", None),
    ],
)
def test_brands_tell_avif_from_heic_and_both_from_videos(data: bytes, name: str | None) -> None:
    assert images.sniff(data) == name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_truncated_pictures_are_corrupt(kind: str) -> None:
    data = encoded(photo(256, 256), kind)
    assert code(data[: len(data) // 2]) == "image_corrupt"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        png_with(b"zTXt", b"note\0\0" + zlib.compress(bytes(8 << 20))),
        png_with(b"acTL", b"\0\0"),
        png_with(b"IDAT", b"\x78") + b"junk",
        encoded(photo(), "PNG")[:33] + chunk(b"IDAT", b"\x78\x9c") + b"\0\0\0\x04\0\1\2\3junk",
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["empty", "text bomb", "broken APNG", "bad pixels", "bad chunk", "signature only"],
)
def test_damaged_and_booby_trapped_pictures_are_corrupt(data: bytes) -> None:
    assert code(data) == "image_corrupt"


@pytest.mark.parametrize("side", [8_000, 10_000, 100_000])
def test_too_many_pixels_are_refused_by_the_header_without_a_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert code(png_header_claiming(side, side)) == "image_too_large"


def test_pixel_limit_can_be_set() -> None:
    data = encoded(photo(40, 40), "PNG")
    assert code(data, short_side=4, pixel_limit=1_599) == "image_too_large"
    assert images.canonical(data, short_side=4, pixel_limit=1_600).size == (4, 4)


def test_a_strip_that_would_burst_when_enlarged_is_too_large() -> None:
    assert code(encoded(photo(5_000, 1), "PNG")) == "image_too_large"
    assert images.canonical(encoded(photo(480, 1), "PNG")).size == (480, 1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO", "TIFF", "AVIF"])
def test_several_pictures_in_one_file_are_animated(kind: str) -> None:
    data = encoded(photo(), kind, save_all=True, append_images=[photo().transpose(Image.Transpose.ROTATE_180)])
    assert code(data) == "image_animated"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO", "TIFF", "AVIF"])
def test_the_first_of_several_pictures_is_taken_where_that_is_asked_for(kind: str) -> None:
    data = encoded(photo(), kind, save_all=True, append_images=[photo().transpose(Image.Transpose.ROTATE_180)])
    image = images.canonical(data, first_frame=True)
    assert np.abs(array(image) - array(photo())).mean() < 6


def test_a_still_gif_is_taken_where_first_frames_are() -> None:
    image = images.canonical(encoded(photo(), "GIF"), first_frame=True)
    assert np.abs(array(image) - array(photo())).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_first_frame_has_as_many_pixels_as_any_picture_may_have(kind: str) -> None:
    data = encoded(photo(40, 40), kind, save_all=True, append_images=[photo(40, 40, "L").convert("RGB")])
    assert code(data, short_side=4, pixel_limit=1_599, first_frame=True) == "image_too_large"


def test_running_out_of_memory_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    assert code(encoded(photo(), "PNG")) == "image_decode_limit"


def test_codecs_that_run_out_of_memory_in_words_have_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Image.Image) -> None:
        raise OSError("Failed to decode frame 0: Out of memory")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    assert code(encoded(photo(), "PNG")) == "image_decode_limit"


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG")]
)
def test_other_colour_modes_become_rgb(mode: str, kind: str) -> None:
    original = photo(mode=mode)
    image = images.canonical(encoded(original, kind))
    assert image.mode == "RGB"
    assert np.abs(array(image) - array(original.convert("RGB"))).mean() < 4


def clear_left_half(image: Image.Image) -> Image.Image:
    alpha = np.full((image.height, image.width), 255, np.uint8)
    alpha[:, : image.width // 2] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize(
    "data",
    [
        encoded(clear_left_half(photo()), "PNG"),
        encoded(clear_left_half(photo()), "WEBP", lossless=True),
        encoded(clear_left_half(photo(mode="L")), "PNG"),
        encoded(clear_left_half(photo()), "AVIF", quality=100),
    ],
    ids=["RGBA", "WebP", "LA", "AVIF"],
)
def test_transparent_parts_lie_on_white(data: bytes) -> None:
    pixels = array(images.canonical(data))
    assert (pixels[:, :24] == 255).all()
    assert (pixels[:, 25:] < 255).any(axis=-1).all()


def test_a_transparent_palette_colour_lies_on_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((0, 0), 0)
    pixels = array(images.canonical(encoded(image, "PNG", transparency=0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [200, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.arange(0, 65_536, 256, dtype=np.uint16).reshape(16, 16)
    pixels = array(images.canonical(encoded(Image.fromarray(ramp), kind)))
    assert pixels[..., 0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda pixels: pixels),
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: pixels[::-1, ::-1]),
        (4, lambda pixels: pixels[::-1]),
        (5, lambda pixels: pixels.transpose(1, 0, 2)),
        (6, lambda pixels: pixels[::-1].transpose(1, 0, 2)),
        (7, lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda pixels: pixels[:, ::-1].transpose(1, 0, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_exif_orientation_is_applied(orientation: int, upright: Callable[[np.ndarray], np.ndarray], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(), kind, exif=exif, **options)
    stored = array(Image.open(io.BytesIO(encoded(photo(), kind, **options))).convert("RGB"))
    assert (array(images.canonical(data)) == upright(stored)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "AVIF", "WEBP"])
@pytest.mark.parametrize(("orientation", "upright"), [(1, (900, 700)), (3, (900, 700)), (6, (700, 900))])
def test_the_original_size_is_known_upright(kind: str, orientation: int, upright: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (900, 700)), kind, exif=exif)
    image, size = images.canonical_with_size(data)
    assert size == upright
    assert image.size == ((411, 320) if upright == (900, 700) else (320, 411))


def test_gps_and_all_other_metadata_are_gone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    data = encoded(photo(), "JPEG", exif=exif, comment=b"a comment", xmp=b"<x:xmpmeta/>")
    assert dict(Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825))
    image = images.canonical(data)
    assert image.info == {}
    assert not dict(image.getexif())
    again = Image.open(io.BytesIO(images.encode(image)))
    assert not dict(again.getexif().get_ifd(0x8825))
    assert not {"exif", "xmp", "comment", "icc_profile"} & set(again.info)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"II*\0\x08\0\0\0\xff\xff\x12\x01junk", b"neither II nor MM"])
def test_broken_exif_beside_sound_pixels_is_passed_over_silently(exif: bytes, kind: str) -> None:
    data = encoded(photo(), kind, exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.canonical(data).size == (48, 32)


def test_a_polyglot_loses_what_is_not_pixels() -> None:
    payload = b"PK\x03\x04<script>alert(1)</script>"
    image = images.canonical(encoded(photo(), "JPEG") + payload)
    assert image.size == (48, 32)
    assert b"<script>" not in images.encode(image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("size", "stored"),
    [((320, 320), (320, 320)), ((321, 400), (320, 399)), ((1_000, 700), (457, 320)), ((300, 2_000), (300, 2_000))],
)
def test_the_short_side_is_320_pixels_at_most(size: tuple[int, int], stored: tuple[int, int], kind: str) -> None:
    assert images.canonical(encoded(photo(*size), kind)).size == stored


def test_scaled_jpeg_decoding_shows_the_same_picture() -> None:
    scaled = images.canonical(encoded(photo(1_280, 1_280), "JPEG", quality=95))
    plain = images.canonical(encoded(photo(1_280, 1_280), "PNG"))
    assert np.abs(array(scaled) - array(plain)).max() <= 4


@pytest.mark.parametrize("size", [(48, 32), (1, 1), (17_000, 40)])
def test_stored_bytes_give_back_the_same_pixels(size: tuple[int, int]) -> None:
    image = photo(*size)
    data = images.encode(image)
    assert images.encode(photo(*size)) == data
    assert (array(images.decode(data)) == array(image)).all()


def test_damaged_stored_bytes_are_an_image_error() -> None:
    with pytest.raises(ImageError, match="damaged"):
        images.decode(images.encode(photo())[:60])


def test_pixel_hash_knows_size_and_pixels_only() -> None:
    tall, wide = Image.new("RGB", (2, 8)), Image.new("RGB", (8, 2))
    assert images.pixel_hash(tall) != images.pixel_hash(wide)
    assert images.pixel_hash(photo()) == images.pixel_hash(images.canonical(encoded(photo(), "PNG")))
    changed = photo()
    changed.putpixel((0, 0), (1, 2, 3))
    assert images.pixel_hash(changed) != images.pixel_hash(photo())


SOUND = [
    *(encoded(photo(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")),
    encoded(photo(), "PNG", save_all=True, append_images=[photo(mode="L").convert("RGB")]),
    encoded(photo(), "TIFF", compression="tiff_lzw"),
]


@settings(max_examples=60, deadline=None)
@given(
    data=st.sampled_from(SOUND),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0.3, 1),
    first_frame=st.booleans(),
)
def test_damage_of_any_kind_gives_a_picture_or_an_image_error(
    data: bytes, edits: list[tuple[float, int]], keep: float, first_frame: bool
) -> None:
    damaged = bytearray(data)
    for place, value in edits:
        damaged[int(place**2 * len(damaged))] = value  # headers are the brittle part
    try:
        whole = bytes(damaged[: int(keep * len(damaged)) if keep < 0.9 else None])
        image = images.canonical(whole, first_frame=first_frame)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert min(image.size) <= images.SHORT_SIDE
