"""Object storage in a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bpt_store.objects import Objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(f"file://{tmp_path / 'objects'}")


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "objects").rglob("*") if path.is_file())


async def chunks(*parts: bytes, broken: bool = False) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if broken:
        raise ConnectionResetError("gone")


def test_a_stream_comes_back_as_it_went_in(objects: Objects, tmp_path: Path) -> None:
    parts = [bytes([number]) * 3_000_000 for number in range(4)]
    asyncio.run(objects.put_stream("a/source.zip", chunks(*parts)))
    objects.fetch("a/source.zip", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"".join(parts)


@pytest.mark.parametrize("size", [0, 10, 12_000_000])
def test_a_stream_that_breaks_leaves_no_object(objects: Objects, tmp_path: Path, size: int) -> None:
    with pytest.raises(ConnectionResetError):
        asyncio.run(objects.put_stream("a/source.zip", chunks(bytes(size), broken=True)))
    assert files(tmp_path) == []


def test_an_empty_stream_is_an_empty_object(objects: Objects, tmp_path: Path) -> None:
    asyncio.run(objects.put_stream("a/empty.zip", chunks()))
    objects.fetch("a/empty.zip", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


def test_bytes_that_changed_are_noticed(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    stored = objects.put_file("a/f", tmp_path / "f")
    (tmp_path / "objects" / "a" / "f").write_bytes(b"changed")
    with pytest.raises(ValueError, match="sha256"):
        objects.fetch("a/f", tmp_path / "copy", sha256=str(stored["sha256"]))


def test_a_prefix_deletes_all_below_it_and_a_key_only_itself(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    for key in ("d/1/one", "d/1/two", "d/10/three", "d/1.zip"):
        objects.put_file(key, tmp_path / "f")
    objects.delete("d/1/")
    assert files(tmp_path) == ["1.zip", "three"]
    objects.delete("d/1.zip")
    objects.delete("d/1.zip")
    objects.delete("nothing/")
    assert files(tmp_path) == ["three"]


def test_a_reader_seeks_and_reads_like_a_file(objects: Objects, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1_000
    (tmp_path / "file").write_bytes(content)
    key = str(objects.put_content("p/", tmp_path / "file")["key"])
    with objects.reader(key) as file:
        assert (file.seek(0, 2), file.read(5)) == (len(content), b"")
        assert (file.seek(-700, 2), file.read(3)) == (len(content) - 700, content[-700:-697])
        assert (file.seek(100_000), file.read()) == (100_000, content[100_000:])
    assert objects.read_range(key, 300, 7) == content[300:307]
    assert objects.read_range(key, 300, 0) == b""


def test_equal_content_is_one_object(objects: Objects, tmp_path: Path) -> None:
    for name in ("one.bin", "two.bin"):
        (tmp_path / name).write_bytes(b"same")
    one, two = (objects.put_content("p/", tmp_path / name) for name in ("one.bin", "two.bin"))
    assert one == two
    assert objects.keys("p/") == [one["key"]]


def test_a_stream_is_in_no_list_before_it_is_whole_and_goes_with_its_prefix(objects: Objects, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    async def watched() -> AsyncIterator[bytes]:
        yield bytes(1_000)
        # As if the process were killed now, and the sweep came.
        seen.extend([files(tmp_path), objects.keys("a/")])
        objects.delete("a/")
        seen.append(files(tmp_path))

    with pytest.raises(FileNotFoundError):
        asyncio.run(objects.put_stream("a/1/source.zip", watched()))
    assert len(seen[0]) == 1
    assert seen[1:] == [[], []]
    assert files(tmp_path) == []


def test_streams_whose_folder_is_emptied_meanwhile_are_stored(objects: Objects, tmp_path: Path) -> None:
    async def emptied() -> AsyncIterator[bytes]:
        await objects.put_stream("a/other", chunks(b"x"))
        objects.delete("a/other")
        yield b"content"

    asyncio.run(objects.put_stream("a/one", emptied()))
    assert files(tmp_path) == ["one"]


def test_a_stream_takes_the_place_of_an_object_only_when_it_is_whole(objects: Objects, tmp_path: Path) -> None:
    asyncio.run(objects.put_stream("a/one", chunks(b"first")))
    with pytest.raises(ConnectionResetError):
        asyncio.run(objects.put_stream("a/one", chunks(b"second", broken=True)))
    objects.fetch("a/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"first"


def test_a_folder_that_goes_away_before_the_first_byte_is_made_again(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = Path.mkdir, []

    def make_and_lose(path: Path, *arguments: Any, **options: Any) -> None:
        make(path, *arguments, **options)
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    (tmp_path / "objects" / "a").mkdir()
    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    asyncio.run(objects.put_stream("a/one", chunks(b"x")))
    assert len(made) == 2
    assert files(tmp_path) == ["one"]
