"""The benchmark of uploads, with the bare server on both sides."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.upload import MIB, Body, Watched, compare, running_sink, send_parts, send_whole, show


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upload") / "bare"


@pytest.fixture(scope="module")
def bare(directory: Path) -> Iterator[httpx.Client]:
    with running_sink(directory) as url, httpx.Client(base_url=url) as http:
        yield http


def test_the_bare_server_keeps_every_byte(bare: httpx.Client, directory: Path) -> None:
    body = Body(5 * MIB // 2, part_bytes=MIB)
    send_whole(bare, body)
    send_parts(bare, body)
    whole = (directory / "v1-datasets").read_bytes()
    parts = [(directory / f"v1-uploads-upl_bare-parts-{number}").read_bytes() for number in (1, 2, 3)]
    assert len(whole) == body.size
    assert b"".join(parts) == whole
    assert [len(part) for part in parts] == body.sizes == [MIB, MIB, MIB // 2]
    bare.delete("/nothing")
    assert [path.name for path in directory.iterdir()] == ["nothing"]
    assert Body(2 * MIB, part_bytes=MIB).sizes == [MIB, MIB]


def test_digests_are_those_of_what_is_sent() -> None:
    body = Body(5 * MIB // 2 + 7, part_bytes=MIB)
    for size, digest in [(body.size, body.digest), *body.digests.items()]:
        sent = b"".join(body.chunks(size))
        assert len(sent) == size
        assert digest == f"sha-256=:{base64.b64encode(hashlib.sha256(sent).digest()).decode()}:"
    assert sorted(body.digests) == [MIB // 2 + 7, MIB]


def test_both_are_measured_in_turn_and_shown(bare: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned: list[str] = []
    found = compare(bare, bare, Body(MIB, part_bytes=MIB // 2), 2, psutil.Process(), cleaned.append)
    assert cleaned == ["upl_bare"] * 6  # one of each way to begin with
    assert all(len(each.bare) == len(each.service) == len(each.growth) == 2 for each in found.values())
    assert all(0 <= grown < 1024 * MIB for each in found.values() for grown in each.growth)
    assert all(0.01 < each.ratio < 100 for each in found.values())
    show(found, 1)
    told = capsys.readouterr().out
    assert "one request" in told
    assert "parts" in told


def test_the_most_that_was_resident_is_seen() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with Watched(process) as watched:
        kept = bytearray(b"x") * (64 * MIB)
    assert watched.bytes >= before + 32 * MIB
    assert len(kept) == 64 * MIB
