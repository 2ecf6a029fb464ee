"""What is sent for a folder."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from bpt_client.archives import content_digest, opened_archive, write_zip
from bpt_client.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flowers"
    for name in (
        "lily/b.jpg",
        "lily/a.jpg",
        "daisy/a.jpg",
        "daisy/.DS_Store",
        "__MACOSX/x",
        ".git/config",
        "Thumbs.db",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return folder


def zipped(folder: Path) -> bytes:
    with opened_archive(folder) as archive:
        return archive.read()


def test_a_folder_is_zipped_in_order_without_hidden_and_system_files(folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(zipped(folder))) as archive:
        assert archive.namelist() == ["daisy/a.jpg", "lily/a.jpg", "lily/b.jpg"]
        assert archive.read("lily/b.jpg") == b"lily/b.jpg" * 100
        assert archive.testzip() is None


def test_equal_content_is_equal_bytes_whatever_the_times_and_modes(folder: Path, tmp_path: Path) -> None:
    first = zipped(folder)
    other = tmp_path / "elsewhere"
    for name in ("lily/a.jpg", "daisy/a.jpg", "lily/b.jpg"):  # made in another order
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((folder / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    assert zipped(other) == first


def test_links_become_what_they_point_to(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "lily").symlink_to(folder / "lily")
    (linked / "daisy").mkdir()
    (linked / "daisy" / "a.jpg").symlink_to(folder / "daisy" / "a.jpg")
    assert zipped(linked) == zipped(folder)


def test_a_folder_that_links_to_itself_is_refused(folder: Path) -> None:
    (folder / "lily" / "again").symlink_to(folder)
    with pytest.raises(InputError, match="links to a folder it lies in"):
        zipped(folder)


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "lily" / "c.jpg").symlink_to(folder / "gone.jpg")
    with pytest.raises(InputError, match=r"c\.jpg"):
        zipped(folder)


def test_an_empty_folder_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(InputError, match="has no files"):
        zipped(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        zipped(tmp_path / "absent")


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/lily/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(InputError, match="not text"):
        zipped(folder)


def test_a_zip_is_sent_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"anything")
    assert zipped(tmp_path / "a.zip") == b"anything"


def test_the_digest_is_that_of_rfc_9530_and_the_file_is_rewound(folder: Path) -> None:
    out = io.BytesIO()
    write_zip(folder, out)
    out.seek(0)
    digest, size = content_digest(out)
    content = out.read()
    assert size == len(content)
    assert digest == f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
