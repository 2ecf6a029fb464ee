from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core.archive import ArchiveLimits, entries
from bpt_core.errors import ArchiveError
from tests.core.hostile import CODES, END, PACKERS, Header, contents, pax, refusal, tar, written, zstd

Pack = Callable[[bytes], bytes]
GOOD = [Header(f"set/{name}/{number}.png", bytes([number]) * 600) for number, name in enumerate(("cat", "dog"))]
FILES = {str(header.name): header.data for header in GOOD}


def read(tmp_path: Path, data: bytes, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return contents(path, limits)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", PACKERS)
def test_what_python_writes_in_any_format_is_read(tmp_path: Path, kind: str, format: int) -> None:  # noqa: A002
    files = {"a": b"1" * 512, "b/ä/日本語.png": b"2", "x" * 99: b"", "x" * 100: b"4", "f" * 90 + "/" + "g" * 90: b"5"}
    if format != tarfile.USTAR_FORMAT:
        files |= {"long/" * 60 + "é.png": b"6" * 2_000, "y" * 255: b"7"}
    assert contents(written(tmp_path / "upload", files, kind, format)) == files


def test_folders_are_left_out_whatever_they_are_called(tmp_path: Path) -> None:
    folders = [Header("./", type=b"5"), Header("set", type=b"5"), Header("set.zip", type=b"5", size=4_096)]
    old = [Header("old/", type=b"\0", magic=b""), Header("older/", type=b"0")]
    assert read(tmp_path, tar([*folders, *old, *GOOD])) == FILES


def test_names_before_ustar_and_contiguous_files_are_read(tmp_path: Path) -> None:
    headers = [Header("v7", b"1", b"\0", magic=b""), Header("c", b"2", b"7"), Header(b"caf\x82", b"3")]
    assert read(tmp_path, tar(headers)) == {"v7": b"1", "c": b"2", "café": b"3"}


def test_the_front_part_of_a_name_counts_in_ustar_alone(tmp_path: Path) -> None:
    headers = [Header("a", b"1", prefix=b"front"), Header("b", b"2", magic=b"ustar  \0", prefix=b"12345670123\0")]
    assert read(tmp_path, tar(headers)) == {"front/a": b"1", "b": b"2"}


def test_sizes_in_base_256_are_read(tmp_path: Path) -> None:
    size = b"\x80" + (3).to_bytes(11, "big")
    assert read(tmp_path, tar([Header("a", b"123", size=size), *GOOD])) == {"a": b"123", **FILES}


def test_signed_checksums_are_right_as_well(tmp_path: Path) -> None:
    block = bytearray(Header("ää").blocks()[:512])
    block[148:156] = b"        "
    signed = sum(struct.unpack("512b", block))
    assert signed != sum(block)
    assert read(tmp_path, tar([Header("ää", checksum=signed)])) == {"ää": b""}


def test_pax_headers_give_names_and_sizes(tmp_path: Path) -> None:
    one = [pax(path="ä/1", mtime="1.5"), Header("x", b"1")]
    two = [pax(path="2", size="3"), Header("x", b"123", size=0)]
    last = [pax(b"g", comment="a commit"), Header("3", b"3")]
    assert read(tmp_path, tar([*one, *two, *last])) == {"ä/1": b"1", "2": b"123", "3": b"3"}


def test_a_global_pax_header_counts_for_all_that_follow_and_gives_way(tmp_path: Path) -> None:
    data = tar([pax(b"g", path="all"), pax(path="own"), Header("x", b"1"), Header("y", b"2")])
    assert read(tmp_path, data) == {"own": b"1", "all": b"2"}


@pytest.mark.parametrize("type", [b"1", b"2", b"3", b"4", b"6", b"S", b"D", b"M", b"V", b"N", b"X", b"Z", b"\xff"])
def test_links_devices_and_the_like_are_forbidden_and_all_named(tmp_path: Path, type: bytes) -> None:  # noqa: A002
    odd = [Header("odd/1", type=type), Header("odd/2", type=type)]
    code, named = refusal(tmp_path, tar([GOOD[0], *odd, GOOD[1]]))
    assert code == "entry_type_forbidden"
    assert named == [("odd/1", "entry_type_forbidden"), ("odd/2", "entry_type_forbidden")]


def test_long_links_and_sparse_files_are_forbidden(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "far/" * 50
        archive.addfile(info)
    assert refusal(tmp_path, buffer.getvalue()) == ("entry_type_forbidden", [("link", "entry_type_forbidden")])
    for header in (
        pax(GNU_sparse_major="1", GNU_sparse_realsize="9"),
        pax(SCHILY_realsize="9"),
        Header("K", b"x", b"K"),
    ):
        code, named = refusal(tmp_path, tar([header, Header("odd", b"1"), *GOOD]))
        assert (code, named) == ("entry_type_forbidden", [("odd", "entry_type_forbidden")])


def test_entries_at_fault_are_left_out_and_named_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(tar([Header("../1"), GOOD[0], Header("link", type=b"2"), GOOD[1], Header(GOOD[1].name)]))
    reading = entries(path)
    assert [next(reading).name, next(reading).name] == list(FILES)
    with pytest.raises(ArchiveError, match="2 more at fault") as caught:
        next(reading)
    items = [(item["entry"], item["code"]) for item in caught.value.report["rejected"]["items"]]
    assert items == [
        ("../1", "entry_path_unsafe"),
        ("link", "entry_type_forbidden"),
        (GOOD[1].name, "entry_name_conflict"),
    ]
    assert caught.value.code == "entry_path_unsafe"


def test_entries_at_fault_are_named_even_if_the_archive_breaks_off(tmp_path: Path) -> None:
    code, named = refusal(tmp_path, tar([Header("../1"), *GOOD])[:-1_600])
    assert code in {"entry_path_unsafe", "archive_corrupt"}
    assert sorted(named) == [("../1", "entry_path_unsafe"), ("set/dog/1.png", "archive_corrupt")]
    with pytest.raises(ArchiveError, match=r"\.\./1: .*, and 1 more at fault") as caught:
        list(entries(tmp_path / "upload"))
    codes = [item["code"] for item in caught.value.report["rejected"]["items"]]
    assert codes == ["entry_path_unsafe", "archive_corrupt"]


@pytest.mark.parametrize(
    "name", [b"a" * 100 + b"\0.exe", b"a\0b\0"], ids=["behind the end of a field", "in the middle"]
)
def test_nul_in_a_long_name_makes_it_invalid(tmp_path: Path, name: bytes) -> None:
    for header in (Header("L", name + b"\0", b"L"), pax(path=name + b"x")):
        code, named = refusal(tmp_path, tar([header, Header("x", b"1")]))
        assert code == "entry_name_invalid"
        assert [each for _, each in named] == ["entry_name_invalid"]


def test_long_names_are_refused(tmp_path: Path) -> None:
    for name in ("a" * 256, "ä" * 128 + "/a.png", "a/" * 2_100 + "b.png"):
        code, [(shown, _)] = refusal(tmp_path, tar([pax(path=name), Header("x", b"1")]))
        assert code == "entry_name_too_long"
        assert len(shown) <= 300


def test_a_file_named_like_a_folder_is_invalid(tmp_path: Path) -> None:
    assert refusal(tmp_path, tar([Header("a/", b"1")])) == ("entry_name_invalid", [("a/", "entry_name_invalid")])


DAMAGED = {
    "checksum": tar([*GOOD, Header("a", checksum=1)]),
    "checksum of the first": tar([Header("a", checksum=1), *GOOD]),
    "size beyond the file": tar([*GOOD, Header("a", b"1", size=4_096)]),
    "size far beyond the file": tar([*GOOD, Header("a", b"1", size=b"\x80" + b"\xff" * 11)]),
    "negative size": tar([*GOOD, Header("a", b"1", size=b"\xff" * 12)]),
    "another negative size": tar([*GOOD, Header("a", b"1", size=b"\xff" + (1).to_bytes(11, "big"))]),
    "no size": tar([*GOOD, Header("a", b"1", size=b" " * 12)]),
    "size that is no number": tar([*GOOD, Header("a", b"1", size=b"0000000x001\0")]),
    "half a block at the end": tar(GOOD, end=bytes(300)),
    "some bytes at the end": tar(GOOD, end=b"x" * 100),
    "padding missing": tar(GOOD, end=b"")[:-100],
    "data missing": tar(GOOD, end=b"")[:-500],
    "garbage behind the end": tar(GOOD, end=END + b"x" + bytes(511)),
    "garbage behind one block of zeros": tar(GOOD, end=bytes(512) + b"x" + bytes(511)),
    "a second archive behind the end": tar(GOOD) + tar([Header("more")]),
    "zeros that fill no block": tar(GOOD, end=bytes(1_100)),
    "two long names": tar([Header("L", b"a\0", b"L"), Header("L", b"b\0", b"L"), Header("x")]),
    "two pax headers": tar([pax(path="a"), pax(path="b"), Header("x")]),
    "an announcement and nothing behind": tar([*GOOD, pax(path="a")]),
    "pax header that is too long": tar([Header("x", b"1", b"x", size=(1 << 20) + 1), Header("x")]),
    "long name that is too long": tar([Header("L", bytes((1 << 20) + 512), b"L"), Header("x")]),
    "pax header without size": tar([Header("x", b"", b"x", size=b"?" * 12), Header("x")]),
    "record without length": tar([Header("x", b"path=a\n", b"x"), Header("x")]),
    "record of length 0": tar([Header("x", b"0 path=a\n", b"x"), Header("x")]),
    "record too long": tar([Header("x", b"99 path=a\n", b"x"), Header("x")]),
    "record too short": tar([Header("x", b"8 path=abcdef\n", b"x"), Header("x")]),
    "record without line end": tar([Header("x", b"8 path=a10 path=ab\n", b"x"), Header("x")]),
    "record without =": tar([Header("x", b"8 path1\n", b"x"), Header("x")]),
    "negative size in a record": tar([pax(size="-1"), Header("x")]),
    "endless size in a record": tar([pax(size="9" * 5_000), Header("x")]),
}


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_corrupt(tmp_path: Path, kind: str, damage: str) -> None:
    code, _ = refusal(tmp_path, PACKERS[kind](DAMAGED[damage]))
    assert code == "archive_corrupt"


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("end", [b"", bytes(512), END, bytes(20 * 512), bytes(600 * 512)])
def test_an_archive_may_end_behind_a_member_or_with_zero_blocks(tmp_path: Path, kind: str, end: bytes) -> None:
    assert read(tmp_path, PACKERS[kind](tar(GOOD, end))) == FILES


def test_an_empty_tar_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, END) == {}
    assert read(tmp_path, zstd(bytes(10_240))) == {}


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("inside", [b"", b"a picture", random.Random(0).randbytes(2_000)])
def test_compressed_files_that_hold_no_tar_are_invalid(tmp_path: Path, pack: Pack, inside: bytes) -> None:
    assert refusal(tmp_path, pack(inside)) == ("archive_invalid", [])


NOISE = Header("noise", random.Random(0).randbytes(200_000))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_compressed_streams_may_come_in_parts_but_must_be_whole(tmp_path: Path, pack: Pack) -> None:
    data = tar([*GOOD, NOISE])
    parts = pack(data[:700]) + pack(data[700:100_000]) + pack(data[100_000:])
    assert read(tmp_path, parts) == {**FILES, "noise": NOISE.data}
    for damaged in (parts[:-1], parts[:-40_000], parts + b"garbage", parts[:20_000] + parts[20_100:]):
        assert refusal(tmp_path, damaged)[0] == "archive_corrupt"
    assert refusal(tmp_path, parts[:10]) == ("archive_corrupt", [])
    assert refusal(tmp_path, b"\x1f\x8b\x08" + bytes(200)) == ("archive_corrupt", [])


def test_an_archive_that_breaks_off_while_an_entry_is_read_is_reported_once(tmp_path: Path) -> None:
    packed = gzip.compress(tar([*GOOD, NOISE]))[:-100_000]
    assert refusal(tmp_path, packed) == ("archive_corrupt", [("noise", "archive_corrupt")])


def test_a_checksum_of_the_stream_is_compared_even_behind_the_end(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(tar(GOOD)))
    packed[-6] ^= 1
    assert refusal(tmp_path, bytes(packed))[0] == "archive_corrupt"


def test_zstd_frames_with_huge_windows_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    for exponent in (18, 20, 31):  # windows of 2^28 .. 2^41 bytes
        frame = b"\x28\xb5\x2f\xfd\0" + bytes([exponent << 3]) + (1 | 5 << 3).to_bytes(3, "little") + b"hello"
        assert refusal(tmp_path, frame) == ("archive_corrupt", [])
    frame = b"\x28\xb5\x2f\xfd\0" + bytes([17 << 3]) + (1 | 5 << 3).to_bytes(3, "little") + b"hello"
    assert refusal(tmp_path, frame) == ("archive_invalid", [])


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_refused_before_memory_fills(tmp_path: Path, pack: Pack) -> None:
    ballast = Header("ballast", random.Random(0).randbytes(1 << 20))  # the archive's ratio is harmless
    limits = ArchiveLimits(ratio=50, ratio_free_bytes=1 << 20)
    data = pack(tar([*GOOD, Header("bomb", bytes(40 << 20)), ballast]))
    read(tmp_path, pack(tar(GOOD)))
    tracemalloc.start()
    try:
        refused = refusal(tmp_path, data, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused == ("archive_bomb", [("bomb", "archive_bomb")])
    assert peak < 20 << 20


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_that_nobody_reads_is_refused_all_the_same(tmp_path: Path, pack: Pack) -> None:
    path = tmp_path / "upload"
    path.write_bytes(pack(tar([Header("bomb", bytes(40 << 20))])))
    with pytest.raises(ArchiveError) as caught:
        list(entries(path, ArchiveLimits(ratio=50, ratio_free_bytes=1 << 20)))
    assert caught.value.code == "archive_bomb"


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst"])
def test_headers_count_as_bytes_out(tmp_path: Path, kind: str) -> None:
    limits = ArchiveLimits(ratio=5, ratio_free_bytes=100_000)
    data = PACKERS[kind](tar([Header(f"{number}") for number in range(1_000)]))
    assert refusal(tmp_path, data, limits)[0] == "archive_bomb"
    assert refusal(tmp_path, PACKERS[kind](tar(GOOD, bytes(4 << 20))), limits)[0] == "archive_bomb"


def test_a_plain_tar_over_the_total_is_a_bomb(tmp_path: Path) -> None:
    code, named = refusal(tmp_path, tar(GOOD), ArchiveLimits(total_bytes=2_000))
    assert (code, named) == ("archive_bomb", [(GOOD[1].name, "archive_bomb")])


def test_headers_for_all_count_as_entries(tmp_path: Path) -> None:
    data = tar([pax(b"g", comment="again")] * 5 + GOOD)
    assert refusal(tmp_path, data, ArchiveLimits(entries=6)) == ("archive_too_many_entries", [])
    assert read(tmp_path, data, ArchiveLimits(entries=7)) == FILES


def test_announcements_count_with_their_entry(tmp_path: Path) -> None:
    data = tar([pax(path="a"), Header("x"), Header("L", b"b\0", b"L"), Header("x")])
    assert list(read(tmp_path, data, ArchiveLimits(entries=2))) == ["a", "b"]


def test_progress_of_a_lying_size_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(tar([Header("a", b"1", size=b"\x80" + b"\xff" * 11)]))
    entry = next(entries(path))
    assert entry.size_bytes == 2**88 - 1
    assert entry.end_bytes == path.stat().st_size


def test_an_entry_is_read_once_and_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(tar(GOOD))
    first, second = entries(path)
    with pytest.raises(ValueError, match="once"):
        first.read()
    reading = entries(path)
    entry = next(reading)
    entry.read()
    with pytest.raises(ValueError, match="once"):
        entry.read()
    assert next(reading).name == second.name


TYPES = st.sampled_from([b"0", b"0", b"0", b"\0", b"5", b"7", b"1", b"2", b"L", b"K", b"x", b"g", b"S", b"?"])
NAMES = st.one_of(st.sampled_from(["a", "b/c", "../x", "/y", "d/", "é", "é", "A"]), st.text(max_size=12))
CONTENT = st.one_of(st.just(b""), st.binary(max_size=1_300), st.just(b"15 path=b/long\n"), st.just(b"10 size=1\n"))
SIZES = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 8**11 - 1), st.binary(min_size=12, max_size=12))


@st.composite
def headers(draw: st.DrawFn) -> Header:
    name = draw(NAMES).encode(errors="replace")[:100]
    return Header(
        name, draw(CONTENT), draw(TYPES), draw(SIZES), draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", b""]))
    )


@settings(max_examples=60, deadline=None)
@given(
    hostile=st.lists(headers(), max_size=6),
    kind=st.sampled_from(list(PACKERS)),
    end=st.sampled_from([END, b"", bytes(512), b"x" * 512]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=2),
    cut=st.one_of(st.just(0), st.just(0), st.integers(1, 3_000)),
    inner=st.booleans(),
)
def test_hostile_tars_give_entries_or_an_archive_error(
    tmp_path_factory: pytest.TempPathFactory,
    hostile: list[Header],
    kind: str,
    end: bytes,
    edits: list[tuple[float, int]],
    cut: int,
    inner: bool,
) -> None:
    """Damage lies in the tar if `inner`, else in what the compressor made of it."""

    def damaged(data: bytes) -> bytes:
        changed = bytearray(data)
        for place, flip in edits:
            if data:
                changed[int(place * len(data))] ^= flip
        return bytes(changed[: len(data) - cut] if cut else changed)

    data = tar(hostile, end)
    data = PACKERS[kind](damaged(data)) if inner else damaged(PACKERS[kind](data))
    path = tmp_path_factory.mktemp("hostile") / "upload"
    path.write_bytes(data)
    try:
        found = contents(path)
    except ArchiveError as error:
        assert error.code in CODES  # noqa: PT017
        assert json.dumps(error.report)  # noqa: PT017
    else:
        assert sum(map(len, found.values())) <= 20_000


SOUND = tar([*GOOD, pax(path="ä" * 60), Header("x", b"3" * 700), NOISE])
SOUND_FILES = {**FILES, "ä" * 60: b"3" * 700, "noise": NOISE.data}


@settings(max_examples=50, deadline=None)
@given(kind=st.sampled_from(list(PACKERS)), share=st.floats(0, 1, exclude_max=True))
def test_a_tar_cut_anywhere_gives_whole_entries_or_an_archive_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, share: float
) -> None:
    data = PACKERS[kind](SOUND)
    path = tmp_path_factory.mktemp("cut") / "upload"
    path.write_bytes(data[: int(share * len(data))])
    found: dict[str, bytes] = {}
    try:
        for entry in entries(path):
            found[entry.name] = entry.read()
    except ArchiveError as error:
        assert error.code in {"archive_corrupt", "archive_invalid"}  # noqa: PT017
    else:
        assert kind == "tar"  # which may lack its end
    assert list(found.items()) == list(SOUND_FILES.items())[: len(found)]


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0, len(SOUND) - 1), flip=st.integers(1, 255))
def test_a_wrong_byte_in_a_header_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    damaged = bytearray(gzip.compress(SOUND, compresslevel=0))
    damaged[place * len(damaged) // len(SOUND)] ^= flip
    path = tmp_path_factory.mktemp("flipped") / "upload"
    path.write_bytes(damaged)
    try:
        assert contents(path) == SOUND_FILES  # the gzip header has fields that nothing depends on
    except ArchiveError as error:
        assert error.code in CODES  # noqa: PT017
