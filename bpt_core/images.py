"""Pictures: untrusted bytes -> upright RGB, and back to lossless bytes.

Ingest and serving send every picture through `canonical`, so that a served prediction equals the evaluation of
the same file.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

from bpt_core.errors import ImageError

SHORT_SIDE = 320  # pixels
PIXEL_LIMIT = 50_000_000  # pixels of the encoded picture

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_ON_ITS_SIDE = {5, 6, 7, 8}
_BMP_HEADER_BYTES = {12, 40, 52, 56, 64, 108, 124}
_PLUGINS = (
    *(f"{name}ImagePlugin" for name in ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")),
    "ImageOps",
)
# What a file of the ISO base media kind holds (ISO/IEC 23000-22 and 23008-12); videos begin alike.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_BRANDS_BYTES = 256  # that are looked at of the first box; real ones have 20 to 50
_WEBP_SIDE_LIMIT = 16_383  # pixels
_SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as the warnings module keeps its filters


def sniff(data: bytes) -> str | None:
    """The format that the first bytes announce; None for anything else.

    JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF or HEIF (of which HEIC is a kind).
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    # Two letters alone would make a picture of many a text.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    return _sniff_brands(data) if data[4:8] == b"ftyp" else None


def load_decoders() -> None:
    """Import now what is else imported when a format is first met: for processes that will open no more files."""
    for name in _PLUGINS:
        import_module(f"PIL.{name}")
    Image.preinit()
    _has_heif()


def canonical(
    data: bytes, *, short_side: int = SHORT_SIDE, pixel_limit: int = PIXEL_LIMIT, first_frame: bool = False
) -> Image.Image:
    """Encoded JPEG, PNG, WebP, BMP, TIFF, AVIF -> upright RGB without metadata, short side `short_side` pixels or less.

    HEIC where pillow_heif is installed. Of a file with several pictures (GIF, APNG, animated WebP or AVIF, MPO, TIFF
    of several pages) the first is taken with `first_frame`; without it such files are refused, and so is every GIF.
    Never enlarges. Transparent parts lie on white; 16-bit grey keeps its high byte; colour profiles are ignored.
    Raises ImageError: image_unsupported, image_corrupt, image_too_large, image_animated, image_decode_limit.
    """
    return canonical_with_size(data, short_side=short_side, pixel_limit=pixel_limit, first_frame=first_frame)[0]


def canonical_with_size(
    data: bytes, *, short_side: int = SHORT_SIDE, pixel_limit: int = PIXEL_LIMIT, first_frame: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """-> what `canonical` gives, and width and height of the original, upright, in pixels. Raises as `canonical`."""
    if not data:
        raise ImageError("the file is empty", code="image_corrupt")
    name = sniff(data)
    if name is None:
        raise ImageError("the content is no JPEG, PNG, WebP, BMP, TIFF, AVIF or HEIC", code="image_unsupported")
    if not _has_decoder(name):
        raise ImageError(f"this service has no decoder for {name}", code="image_unsupported")
    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as source:
            _check(source, short_side, pixel_limit, first_frame)
            width, height = source.size  # draft() changes it
            source.draft(None, (short_side, short_side))  # JPEG: DCT scaling, never below the target
            source.load()
            # After load(): PNG may carry its EXIF behind the pixels, and TIFF has been turned by then.
            orientation = _orientation(source)
            image = _shrunk(_rgb(source), short_side)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return _bare(image), (height, width) if orientation in _TURNS_ON_ITS_SIDE else (width, height)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_too_many_pixels(pixel_limit), code="image_too_large") from error
    except MemoryError as error:
        raise ImageError("decoding needs more memory than allowed", code="image_decode_limit") from error
    except Exception as error:  # Pillow's decoders raise nearly anything: SyntaxError, ValueError, struct.error ...
        # Pillow's text for this one holds a memory address.
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {str(error)[:200]}"
        if "out of memory" in reason.lower():  # what codecs say where Python's own code says MemoryError
            raise ImageError("decoding needs more memory than allowed", code="image_decode_limit") from error
        raise ImageError(f"the {name} data is damaged{reason}", code="image_corrupt") from error


def of_pixels(
    pixels: NDArray[np.uint8], *, short_side: int = SHORT_SIDE, pixel_limit: int = PIXEL_LIMIT
) -> Image.Image:
    """Upright RGB [H, W, 3] -> what `canonical` makes of a lossless file of it. Raises ImageError: image_too_large."""
    height, width, _ = pixels.shape
    _check_size(width, height, short_side, pixel_limit)
    return _shrunk(Image.fromarray(pixels), short_side)


def encode(image: Image.Image) -> bytes:
    """RGB picture -> lossless bytes for storage; equal pixels give equal bytes."""
    out = io.BytesIO()
    if max(image.size) > _WEBP_SIDE_LIMIT:
        image.save(out, "PNG", compress_level=1)
    else:
        # Measured on photographs with a short side of 224: WebP at method 0, quality 20 takes 4.0 ms and 44 % of
        # the raw size; PNG takes 8.4 ms and 59 % at level 1, 22 ms and 56 % at level 6. WebP at its default
        # effort reaches 38 % but takes 94 ms. Decoding: 1.9 ms against PNG's 3.2 ms.
        image.save(out, "WEBP", lossless=True, method=0, quality=20)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    """Bytes from `encode` -> the same RGB picture. Raises ImageError (image_corrupt)."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP", "PNG"]) as source:
            return _bare(source.convert("RGB"))
    except Exception as error:
        raise ImageError("stored picture is damaged", code="image_corrupt") from error


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 (hexadecimal) over size and pixels of an RGB picture."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _sniff_brands(data: bytes) -> str | None:
    """AVIF or HEIF by the brands in the file's first box: length, "ftyp", major brand, version, compatible brands."""
    end = min(int.from_bytes(data[:4]), _BRANDS_BYTES)
    major, others = data[8:12], {data[at : at + 4] for at in range(16, end - 3, 4)}
    for brands in ({major}, others):  # an AVIF may be read as many things, and a HEIC too: the major brand decides
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    return None


def _has_decoder(name: str) -> bool:
    if name == "HEIF":
        return _has_heif()
    return name != "AVIF" or bool(features.check("avif"))


@cache
def _has_heif() -> bool:
    """Pillow learns HEIF from a package that is no dependency: the codec inside is patented."""
    try:
        import_module("pillow_heif").register_heif_opener(decode_threads=1)
    except ImportError:
        return False
    return True


def _silence_pillow() -> None:
    """Pillow warns about files of customers; what matters of that is in our errors.

    warnings.catch_warnings() is not safe between threads. One filter that stays is, and it is put back where
    somebody else's catch_warnings() took it away.
    """
    if not warnings.filters or warnings.filters[0] != _SILENT:
        warnings.filterwarnings("ignore", module=_SILENT[3].pattern)


def _check(source: Image.Image, short_side: int, pixel_limit: int, first_frame: bool) -> None:
    width, height = source.size
    if not first_frame:
        if getattr(source, "is_animated", False):
            raise ImageError("the file holds more than one picture", code="image_animated")
        if source.format == "GIF":
            raise ImageError("GIF is not accepted", code="image_unsupported")
    _check_size(width, height, short_side, pixel_limit)


def _check_size(width: int, height: int, short_side: int, pixel_limit: int) -> None:
    if min(width, height) < 1:
        raise ImageError("the picture has no pixels", code="image_corrupt")
    if width * height > pixel_limit:
        raise ImageError(_too_many_pixels(pixel_limit), code="image_too_large")
    # Training brings short sides to a common length: a strip of 1 x 50,000,000 pixels would then burst memory.
    if short_side * short_side * max(width, height) > pixel_limit * min(width, height):
        raise ImageError("the picture is too long for its width", code="image_too_large")


def _too_many_pixels(pixel_limit: int) -> str:
    return f"the picture has more than {pixel_limit:,} pixels"


def _orientation(source: Image.Image) -> int:
    try:
        return int(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF beside sound pixels: upright as far as anyone can tell
        return 1


def _rgb(source: Image.Image) -> Image.Image:
    if source.mode.startswith("I;16"):
        # Pillow's own conversions clip at 255 in some versions.
        source = Image.fromarray((np.asarray(source) >> 8).astype(np.uint8))
    elif source.mode in {"I", "F"}:
        raise ImageError("samples of 32 bits have no agreed range", code="image_unsupported")
    if source.has_transparency_data:
        source = source.convert("RGBA")
        canvas = Image.new("RGB", source.size, "white")
        canvas.paste(source, mask=source)
        return canvas
    return source.convert("RGB")


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    short = min(image.size)
    if short <= short_side:
        return image
    width, height = (max(short_side, round(side * short_side / short)) for side in image.size)
    # Area averages by whole factors first, then a bicubic filter as wide as the rest of the way.
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _bare(image: Image.Image) -> Image.Image:
    """Pixels only: `info` of a decoded picture holds EXIF, XMP, comments and profiles, and save() may write them."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare
