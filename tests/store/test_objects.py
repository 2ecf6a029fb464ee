"""Object storage in a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

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
