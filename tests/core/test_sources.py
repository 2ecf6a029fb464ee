"""The same pictures sent in every form that is accepted become the same dataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from bpt_core.errors import DatasetError
from bpt_core.items import Items
from bpt_core.packing import Packed, PackSettings, pack
from bpt_core.pictures import Split
from tests.core.packs import found, packed, picture, pictures, refused


def tarred(files: Mapping[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if mode == "gz" else "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    if mode != "zst":
        return out.getvalue()
    compressed = pa.compress(out.getvalue(), codec="zstd", asbytes=True)
    assert isinstance(compressed, bytes)
    return compressed


def packed_file(tmp_path: Path, name: str, data: bytes, settings: PackSettings | None = None) -> Packed:
    (tmp_path / name).write_bytes(data)
    return pack(tmp_path / name, tmp_path / f"of {name}", settings)


def rows(result: Packed) -> list[tuple[str, str, tuple[str, ...], Split]]:
    return [(item.path, item.digest, item.labels, item.split) for item in Items.read(result.items)]


@pytest.mark.parametrize("mode", ["tar", "gz", "zst"])
def test_a_tar_is_as_good_as_a_zip(tmp_path: Path, mode: str) -> None:
    files = {**pictures("train/cat", "train/dog", "test/cat", "test/dog"), "readme.txt": b"hello"}
    one, other = packed(tmp_path / "zip", files), packed_file(tmp_path, "x", tarred(files, mode))
    assert rows(one) == rows(other)
    assert one.report == other.report


def test_parquet_shards_of_ours_come_back_as_they_were(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=150), PackSettings(shard_bytes=4_000))
    assert len(one.shards) > 1
    sent = {f"data/{shard.name}": shard.read_bytes() for shard in one.shards}
    two = packed(tmp_path / "two", sent)
    assert [row[1:] for row in rows(two)] == [row[1:] for row in rows(one)]
    alone = packed_file(
        tmp_path, "alone.parquet", packed(tmp_path / "x", pictures("cat", "dog")).shards[0].read_bytes()
    )
    assert alone.class_names == ("cat", "dog")


def test_names_of_parquet_files_tell_their_split(tmp_path: Path) -> None:
    sent = {}
    for split, seed in (("train", 0), ("validation", 100), ("test", 200)):
        shard = packed(tmp_path / split, pictures("cat", "dog", each=5, seed=seed)).shards[0]
        table = pa.parquet.read_table(shard).drop_columns(["split"])
        out = io.BytesIO()
        pa.parquet.write_table(table, out)
        sent[f"birds/data/{split}-00000-of-00001.parquet"] = out.getvalue()
    assert packed(tmp_path / "all", sent).report["splits"] == {"train": 10, "val": 10, "test": 10}


def test_a_row_without_a_picture_is_a_bad_image(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
    table = pa.Table.from_pylist(
        [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "label": "ab"[n % 2]} for n in range(39)]
        + [{"image": {"bytes": None, "path": "elsewhere.png"}, "label": "a"}],
        schema,
    )
    out = io.BytesIO()
    pa.parquet.write_table(table, out)
    result = packed_file(tmp_path, "x.parquet", out.getvalue())
    assert [item["code"] for item in found(result.report)["bad_images"]["items"]["items"]] == ["image_corrupt"]
    assert result.report["images"] == {"accepted": 39, "rejected": 1, "packed": 39}


def test_a_parquet_file_that_is_none_is_refused_and_named(tmp_path: Path) -> None:
    error = refused(tmp_path, {**pictures("cat", "dog"), "data/x.parquet": b"PAR1 nonsense"})
    assert error.code in {"archive_invalid", "archive_corrupt"}


def test_an_encrypted_parquet_file_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PARE" + bytes(40) + b"PARE")
    with pytest.raises(DatasetError) as caught:
        pack(tmp_path / "x.parquet", tmp_path / "packed")
    assert caught.value.code == "archive_encrypted"


def test_all_bad_tables_and_files_are_named_not_the_first_alone(tmp_path: Path) -> None:
    bad = {"train/labels.csv": b"file_name,label\na\n", "val/labels.csv": b"nothing\n", "x/data.parquet": b"PAR1"}
    error = refused(tmp_path, {**pictures("cat", "dog"), **bad})
    assert error.code == "annotations_invalid"
    assert {"train/labels.csv", "val/labels.csv"} <= {item["entry"] for item in error.report["rejected"]["items"]}


def test_the_first_picture_of_an_animation_is_taken_on_demand(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.open(io.BytesIO(picture(seed))) for seed in (1, 2)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    files = {**pictures("cat", "dog", each=20), "cat/moving.gif": out.getvalue()}
    left_out = packed(tmp_path / "no", files)
    assert [item["code"] for item in left_out.report["rejected"]["items"]] == ["image_animated"]
    taken = packed(tmp_path / "yes", files, PackSettings(first_frame=True))
    assert (taken.report["images"]["rejected"], taken.report["formats"]["GIF"]) == (0, 1)
