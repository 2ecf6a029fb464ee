"""What is sent for a file or a folder."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_client.archives import GZIP, PARQUET, TAR, ZIP, ZSTD, content_of
from bpt_client.errors import InputError
from bpt_core.archive import ArchiveLimits
from bpt_core.archive import entries as entries_of

NAMES = ("lily/b.jpg", "lily/a.jpg", "daisy/a.jpg", "metadata.csv", "more/train-0.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "flowers"
    for name in (*NAMES, "daisy/.DS_Store", "__MACOSX/x", ".git/config", "Thumbs.db"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    return folder


def sent(path: Path) -> bytes:
    return b"".join(content_of(path).chunks())


def files_in(archive: bytes) -> dict[str, bytes]:
    """Order counts; everything must be a regular file."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert member.isreg()
            found[member.name] = file.read()
    return found


def test_a_folder_becomes_a_tar_in_order_without_hidden_and_system_files(folder: Path) -> None:
    content = content_of(folder)
    assert (content.name, content.media_type) == ("flowers", TAR)
    files = files_in(sent(folder))
    assert list(files) == ["daisy/a.jpg", "lily/a.jpg", "lily/b.jpg", "metadata.csv", "more/train-0.parquet"]
    assert all(data == name.encode() * 100 for name, data in files.items())


def test_the_size_is_known_before_anything_is_read(folder: Path) -> None:
    (folder / "lily" / ("long-" * 40 + ".jpg")).write_bytes(bytes(512))
    (folder / "lily" / "empty.jpg").touch()
    assert content_of(folder).size == len(sent(folder))


def test_equal_content_is_equal_bytes_whatever_the_times_and_modes(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for name in NAMES[::-1]:  # made in another order
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((folder / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    assert sent(other) == sent(folder)
    assert sent(folder) == sent(folder)


file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(st.dictionaries(file_names, st.binary(max_size=1100), min_size=1, max_size=4), st.text("äb", max_size=100))
@settings(max_examples=40, deadline=None)
def test_whatever_the_names_another_reader_finds_the_same_files(files: dict[str, bytes], parent: str) -> None:
    with TemporaryDirectory() as directory:
        deep = Path(directory, "class", *filter(None, [parent]))
        deep.mkdir(parents=True)
        kept = {}
        for name, data in files.items():
            hidden = name.startswith(".") or name.casefold() in ("__macosx", "thumbs.db")
            if hidden or len(name.encode()) > 255:
                continue
            (deep / name).write_bytes(data)
            kept[str((deep / name).relative_to(directory))] = data
        if kept:
            assert files_in(sent(Path(directory))) == kept


def test_the_service_reads_what_is_packed(folder: Path, tmp_path: Path) -> None:
    name = "blüte/" + "long-" * 40 + ".jpg"
    (folder / "blüte").mkdir()
    (folder / name).write_bytes(b"x" * 1000)
    (tmp_path / "flowers.tar").write_bytes(sent(folder))
    found = {entry.name: entry.read() for entry in entries_of(tmp_path / "flowers.tar", ArchiveLimits())}
    assert found == {each: each.encode() * 100 for each in NAMES} | {name: b"x" * 1000}


def test_links_become_what_they_point_to(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("lily", "more", "metadata.csv"):
        (linked / name).symlink_to(folder / name)
    (linked / "daisy").mkdir()
    (linked / "daisy" / "a.jpg").symlink_to(folder / "daisy" / "a.jpg")
    assert sent(linked) == sent(folder)


def test_a_folder_that_links_to_itself_is_refused(folder: Path) -> None:
    (folder / "lily" / "again").symlink_to(folder)
    with pytest.raises(InputError, match="links to a folder it lies in"):
        content_of(folder)


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "lily" / "c.jpg").symlink_to(folder / "gone.jpg")
    with pytest.raises(InputError, match=r"c\.jpg"):
        content_of(folder)


def test_an_empty_folder_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(InputError, match="has no files"):
        content_of(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file or folder"):
        content_of(tmp_path / "absent")


def test_a_name_that_is_no_text_is_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/lily/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(InputError, match="not text"):
        content_of(folder)


def zip_bytes() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/1.jpg", b"x")
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/1.jpg"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "media_type", "called"),
    [
        ("my.flowers.zip", zip_bytes(), ZIP, "my.flowers"),
        ("flowers.exe", b"runs" + zip_bytes(), ZIP, "flowers"),
        ("flowers.tar", tar_bytes(), TAR, "flowers"),
        ("flowers", tar_bytes(), TAR, "flowers"),
        ("flowers.tar.gz", gzip.compress(tar_bytes(), mtime=0), GZIP, "flowers"),
        ("flowers.zip", gzip.compress(tar_bytes(), mtime=0), GZIP, "flowers"),  # what is in it decides
        ("flowers.tar.zst", b"\x28\xb5\x2f\xfd", ZSTD, "flowers"),
        ("train-00000-of-00001.parquet", b"PAR1", PARQUET, "train-00000-of-00001"),
        ("flowers.tgz", b"odd", GZIP, "flowers"),
        ("flowers.ZIP", b"odd", ZIP, "flowers"),
    ],
)
def test_a_file_is_sent_as_it_is(tmp_path: Path, name: str, data: bytes, media_type: str, called: str) -> None:
    (tmp_path / name).write_bytes(data)
    content = content_of(tmp_path / name)
    assert (content.media_type, content.name, content.size) == (media_type, called, len(data))
    assert sent(tmp_path / name) == data


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"notes\.txt is none of zip, tar"):
        content_of(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("data", "mtime_ns"),
    [(b"PK", 1), (b"PK\x03\x04 four more", 1), (b"PK\x03\x04 five", 2), (None, 0)],
    ids=["shorter", "longer", "as long, but later", "gone"],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_changes_while_it_is_sent_is_refused(
    tmp_path: Path, data: bytes | None, mtime_ns: int, packed: bool
) -> None:
    path = tmp_path / "flowers" / "a.zip"
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 four")
    os.utime(path, ns=(1, 1))
    content = content_of(path.parent if packed else path)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
        os.utime(path, ns=(mtime_ns, mtime_ns))
    chunks: list[bytes] = []
    with pytest.raises(InputError, match="cannot read" if data is None else "changed while it was sent"):
        chunks.extend(content.chunks())
    assert len(b"".join(chunks)) <= content.size


def test_the_stamp_tells_whether_files_have_changed(folder: Path) -> None:
    stamp = content_of(folder).stamp
    assert content_of(folder).stamp == stamp
    os.utime(folder / "lily/a.jpg", ns=(5, 5))
    touched = content_of(folder).stamp
    (folder / "lily/a.jpg").rename(folder / "lily/aa.jpg")
    renamed = content_of(folder).stamp
    (folder / "lily/aa.jpg").write_bytes(b"")
    os.utime(folder / "lily/aa.jpg", ns=(5, 5))
    assert len({stamp, touched, renamed, content_of(folder).stamp}) == 4
