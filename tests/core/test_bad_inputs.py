"""One test per kind of bad archive and bad image, each as a customer would send it.

Each looks at the code, at the report, and at what is left. The details of zip, tar and images are in tests of theirs.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from bpt_core import images
from bpt_core.archive import ArchiveLimits
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import DatasetError
from bpt_core.packing import Packed, PackSettings, pack
from tests.core.hostile import Header, Member, handmade, tar
from tests.core.packs import found, packed, picture, pictures

GOOD = [
    Member(f"{name}/{number}.png", data)
    for (name, number), data in {
        (name, number): picture(10 * place + number) for place, name in enumerate("ab") for number in range(3)
    }.items()
]


@dataclass(frozen=True)
class Bad:
    code: str
    archive: bytes
    entries: Sequence[str] = ()  # that the report names, in any order
    settings: PackSettings | None = None


def with_good(*members: Member) -> bytes:
    return handmade([*GOOD, *members])


def limited(**limits: int) -> PackSettings:
    return PackSettings(archive=ArchiveLimits(**limits))


def truncated_class(*, images_of_b: int) -> bytes:
    return handmade([member for member in GOOD if str(member.name) < f"b/{images_of_b}"])


ARCHIVES = {
    "not an archive": Bad("archive_invalid", b"GIF89a is no archive"),
    "nothing": Bad("archive_invalid", b""),
    "no images": Bad("dataset_empty", handmade([Member("readme.txt", b"hello")])),
    "no entries": Bad("dataset_empty", handmade([])),
    "encrypted": Bad("archive_encrypted", with_good(Member("a/x.png", b"?", flags=1)), ["a/x.png"]),
    "unsupported compression": Bad(
        "archive_unsupported_compression", with_good(Member("a/x.png", b"?", method=12)), ["a/x.png"]
    ),
    "overlapping entries": Bad("archive_bomb", with_good(Member("a/x.png", GOOD[0].data, same_place_as=0))),
    "ratio over the cap": Bad(
        "archive_bomb", with_good(Member("a/x.png", bytes(20_000_000), method=8)), ["a/x.png"], limited(ratio=100)
    ),
    "total over the cap": Bad("archive_bomb", handmade(GOOD), settings=limited(total_bytes=1_000)),
    "lying size": Bad("archive_corrupt", with_good(Member("a/x.png", b"12345", size=4)), ["a/x.png"]),
    "wrong checksum": Bad("archive_corrupt", with_good(Member("a/x.png", b"12345", crc=1)), ["a/x.png"]),
    "too many entries": Bad("archive_too_many_entries", handmade(GOOD), settings=limited(entries=5)),
    "an archive in the archive": Bad("entry_type_forbidden", with_good(Member("a/x.zip", b"?")), ["a/x.zip"]),
    "a link": Bad(
        "entry_type_forbidden", with_good(Member("a/x.png", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)), ["a/x.png"]
    ),
    "a device": Bad("entry_type_forbidden", tar([Header("a/x.png", type=b"3")]), ["a/x.png"]),
    "out of the folder": Bad("entry_path_unsafe", with_good(Member("../x.png", b"?")), ["../x.png"]),
    "absolute": Bad("entry_path_unsafe", with_good(Member("/a/x.png", b"?")), ["/a/x.png"]),
    "a drive letter": Bad("entry_path_unsafe", with_good(Member("C:/x.png", b"?")), ["C:/x.png"]),
    "a backslash": Bad("entry_path_unsafe", with_good(Member("a\\x.png", b"?")), ["a\\x.png"]),
    "NUL in a name": Bad("entry_name_invalid", with_good(Member(b"a/x.png\0.txt", b"?")), ["a/x.png\\u0000.txt"]),
    "a control character": Bad("entry_name_invalid", with_good(Member("a/\x1bx.png", b"?")), ["a/\\u001bx.png"]),
    "turned writing": Bad("entry_name_invalid", with_good(Member("a/\u202egnp.x", b"?")), ["a/\\u202egnp.x"]),
    "an endless name": Bad("entry_name_too_long", with_good(Member("a/" + 256 * "x", b"?")), ["a/" + 256 * "x"]),
    "the same name twice": Bad("entry_name_conflict", with_good(Member("A/0.PNG", b"?")), ["A/0.PNG"]),
    "one class": Bad("too_few_classes", truncated_class(images_of_b=0)),
    "a class below the minimum": Bad("class_too_small", truncated_class(images_of_b=1)),
    "a table that says nothing": Bad(
        "annotations_invalid", with_good(Member("labels.csv", b"file_name,label\na/0.png\n")), ["labels.csv"]
    ),
    "too many bad images": Bad("too_many_bad_images", with_good(Member("a/x.png", b"<html>")), ["a/x.png"]),
}


@pytest.mark.parametrize("bad", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_a_bad_archive_is_refused_by_its_code_named_and_leaves_nothing(tmp_path: Path, bad: Bad) -> None:
    (tmp_path / "upload").write_bytes(bad.archive)
    with pytest.raises(DatasetError) as caught:
        pack(tmp_path / "upload", tmp_path / "packed", bad.settings)
    assert caught.value.code == bad.code
    rejected = caught.value.report["rejected"]["items"]
    if bad.entries:
        assert [item["entry"] for item in rejected] == list(bad.entries)
        assert all(item["detail"] for item in rejected)
    assert caught.value.report["images"]["packed"] == 0
    assert list((tmp_path / "packed").iterdir()) == []
    assert set(tmp_path.iterdir()) == {tmp_path / "upload", tmp_path / "packed"}


def test_what_systems_leave_in_archives_is_ignored_and_listed(tmp_path: Path) -> None:
    files = pictures("a", "b")
    report = packed(tmp_path, {**files, "__MACOSX/a/._0.png": b"?", "a/.DS_Store": b"?", "b/Thumbs.db": b"?"}).report
    assert [item["entry"] for item in report["ignored"]["items"]] == [
        "__MACOSX/a/._0.png",
        "a/.DS_Store",
        "b/Thumbs.db",
    ]
    assert report["images"] == {"accepted": 6, "rejected": 0, "packed": 6}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> Image.Image:
    return Image.open(io.BytesIO(picture(77, size=size))).convert(mode)


def text_bomb() -> bytes:
    """A PNG with some kilobytes of text that become far more."""
    whole = saved(noise(), "PNG")
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


def broken_apng() -> bytes:
    whole = saved(noise(), "PNG")
    control = b"acTL" + struct.pack(">2I", 2, 0)
    chunk = struct.pack(">I", 8) + control + struct.pack(">I", zlib.crc32(control))
    frame = b"fcTL" + bytes(3)
    chunk += struct.pack(">I", 3) + frame + struct.pack(">I", zlib.crc32(frame))
    return whole[:33] + chunk + whole[33:]


def animated(kind: str) -> bytes:
    return saved(noise(), kind, save_all=True, append_images=[Image.open(io.BytesIO(picture(5)))])


def huge() -> bytes:
    """A PNG whose header claims 51 megapixels."""
    whole = saved(noise(), "PNG")
    header = b"IHDR" + struct.pack(">2I", 10_000, 5_100) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


BAD_IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "SVG named jpg": ("image_unsupported", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "PDF named jpg": ("image_unsupported", lambda: b"%PDF-1.7"),
    "HTML named jpg": ("image_unsupported", lambda: b"<!doctype html>"),
    "truncated": ("image_corrupt", lambda: saved(noise(size=(90, 90)), "JPEG")[:900]),
    "PNG text bomb": ("image_corrupt", text_bomb),
    "broken APNG": ("image_corrupt", broken_apng),
    "over 50 megapixels": ("image_too_large", huge),
    "animated GIF": ("image_animated", lambda: animated("GIF")),
    "animated PNG": ("image_animated", lambda: animated("PNG")),
    "MPO": ("image_animated", lambda: animated("MPO")),
    "empty": ("image_corrupt", lambda: b""),
}


@pytest.mark.parametrize(("code", "data"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_left_out_named_with_its_code_and_the_others_are_packed(
    tmp_path: Path, code: str, data: Callable[[], bytes]
) -> None:
    files = pictures("a", "b", each=10)
    result = packed(tmp_path, {**files, "a/bad.jpg": data()})
    [item] = result.report["rejected"]["items"]
    assert (item["entry"], item["code"]) == ("a/bad.jpg", code)
    assert found(result.report)["bad_images"]["items"]["items"] == [item]
    assert result.report["images"] == {"accepted": 20, "rejected": 1, "packed": 20}


@pytest.mark.parametrize("limit", ["cpu_seconds", "memory_bytes"])
def test_an_image_over_the_limits_of_decoding_costs_itself_only(tmp_path: Path, limit: str) -> None:
    files = pictures("a", "b", each=10)
    side = 6_000
    files["a/large.png"] = saved(Image.new("L", (side, side), 7), "PNG", compress_level=1)
    limits = {"cpu_seconds": {"decode_cpu_seconds": 0.15}, "memory_bytes": {"decode_memory_bytes": 200 << 20}}
    result = packed(tmp_path, files, PackSettings(decoders=1, **limits[limit]))  # type: ignore[arg-type]
    [item] = result.report["rejected"]["items"]
    assert (item["entry"], item["code"]) == ("a/large.png", "image_decode_limit")
    assert result.report["images"]["packed"] == 20


def stored(result: Packed, path: str) -> np.ndarray:
    [item] = [item for item in PackedDataset(result.shards).items() if item.path == path]
    return np.asarray(images.decode(item.image))


def upright() -> np.ndarray:
    return np.asarray(noise())


def turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (47.0, 22.0, 0.0)
    return saved(noise().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def on_white(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def half_clear(mode: str) -> Image.Image:
    image = noise(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def grey16() -> np.ndarray:
    return (np.arange(108).reshape(9, 12) * 600).astype(np.uint16)


ACCEPTED: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "CMYK": (
        lambda: saved(noise("CMYK"), "TIFF"),
        lambda: np.asarray(noise("CMYK").convert("RGB")),
    ),
    "palette": (lambda: saved(noise("P"), "PNG"), lambda: np.asarray(noise("P").convert("RGB"))),
    "LA": (lambda: saved(half_clear("L"), "PNG"), lambda: on_white(half_clear("L"))),
    "RGBA": (lambda: saved(half_clear("RGB"), "PNG"), lambda: on_white(half_clear("RGB"))),
    "16-bit grey": (
        lambda: saved(Image.fromarray(grey16()), "PNG"),
        lambda: np.repeat((grey16() >> 8).astype(np.uint8)[:, :, None], 3, axis=2),
    ),
    "turned by EXIF": (turned, upright),
    "polyglot": (lambda: saved(noise(), "PNG") + b"PK\x03\x04<script>alert(1)</script>", upright),
    "with text": (
        lambda: saved(noise(), "PNG", pnginfo=_text("GPS 47.22")),
        upright,
    ),
}


def _text(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", text)
    return info


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_unusual_images_are_taken_as_upright_rgb_and_nothing_but_pixels(
    tmp_path: Path, data: Callable[[], bytes], expected: Callable[[], np.ndarray]
) -> None:
    result = packed(tmp_path, {**pictures("a", "b"), "a/odd.png": data()})
    assert np.abs(stored(result, "a/odd.png").astype(int) - expected().astype(int)).max() <= 1
    assert result.report["images"]["rejected"] == 0
    whole = b"".join(path.read_bytes() for path in (*result.shards, result.thumbnails, result.items))
    assert not any(trace in whole for trace in (b"GPS", b"<script>", b"Exif\0\0MM"))


def test_the_same_pixels_under_two_labels_are_ready_with_a_conflict(tmp_path: Path) -> None:
    files = pictures("a", "b", each=10)
    report = packed(tmp_path, {**files, "b/again.png": files["a/0.png"]}).report
    assert found(report)["label_conflict"]["items"]["total"] == 1
    assert report["images"]["packed"] == 21


def test_exact_duplicates_across_splits_are_kept_in_train_only_and_told(tmp_path: Path) -> None:
    files = pictures("train/a", "train/b", "val/a", "val/b")
    result = packed(tmp_path, {**files, "val/a/again.png": files["train/a/0.png"]})
    assert [item.path for item in PackedDataset(result.shards).items(Split.VAL) if "again" in item.path] == []
    assert found(result.report)["duplicates_across_splits"]["items"]["total"] == 1
