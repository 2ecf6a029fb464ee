"""Datasets that lie in object storage: one object, or all below a prefix."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpt_core.packing import pack
from tests import archives
from tests.core.packs import pictures
from worker import imports
from worker.refused import Refused

LIMIT_BYTES = 10_000_000


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for name, data in pictures("birds/cat", "birds/dog", each=4).items():
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "bucket" / "birds.zip").write_bytes(archives.flowers())
    return tmp_path / "bucket"


def refusal(url: str, path: Path, limit_bytes: int = LIMIT_BYTES) -> str:
    with pytest.raises(Refused) as caught:
        imports.fetch(url, path, limit_bytes)
    return caught.value.code


def test_an_object_comes_as_it_is(bucket: Path, tmp_path: Path) -> None:
    imports.fetch(f"file://{bucket}/birds.zip", tmp_path / "source", LIMIT_BYTES)
    assert (tmp_path / "source").read_bytes() == archives.flowers()


@pytest.mark.parametrize("end", ["", "/"])
def test_all_below_a_prefix_comes_as_an_archive(bucket: Path, tmp_path: Path, end: str) -> None:
    imports.fetch(f"file://{bucket}/birds{end}", tmp_path / "source", LIMIT_BYTES)
    packed = pack(tmp_path / "source", tmp_path / "packed")
    assert (packed.class_names, packed.report["images"]["packed"]) == (("cat", "dog"), 8)


@pytest.mark.parametrize("path", ["nothing", "nothing/", "bir"])
def test_where_nothing_lies_the_import_is_refused(bucket: Path, tmp_path: Path, path: str) -> None:
    assert refusal(f"file://{bucket}/{path}", tmp_path / "source") == "import_not_found"
    assert sorted(path.name for path in bucket.iterdir()) == ["birds", "birds.zip"]


def test_more_than_may_come_is_refused(bucket: Path, tmp_path: Path) -> None:
    for url in (f"file://{bucket}/birds.zip", f"file://{bucket}/birds/"):
        assert refusal(url, tmp_path / "source", limit_bytes=500) == "payload_too_large"


def test_what_cannot_be_read_is_refused(bucket: Path, tmp_path: Path) -> None:
    assert refusal("s3://", tmp_path / "source") == "import_failed"
