from __future__ import annotations

import random
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from bpt_core.archive import REPORT_ITEMS, ArchiveLimits, Tally, entries
from bpt_core.errors import ArchiveError
from tests.core.hostile import PACKERS, Header, Member, contents, handmade, refusal, tar, written

KINDS = ["zip", *PACKERS]
GOOD = {f"set/{name}/{number}.png": bytes([number]) * 50 for number, name in enumerate(("cat", "cat", "dog", "dog"))}


def archive(kind: str, *extra: tuple[str, bytes]) -> bytes:
    """The good files, then others under names that no archiver would write."""
    files = [*GOOD.items(), *extra]
    if kind == "zip":
        return handmade([Member(name, data) for name, data in files])
    return PACKERS[kind](tar([Header(name, data) for name, data in files]))


def copied(path: Path, limits: ArchiveLimits, directory: Path, *, read_back: bool = True) -> list[bytes]:
    copies = []
    for entry in entries(path, limits):
        with (directory / "copy").open("w+b") as copy:
            entry.copy_to(copy)
            copy.seek(0)
            copies.append(copy.read() if read_back else b"")
    return copies


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_equal_folders_give_equal_files_whatever_packs_them(tmp_path: Path, kind: str) -> None:
    files = {"a/ä.bin": b"x" * 600_000, "a/b.bin": b"", "a/日本語/c": bytes(range(256)) * 40, "long/" * 40 + "d": b"d"}
    path = written(tmp_path / "upload", files, kind)
    assert contents(path) == files
    assert [entry.size_bytes for entry in entries(path)] == [len(data) for data in files.values()]


def test_progress_runs_through_the_archive(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0)
    path = written(tmp_path / "upload", {f"{number}": noise.randbytes(300_000) for number in range(4)}, kind)
    ends = []
    for entry in entries(path):
        entry.read()
        ends.append(entry.end_bytes)
    assert ends == sorted(ends)
    assert 0 < ends[0] < ends[-1] <= path.stat().st_size


def test_what_is_not_read_is_gone_over(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "upload", {"a": b"a" * 700_001, "b": b"b" * 1_025, "c": b"c"}, kind)
    assert [(entry.name, entry.read() if entry.name == "c" else b"") for entry in entries(path)] == [
        ("a", b""),
        ("b", b""),
        ("c", b"c"),
    ]


def test_an_entry_of_any_size_can_be_copied_but_not_read(tmp_path: Path, kind: str) -> None:
    big = bytes(range(256)) * 4_000
    path = written(tmp_path / "upload", {"big": big, "small": b"s"}, kind)
    limits = ArchiveLimits(entry_bytes=1_000_000, total_bytes=2 << 20)
    with pytest.raises(ArchiveError) as caught:
        contents(path, limits)
    assert caught.value.code == "archive_bomb"
    assert caught.value.report["rejected"]["items"][0]["entry"] == "big"
    assert copied(path, limits, tmp_path)[0] == big
    with pytest.raises(ArchiveError, match="unpacks to over 999,999 bytes"):
        copied(path, ArchiveLimits(total_bytes=999_999), tmp_path)


def test_copying_holds_a_piece_in_memory(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "upload", {"big": bytes(range(256)) * 20_000}, kind)
    copied(path, ArchiveLimits(), tmp_path)  # whatever is imported by the first one
    tracemalloc.start()
    try:
        copied(path, ArchiveLimits(), tmp_path, read_back=False)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_copies_are_checked_like_what_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(archive(kind, ("x.parquet", handmade([]))))
    with pytest.raises(ArchiveError) as caught:
        copied(path, ArchiveLimits(), tmp_path)
    assert caught.value.code == "entry_type_forbidden"
    assert caught.value.report["rejected"]["items"][0]["entry"] == "x.parquet"


def test_what_does_not_compress_is_no_bomb_whatever_the_ratio(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0)
    files = {f"{number}": noise.randbytes(number * 100_000) for number in range(6)}
    path = written(tmp_path / "upload", files, kind)
    assert contents(path, ArchiveLimits(ratio=2, ratio_free_bytes=0)) == files


def test_unsafe_paths_are_all_named(tmp_path: Path, kind: str) -> None:
    names = ["../a.png", "set/../../a.png", "/etc/a.png", "C:/a.png", "c:a.png", "set\\cat\\a.png", "set/cat/.."]
    code, named = refusal(tmp_path, archive(kind, *((name, b"?") for name in names)))
    assert code == "entry_path_unsafe"
    assert named == [(name, "entry_path_unsafe") for name in names]


@pytest.mark.parametrize(
    "name", ["set/cat/a\nb.png", "set/cat/a\x9bb.png", "set/\u202egnp.exe", "a\u2066b.png", "", "a/."]
)
def test_invisible_characters_make_a_name_invalid(tmp_path: Path, kind: str, name: str) -> None:
    code, [(shown, named)] = refusal(tmp_path, archive(kind, (name, b"?")))
    assert code == named == "entry_name_invalid"
    assert shown.isprintable()


def test_names_that_collide_on_some_systems_are_refused(tmp_path: Path, kind: str) -> None:
    for name in ("set/cat/é.png", unicodedata.normalize("NFD", "set/cat/é.png"), "SET/cat/É.PNG", "./set//cat/é.png"):
        code, named = refusal(tmp_path, archive(kind, ("set/cat/é.png", b"8"), (name, b"9")))
        assert code == "entry_name_conflict"
        assert named == [(name, "entry_name_conflict")]


def test_names_of_archives_are_forbidden_and_all_named(tmp_path: Path, kind: str) -> None:
    names = ["set/cat/more.ZIP", "set/cat/more.tar.gz", "x.tzst"]
    code, named = refusal(tmp_path, archive(kind, *((name, b"?") for name in names)))
    assert code == "entry_type_forbidden"
    assert named == [(name, "entry_type_forbidden") for name in names]


@pytest.mark.parametrize("content", [handmade([]), b"\x1f\x8b\x08" + bytes(30), tar([Header("a")])])
def test_a_nested_archive_is_known_by_its_content(tmp_path: Path, kind: str, content: bytes) -> None:
    code, named = refusal(tmp_path, archive(kind, ("8.jpg", content), ("9.jpg", content)))
    assert code == "entry_type_forbidden"
    assert named == [("8.jpg", "entry_type_forbidden"), ("9.jpg", "entry_type_forbidden")]


def test_system_files_are_given_as_such(tmp_path: Path, kind: str) -> None:
    names = ["__MACOSX/set/cat/._0.png", "set/.DS_Store", "set/cat/Thumbs.db", "set/cat/._1.png", "__MACOSX/a.zip"]
    path = tmp_path / "upload"
    path.write_bytes(archive(kind, *((name, b"?") for name in names)))
    assert [entry.name for entry in entries(path) if entry.is_system_file] == names


def test_too_many_entries_are_refused(tmp_path: Path, kind: str) -> None:
    assert refusal(tmp_path, archive(kind), ArchiveLimits(entries=3)) == ("archive_too_many_entries", [])
    contents(tmp_path / "upload", ArchiveLimits(entries=4))


def test_lists_in_reports_are_capped_and_counted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(archive(kind, *((f"../{number}", b"") for number in range(REPORT_ITEMS + 5))))
    with pytest.raises(ArchiveError, match=f"{REPORT_ITEMS + 4:,} more") as caught:
        contents(path)
    rejected = caught.value.report["rejected"]
    assert rejected["total"] == REPORT_ITEMS + 5
    assert len(rejected["items"]) == REPORT_ITEMS


def test_tallies_add_up() -> None:
    tally, other = Tally(), Tally()
    for number in range(REPORT_ITEMS + 5):
        other.add(number=number)
    tally.merge(other.report())
    tally.merge(other.report())
    assert tally.total == 2 * REPORT_ITEMS + 10
    assert tally.items == other.items == [{"number": number} for number in range(REPORT_ITEMS)]


@pytest.mark.parametrize("data", [b"", b"PK", b"hello", b"BZh9" + bytes(600), b"PAR1" + b"x" * 600])
def test_what_is_no_archive_is_invalid(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data) == ("archive_invalid", [])


def test_a_zip_behind_something_else_is_still_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"#!/bin/sh\n" + bytes(2_000) + archive("zip"))
    assert contents(path) == GOOD


def test_a_zip_that_looks_like_a_tar_is_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(handmade([Member("a.bin", bytes(222) + b"ustar" + bytes(600))]))
    assert path.read_bytes()[257:262] == b"ustar"
    assert list(contents(path)) == ["a.bin"]
