from __future__ import annotations

import io
import json
import random
import stat
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bpt_core.archive import ArchiveLimits, entries
from bpt_core.errors import ArchiveError
from tests.core.hostile import CODES, Member, contents, handmade, refusal


def png(red: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


GOOD = [Member(f"set/{name}/{red}.png", png(red)) for red, name in enumerate(("cat", "cat", "dog", "dog"))]


def test_entries_read_what_zipfile_wrote(tmp_path: Path) -> None:
    files = {"a/ä.bin": b"x" * 500_000, "a/b.bin": b"", "c": bytes(range(256)) * 40, "./d/./e": b"e"}
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.mkdir("a")
        for number, (name, data) in enumerate(files.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 == 0 else zipfile.ZIP_STORED
            with writer.open(info, "w", force_zip64=number == 2) as out:
                out.write(data)
        writer.comment = b"a comment"
    expected = {"a/ä.bin": files["a/ä.bin"], "a/b.bin": b"", "c": files["c"], "d/e": b"e"}
    assert contents(path) == expected
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert contents(path) == expected


def test_a_zip_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("a.bin", b"a" * 1_000)
        writer.writestr("b.bin", b"b" * 1_000)
    path = tmp_path / "piped.zip"
    path.write_bytes(pipe.getvalue())
    assert contents(path) == {"a.bin": b"a" * 1_000, "b.bin": b"b" * 1_000}


def test_zip64_archives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as writer:
        for number in range(5):
            writer.writestr(zipfile.ZipInfo(f"{number}"), b"x")
    assert b"PK\x06\x06" in path.read_bytes()
    assert contents(path) == {f"{number}": b"x" for number in range(5)}
    path.write_bytes(path.read_bytes().replace(b"PK\x06\x06", b"PK\x06\x05"))
    with pytest.raises(ArchiveError, match="zip64"):
        contents(path)


def test_entries_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(handmade(GOOD, backwards=True))
    assert list(contents(path).items()) == [(member.name, member.data) for member in GOOD]


def test_names_without_a_known_encoding_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "old.zip"
    path.write_bytes(handmade([Member(b"caf\x82", b"1"), Member("thé", b"2")]))
    assert contents(path) == {"café": b"1", "thé": b"2"}


def test_progress_runs_through_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(handmade(GOOD))
    ends = [entry.end_bytes for entry in entries(path)]
    assert ends == sorted(ends)
    assert 0 < ends[0] < ends[-1] < path.stat().st_size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        handmade(GOOD)[:-30],
        handmade(GOOD, count=5),
        handmade(GOOD, directory_bytes=0xFFFFFFF0),
        handmade(GOOD).replace(b"PK\x01\x02", b"PK\x01\x03", 1),
        handmade(GOOD)[:-18] + b"\x01\0\x01\0" + handmade(GOOD)[-14:],
    ],
    ids=["empty", "text", "cut off", "miscounted", "huge directory", "bad directory", "split"],
)
def test_what_is_no_zip_is_invalid(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data) == ("archive_invalid", [])


def test_encrypted_entries_are_all_named(tmp_path: Path) -> None:
    locked = [Member("set/cat/8.png", b"?", flags=1), Member("set/dog/9.png", b"?", flags=1)]
    code, named = refusal(tmp_path, handmade([*GOOD, *locked]))
    assert code == "archive_encrypted"
    assert named == [("set/cat/8.png", "archive_encrypted"), ("set/dog/9.png", "archive_encrypted")]


@pytest.mark.parametrize("method", [9, 12, 14, 93])
def test_other_compression_is_unsupported(tmp_path: Path, method: int) -> None:
    code, named = refusal(tmp_path, handmade([*GOOD, Member("set/cat/9.png", b"?", method=method)]))
    assert code == "archive_unsupported_compression"
    assert named == [("set/cat/9.png", "archive_unsupported_compression")]


def test_overlapping_entries_are_a_bomb_although_zipfile_takes_them(tmp_path: Path) -> None:
    names = [f"set/cat/{number}.png" for number in (6, 7, 8)]
    one, *others = [Member(name, png(9), local_name=b"set/cat/6.png") for name in names]
    for other in others:
        other.same_place_as = len(GOOD)
    data = handmade([*GOOD, one, *others])
    with zipfile.ZipFile(io.BytesIO(data)) as reader:
        assert set(names) < set(reader.namelist())
        assert reader.read(names[0]) == png(9)
    code, named = refusal(tmp_path, data)
    assert code == "archive_bomb"
    assert named == [(name, "archive_bomb") for name in names[:2]]  # each lies over the next


def test_an_overlap_hidden_in_the_extra_field_is_a_bomb(tmp_path: Path) -> None:
    quoted = handmade([Member("set/dog/8.png", png(8))])
    quoted = quoted[: quoted.index(b"PK\x01\x02")]
    reach = struct.pack("<2H", 0x9999, len(quoted)) + quoted
    data = handmade([*GOOD, Member("set/cat/7.png", b"", local_extra=reach[:4]), Member("set/dog/8.png", png(8))])
    at = data.index(b"set/cat/7.png") - 2
    data = data[:at] + struct.pack("<H", len(reach)) + data[at + 2 :]
    code, named = refusal(tmp_path, data)
    assert code == "archive_bomb"
    assert named == [("set/cat/7.png", "archive_bomb")]


def test_zip_bomb_by_ratio_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    deflate = zlib.compressobj(wbits=-15)
    packed = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    bomb = Member("set/cat/9.png", packed=packed, method=8, size=64 << 20)
    ballast = Member("set/dog/ballast.png", random.Random(0).randbytes(4 << 20))  # the archive's ratio is harmless
    data, limits = handmade([*GOOD, bomb, ballast]), ArchiveLimits(ratio=50, ratio_free_bytes=1 << 20)
    tracemalloc.start()
    code, named = refusal(tmp_path, data, limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == "archive_bomb"
    assert named == [("set/cat/9.png", "archive_bomb")]
    assert peak < 8 << 20


def test_many_small_entries_are_a_bomb_together(tmp_path: Path) -> None:
    many = [Member(f"set/cat/{number}.bin", bytes(60_000), method=8) for number in range(10, 20)]
    code, named = refusal(tmp_path, handmade([*GOOD, *many]), limits=ArchiveLimits(ratio=20, ratio_free_bytes=90_000))
    assert code == "archive_bomb"
    assert len(named) == 1


def test_a_total_over_the_cap_is_a_bomb(tmp_path: Path) -> None:
    limits = ArchiveLimits(total_bytes=sum(len(member.data) for member in GOOD) - 1)
    code, named = refusal(tmp_path, handmade(GOOD), limits=limits)
    assert code == "archive_bomb"
    assert named == [("set/dog/3.png", "archive_bomb")]


def without_end(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)


def test_lying_sizes_and_checksums_are_corrupt_and_all_named(tmp_path: Path) -> None:
    lies = [
        Member("set/cat/crc.png", png(9), crc=1),
        Member("set/cat/less.png", png(9), size=10),
        Member("set/cat/more.png", png(9), size=1_000),
        Member("set/cat/less-deflated.png", png(9), method=8, size=10),
        Member("set/cat/more-deflated.png", png(9), method=8, size=1_000),
        Member("set/cat/noise.png", png(9), method=8, packed=b"\xff" * 50),
        Member("set/cat/cut.png", bytes(5_000), method=8, packed=zlib.compress(bytes(5_000))[2:-8]),
        Member("set/cat/endless.png", b"1", method=8, packed=without_end(b"1")),
        Member("set/cat/tail.png", b"1", method=8, packed=zlib.compress(b"1")[2:-4] + b"more"),
        Member("set/cat/name.png", png(9), local_name=b"set/dog/name.png"),
    ]
    code, named = refusal(tmp_path, handmade([*GOOD, *lies]))
    assert code == "archive_corrupt"
    assert named == [(member.name, "archive_corrupt") for member in lies]


def peak_bytes_of_refusing(tmp_path: Path, data: bytes, expected: str) -> int:
    tracemalloc.start()
    code, named = refusal(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == expected
    assert named == [("set/cat/9.png", expected)]
    return peak


def test_claimed_sizes_cost_nothing(tmp_path: Path) -> None:
    huge = handmade([*GOOD, Member("set/cat/9.png", png(9), size=1 << 50)])
    assert peak_bytes_of_refusing(tmp_path, huge, "archive_corrupt") < 4 << 20
    assert max(entry.size_bytes for entry in entries(tmp_path / "upload")) == 1 << 50
    with pytest.raises(ArchiveError, match="differ"):
        contents(tmp_path / "upload")


def test_data_beyond_the_claimed_size_is_not_unpacked(tmp_path: Path) -> None:
    tiny = handmade([*GOOD, Member("set/cat/9.png", bytes(12 << 20), method=8, size=10)])
    assert peak_bytes_of_refusing(tmp_path, tiny, "archive_corrupt") < 4 << 20


@pytest.mark.parametrize("claimed", [None, 3, 0xFFFF])
def test_too_many_entries_are_refused(tmp_path: Path, claimed: int | None) -> None:
    code, named = refusal(tmp_path, handmade(GOOD, count=claimed), limits=ArchiveLimits(entries=3))
    assert code == "archive_too_many_entries"
    assert named == []


def test_nested_archives_links_and_devices_are_forbidden_and_all_named(tmp_path: Path) -> None:
    odd = [
        Member("set/cat/more.ZIP", b"?"),
        Member("set/cat/more.tar.gz", b"?"),
        Member("set/cat/link.png", b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
        Member("set/cat/device.png", b"", mode=stat.S_IFBLK | 0o600),
        Member("set/cat/pipe.png", b"", mode=stat.S_IFIFO | 0o600),
    ]
    code, named = refusal(tmp_path, handmade([*GOOD, *odd]))
    assert code == "entry_type_forbidden"
    assert named == [(member.name, "entry_type_forbidden") for member in odd]


@pytest.mark.parametrize("content", [handmade(GOOD), b"\x1f\x8b\x08" + bytes(30), bytes(257) + b"ustar" + bytes(300)])
def test_a_nested_archive_is_known_by_its_content(tmp_path: Path, content: bytes) -> None:
    disguised = [Member("set/cat/8.jpg", content), Member("set/cat/9.jpg", content)]
    code, named = refusal(tmp_path, handmade([*GOOD, *disguised]))
    assert code == "entry_type_forbidden"
    assert named == [("set/cat/8.jpg", "entry_type_forbidden"), ("set/cat/9.jpg", "entry_type_forbidden")]


def test_the_first_fault_gives_the_code_and_the_others_are_named_too(tmp_path: Path) -> None:
    faults = [Member("set/cat/8.png", png(8), crc=1), Member("set/cat/9.png", b"PK\x03\x04")]
    code, named = refusal(tmp_path, handmade([*GOOD, *faults]))
    assert code == "archive_corrupt"
    assert named == [("set/cat/8.png", "archive_corrupt"), ("set/cat/9.png", "entry_type_forbidden")]


SOUND_MEMBERS = [*GOOD, *(Member(f"set/cow/{red}.png", png(red), method=8) for red in (10, 11, 12))]
SOUND = handmade(SOUND_MEMBERS)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(SOUND) - 1), flip=st.integers(1, 255), cut=st.sampled_from([0, 0, 1, 5, 40, 300]))
def test_a_wrong_byte_anywhere_in_a_zip_is_found_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int, cut: int
) -> None:
    damaged = bytearray(SOUND)
    damaged[place] ^= flip
    path = tmp_path_factory.mktemp("damaged") / "upload"
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        found = contents(path)
    except ArchiveError as error:
        assert error.code in CODES  # noqa: PT017
        assert json.dumps(error.report)  # noqa: PT017
    else:
        assert found == {str(member.name): member.data for member in SOUND_MEMBERS}


@settings(max_examples=60, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.binary(max_size=6), st.integers(0, 6)), max_size=5),
    cut=st.one_of(st.just(0), st.integers(1, len(SOUND))),
)
def test_damage_of_any_kind_gives_whole_entries_or_an_archive_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes, int]], cut: int
) -> None:
    damaged = SOUND
    for place, inserted, removed in edits:
        damaged = damaged[:place] + inserted + damaged[place + removed :]
    path = tmp_path_factory.mktemp("damaged") / "upload"
    path.write_bytes(damaged[: len(damaged) - cut])
    known = {member.data for member in SOUND_MEMBERS}
    try:
        assert set(contents(path).values()) <= known
    except ArchiveError as error:
        assert error.code in CODES  # noqa: PT017
        assert json.dumps(error.report)  # noqa: PT017
