from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core.annotations import Columns
from bpt_core.archive import ArchiveLimits
from bpt_core.dataset import MULTI_LABEL, Item, ShardWriter
from bpt_core.errors import ArchiveError, DatasetError
from bpt_core.parquet_images import ParquetImages, images, split_of_name
from bpt_core.parquet_pages import Column, Pages, RowGroup, examine, row_groups
from bpt_core.pictures import Annotation, Split
from bpt_core.thrift import Thrift

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CATS = {"_type": "ClassLabel", "names": ["cat", "dog"]}
CODES = {
    *("archive_invalid", "archive_corrupt", "archive_encrypted", "archive_bomb", "archive_too_many_entries"),
    *("dataset_empty", "annotations_invalid"),
}


def pictures(*paths: str | None) -> Any:
    return pa.array([{"bytes": f"{number}".encode(), "path": path} for number, path in enumerate(paths)], IMAGE)


def file(tmp_path: Path, columns: Mapping[str, Any], features: Mapping[str, Any] | None = None, **options: Any) -> Path:
    table = pa.table(dict(columns))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = tmp_path / "images.parquet"
    pq.write_table(table, path, **options)
    return path


def notes(
    tmp_path: Path, values: Any, feature: Any = None, *, column: str = "label", several: bool = False
) -> list[Annotation]:
    features = None if feature is None else {column: feature}
    path = file(tmp_path, {"image": pictures(*[None] * len(values)), column: values}, features)
    return [annotation for *_, annotation in images(path, Columns(), several)]


def refused(path: Path, columns: Columns | None = None, limits: ArchiveLimits | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        list(images(path, columns, False, limits))
    assert caught.value.report["rejected"]["total"] == len(caught.value.report["rejected"]["items"])
    assert isinstance(caught.value, ArchiveError) == caught.value.code.startswith("archive_")
    return f"{caught.value.code}: {caught.value}"


def test_rows_come_in_order_with_name_bytes_and_annotation(tmp_path: Path) -> None:
    columns = {
        "image": pictures("a.png", "b/c.png"),
        "label": pa.array([1, 0]),
        "split": ["train", "Dev"],
        "group": [7, None],
    }
    reader = ParquetImages(file(tmp_path, columns, {"label": CATS, "image": {"_type": "Image"}}))
    assert reader.rows == 2
    assert reader.has_labels
    assert list(reader) == [
        ("a.png", b"0", Annotation(("dog",), Split.TRAIN, "7")),
        ("b/c.png", b"1", Annotation(("cat",), Split.VAL)),
    ]
    assert not reader.several_seen
    assert len(list(reader)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 7},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"use_dictionary": False, "data_page_size": 100, "write_batch_size": 5},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}, "compression": "gzip"},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}, "compression": None},
    ],
)
def test_every_way_of_writing_gives_the_same_rows(tmp_path: Path, options: dict[str, Any]) -> None:
    data = [random.Random(number).randbytes(number * 50) for number in range(100)]
    column = pa.array([{"bytes": each, "path": f"{number}.png"} for number, each in enumerate(data)], IMAGE)
    path = file(tmp_path, {"image": column, "label": [str(number % 3) for number in range(100)]}, **options)
    assert list(images(path)) == [
        (f"{number}.png", each, Annotation((str(number % 3),))) for number, each in enumerate(data)
    ]


def test_shards_of_ours_read_back_as_they_were(tmp_path: Path) -> None:
    items = [
        Item(b"1", "a/1.png", (1,), Split.TEST),
        Item(b"2", "2.png", (0, 1), Split.TRAIN),
        Item(b"3", "3", (), Split.VAL),
    ]
    with ShardWriter(tmp_path, ["cat", "dog"], MULTI_LABEL) as writer:
        for item in items:
            writer.write(item)
    reader = ParquetImages(writer.shards[0])
    assert list(reader) == [
        ("a/1.png", b"1", Annotation(("dog",), Split.TEST)),
        ("2.png", b"2", Annotation(("cat", "dog"), Split.TRAIN)),
        ("3", b"3", Annotation((), Split.VAL)),
    ]
    assert reader.several_seen


LISTS = [[1, 0], [], None, [-1], [0, -1]]
FROM_LISTS = [("cat", "dog"), (), None, None, ("cat",)]


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (pa.array([0, 1, -1, None]), CATS, [("cat",), ("dog",), None, None]),
        (pa.array(LISTS), {"_type": "Sequence", "feature": CATS}, FROM_LISTS),
        (pa.array(LISTS), {"_type": "List", "feature": CATS}, FROM_LISTS),
        (pa.array(LISTS), [CATS], FROM_LISTS),
        (pa.array(LISTS, pa.large_list(pa.int32())), {"_type": "LargeList", "feature": CATS}, FROM_LISTS),
        (pa.array([3, -1, None, 0]), None, [("3",), None, None, ("0",)]),
        (pa.array([3, -1, None, 0]), {"_type": "Value", "dtype": "int64"}, [("3",), None, None, ("0",)]),
        (pa.array([" cat ", "", None, "a|b"]), None, [("cat",), None, None, ("a|b",)]),
        (pa.array([["b", "a"], [], None]), None, [("a", "b"), (), None]),
        (pa.array(["['b', 'a']", "[]"]), None, [("a", "b"), ()]),
        (pa.array([1.5, float("nan")]), None, [("1.5",), None]),
        (pa.array([True, False]), None, [("true",), ("false",)]),
        (pa.array(["cat", "dog"]).dictionary_encode(), None, [("cat",), ("dog",)]),
        (pa.array([0]), {"_type": "ClassLabel", "names": [" caf\u0065\u0301"]}, [("café",)]),
    ],
)
def test_labels_of_any_kind(tmp_path: Path, values: Any, feature: Any, expected: Any) -> None:
    assert [note.labels for note in notes(tmp_path, values, feature)] == expected


def test_text_is_split_if_several_labels_are_meant_but_names_of_classes_are_not(tmp_path: Path) -> None:
    said = notes(tmp_path, pa.array(["a|b", "", None]), several=True)
    assert [note.labels for note in said] == [("a", "b"), (), None]
    said = notes(tmp_path, pa.array([0]), {"_type": "ClassLabel", "names": ["a|b"]}, several=True)
    assert [note.labels for note in said] == [("a|b",)]


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (pa.array([0, 2]), CATS, "row 1: a label is 2, of 2 classes"),
        (pa.array([-2]), CATS, "row 0: a label is -2, of 2 classes"),
        (pa.array([[0], [7]]), {"_type": "Sequence", "feature": CATS}, "row 1: a label is 7, of 2 classes"),
        (pa.array(["cat"]), CATS, "row 0: a label is 'cat', of 2 classes"),
        (pa.array([{"x": 1}]), None, "row 0: neither text nor a number"),
        (pa.array([b"cat"]), None, "row 0: neither text nor a number"),
        (pa.array(["c\x07t"]), None, "row 0: control or direction characters in a cell"),
        (pa.array(["x" * 201]), None, "row 0: a label or group is over 200 characters long"),
        (pa.array([0]), {"_type": "ClassLabel", "names": ["c\x07t"]}, "control or direction characters in a cell"),
    ],
)
def test_labels_that_make_no_sense_are_refused(tmp_path: Path, values: Any, feature: Any, expected: str) -> None:
    path = file(tmp_path, {"image": pictures(*[None] * len(values)), "label": values}, feature and {"label": feature})
    assert refused(path) == f"annotations_invalid: Parquet file: {expected}"


def test_bad_splits_and_missing_columns_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, {"image": pictures("a"), "split": ["trian"], "x": ["y"]})
    assert "no split" in refused(path)
    assert refused(path, Columns(label="species")) == "annotations_invalid: Parquet file: there is no column species"
    twice = file(tmp_path, {"image": pictures("a"), "label": ["x"], "Label": ["y"]})
    assert refused(twice) == "annotations_invalid: Parquet file: the column label is there twice"
    assert not ParquetImages(file(tmp_path, {"image": pictures("a")})).has_labels


@pytest.mark.parametrize(
    "features", ["no JSON", "[" * 100_000, "[]", '{"info": 3}', '{"info": {"features": []}}', "\xff"]
)
def test_metadata_that_make_no_sense_say_nothing(tmp_path: Path, features: str) -> None:
    table = pa.table({"image": pictures("a"), "label": [1]}).replace_schema_metadata({"huggingface": features})
    pq.write_table(table, tmp_path / "x")
    assert list(images(tmp_path / "x")) == [("a", b"0", Annotation(("1",)))]


@pytest.mark.parametrize(
    "feature", [3, {"_type": "ClassLabel"}, {"_type": "Sequence"}, {"_type": "ClassLabel", "names": 3}, [[CATS]]]
)
def test_features_that_make_no_sense_say_nothing(tmp_path: Path, feature: Any) -> None:
    assert notes(tmp_path, pa.array([1]), feature) == [Annotation(("1",))]


def test_the_image_column_is_the_marked_one_or_a_struct_or_binary(tmp_path: Path) -> None:
    def chosen(columns: Mapping[str, Any], features: Any = None, given: str = "") -> tuple[str, bytes]:
        return next(images(file(tmp_path, columns, features), Columns(file=given)))[:2]

    binary, large = pa.array([b"b"]), pa.array([b"l"], pa.large_binary())
    marked = {"x": {"_type": "Image"}}
    assert chosen({"x": binary, "IMG": large}) == ("row-00000000", b"l")
    assert chosen({"image": binary, "x": pictures("x")}) == ("x", b"0")
    assert chosen({"x": pictures("x"), "image": pictures("i")}) == ("i", b"0")
    assert chosen({"image": pictures("i"), "x": pictures("x")}, marked) == ("x", b"0")
    assert chosen({"y": pictures("y"), "x": large}, marked) == ("row-00000000", b"l")
    assert chosen({"image": pictures("i"), "a.b": pictures("ab")}, given="A.B") == ("ab", b"0")
    assert not ParquetImages(file(tmp_path, {"target": pictures("t")})).has_labels
    for columns in ({"x": binary}, {"image": ["text"]}, {"label": [1]}, {"image": pa.array([{"path": "x"}])}):
        assert refused(file(tmp_path, columns)).startswith("dataset_empty: ")


def test_rows_without_bytes_are_given_empty(tmp_path: Path) -> None:
    column = pa.array([{"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"", "path": "x"}], IMAGE)
    assert [(name, data) for name, data, _ in images(file(tmp_path, {"image": column}))] == [
        ("etc/passwd", b""),
        ("row-00000001", b""),
        ("x", b""),
    ]


def test_names_are_harmless_and_differ(tmp_path: Path) -> None:
    given = ["a.png", "/a.png", "A.PNG", "../../x", None, "c/a.png", "..", "C:\\d\\e.png", "f\ng", "h" * 256]
    given += ["row-00000000-a.png", "row-00000001-a.png", "c/row-7", "z.zip", "", "i/" * 200 + "j", "d\\e.png"]
    names = [name for name, *_ in images(file(tmp_path, {"image": pictures(*given)}))]
    assert names == [
        *("a.png", "row-00000001-a.png", "row-00000002-A.PNG", "x", "row-00000004", "c/a.png", "row-00000006"),
        *("row-00000007", "row-00000008", "row-00000009", "row-00000010-row-00000000-a.png"),
        *(
            "row-00000011-row-00000001-a.png",
            "c/row-00000012-row-7",
            "z.zip",
            "row-00000014",
            "row-00000015",
            "d/e.png",
        ),
    ]
    assert len({name.casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", Split.TRAIN),
        ("data/test-00000-of-00001.parquet", Split.TEST),
        ("VALIDATION.parquet", Split.VAL),
        ("food_train.parquet", Split.TRAIN),
        ("default/train/0000.parquet", Split.TRAIN),
        ("train/x/test/0000.parquet", Split.TEST),
        ("test/train-0.parquet", Split.TRAIN),
        ("train-test.parquet", None),
        ("shard-00000.parquet", None),
        ("latest.parquet", None),
        ("0000.parquet", None),
        ("", None),
    ],
)
def test_the_name_of_a_file_may_tell_its_split(name: str, split: Split | None) -> None:
    assert split_of_name(name) is split


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, {"image": pictures("a", "b")})
    good = path.read_bytes()

    def code(data: bytes) -> str:
        path.write_bytes(data)
        return refused(path).partition(":")[0]

    assert [code(data) for data in (b"", b"PAR", b"hello" * 10, b"PK\x03\x04" + good)] == ["archive_invalid"] * 4
    damaged = [good[:-1], good[:100], good[:-8] + b"\xff\xff\xff\0PAR1", b"PAR1", good[:-8] + b"\0" * 4 + b"PAR1"]
    damaged += [good[:4] + bytes(len(good) // 2) + good[4 + len(good) // 2 :], b"PAR1" + bytes(4) + b"PAR1"]
    assert [code(data) for data in damaged] == ["archive_corrupt"] * len(damaged)
    assert code(b"PARE" + good[4:-4] + b"PARE") == "archive_encrypted"


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_files_are_refused(tmp_path: Path, plaintext_footer: bool) -> None:
    class Kms(pe.KmsClient):
        def wrap_key(self, key_bytes: Any, master_key_identifier: str) -> Any:
            return base64.b64encode(key_bytes)

        def unwrap_key(self, wrapped_key: Any, master_key_identifier: str) -> Any:
            return base64.b64decode(wrapped_key)

    configuration = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"k": ["image.bytes"]}, plaintext_footer=plaintext_footer
    )
    factory = pe.CryptoFactory(lambda _: Kms())
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), configuration)
    table = pa.table({"image": pictures("a")})
    with pq.ParquetWriter(tmp_path / "x", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    assert refused(tmp_path / "x") == "archive_encrypted: the Parquet file is encrypted"


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, {"image": pictures("a", "b", "c")})
    assert refused(path, limits=ArchiveLimits(entries=2)).startswith("archive_too_many_entries")
    assert len(list(images(path, limits=ArchiveLimits(entries=3)))) == 3


def test_a_page_that_unpacks_to_far_more_is_a_bomb(tmp_path: Path) -> None:
    column = pa.array([{"bytes": bytes(20 << 20), "path": "a"}], IMAGE)
    path = file(tmp_path, {"image": column}, compression="zstd")
    assert refused(path) == "archive_bomb: a page of the Parquet file unpacks to far too many bytes"


def test_the_same_picture_over_and_over_is_a_bomb(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(10_000)
    column = pa.array([{"bytes": noise, "path": None}] * 3_000, IMAGE)
    assert "over 200 times its size" in refused(file(tmp_path, {"image": column}))
    assert "over 50,000 bytes" in refused(tmp_path / "images.parquet", limits=ArchiveLimits(total_bytes=50_000))


def test_far_too_many_values_in_a_row_are_a_bomb(tmp_path: Path) -> None:
    values = pa.ListArray.from_arrays([0, (1 << 22) + 1], pa.array(np.zeros((1 << 22) + 1, np.int64)))
    path = file(tmp_path, {"image": pictures("a"), "label": values})
    assert path.stat().st_size < 10_000
    assert refused(path) == "archive_bomb: a column of the Parquet file has far too many values"


def test_pages_tell_what_reading_takes(tmp_path: Path) -> None:
    noise = random.Random(0)
    data = [noise.randbytes(1_000) for _ in range(50)]
    for use_dictionary, shared in ((True, 50 * 1_004), (False, 0)):
        columns = {"image": pa.array(data), "a.b": pa.array(data)}
        path = file(tmp_path, columns, use_dictionary=use_dictionary, row_group_size=50)
        with path.open("rb") as opened:
            [group] = row_groups(opened)
            assert group.rows == 50
            for wanted in (["image"], ["a.b"]):
                pages = examine(opened, group, wanted, ArchiveLimits())
                assert pages.shared_bytes == shared
                assert 50 * 1_004 <= pages.size_bytes < 50 * 1_004 + 1_000
            assert examine(opened, group, ["a"], ArchiveLimits()).size_bytes == pages.size_bytes
            assert examine(opened, group, ["imag", "x"], ArchiveLimits()) == Pages(0, 0)


def test_rows_that_may_share_bytes_are_read_in_small_numbers(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        {"image": pa.array([b"x" * 1_000] * 50)},
        use_dictionary=False,
        column_encoding={"image": "DELTA_BYTE_ARRAY"},
    )
    with path.open("rb") as opened:
        [group] = row_groups(opened)
        pages = examine(opened, group, ["image"], ArchiveLimits())
    assert pages.shared_bytes == pages.size_bytes > 1_000
    assert Pages(1_000, 0).batch_rows(10) == 64
    assert Pages(100 << 20, 0).batch_rows(100) == 4
    assert Pages(1 << 20, 40 << 20).batch_rows(1_000) == 3
    assert Pages(1 << 30, 1 << 30).batch_rows(2) == Pages(0, 0).batch_rows(0) == 1


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    options: dict[str, Any] = {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 10}
    path = file(tmp_path, {"image": pa.array([b"x" * 100] * 50)}, data_page_version=version, **options)
    with path.open("rb") as opened:
        [group] = row_groups(opened)
        assert examine(opened, group, ["image"], ArchiveLimits()).size_bytes > 5_000
        short = [column._replace(end=column.end - 1) for column in group.columns]
        with pytest.raises(ArchiveError, match="a page lies beyond its column"):
            examine(opened, group._replace(columns=short), ["image"], ArchiveLimits())
        with monkeypatch.context() as patched:
            patched.setattr("bpt_core.parquet_pages._PAGE_BYTES", 1_000)
            with pytest.raises(ArchiveError, match="far too many bytes"):
                examine(opened, group, ["image"], ArchiveLimits())
        monkeypatch.setattr("bpt_core.parquet_pages._CHUNK_VALUES", 49)
        with pytest.raises(ArchiveError, match="far too many values"):
            examine(opened, group, ["image"], ArchiveLimits())


@pytest.mark.parametrize(
    "header", [b"\x15\x00\x15\x01\x15\x00\0", b"\x15\x00\x15\x02\x15\x01\0", b"\x15\x00\0", b"\x15", b""]
)
def test_page_headers_that_make_no_sense_are_corrupt(header: bytes) -> None:
    group = RowGroup(1, [Column("image", 1, 0, max(1, len(header)))])
    with pytest.raises(ArchiveError, match="header of a page cannot be read") as caught:
        examine(io.BytesIO(header), group, ["image"], ArchiveLimits())
    assert caught.value.code == "archive_corrupt"


def test_memory_is_a_page_and_a_few_rows(tmp_path: Path) -> None:
    noise = random.Random(0)
    column = pa.array([{"bytes": noise.randbytes(250_000), "path": None} for _ in range(80)], IMAGE)
    path = file(tmp_path, {"image": column}, use_dictionary=False, data_page_size=100_000, write_batch_size=1)
    del column
    before = pa.total_allocated_bytes()
    most = 0
    for _ in images(path):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 9 << 20  # of 20 MB in one row group


def test_thrift_reads_what_it_knows_and_refuses_the_rest() -> None:
    data = (
        bytes([0x15, 0x03, 0x11, 0x12, 0x18, 2]) + b"ab" + bytes([0x19, 0x25, 2, 4, 0x1C, 0x13, 7, 0, 0x05, 0x40, 1, 0])
    )
    assert Thrift(data).struct() == {1: -2, 2: True, 3: False, 4: b"ab", 5: [1, 2], 6: {1: 7}, 32: -1}
    for cut in range(len(data) - 1):
        with pytest.raises(IndexError):
            Thrift(data[:cut]).struct()
    for bad in (b"\x1c" * 100, b"\x1b\0\0", b"\x15" + b"\xff" * 11 + b"\0", b"\x1d\0"):
        with pytest.raises(ValueError):  # noqa: PT011
            Thrift(bad).struct()


def sound(**options: Any) -> bytes:
    table = pa.table(
        {
            "image": pictures(*(f"{number}.png" for number in range(30))),
            "labels": [[number % 2, 1] for number in range(30)],
            "split": ["train"] * 30,
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"labels": [CATS]}}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


SOUND = [sound(), sound(compression="zstd", row_group_size=10), sound(use_dictionary=False, data_page_version="2.0")]


@settings(max_examples=60, deadline=None)
@given(
    good=st.sampled_from(SOUND),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3),
    removed=st.sampled_from([0, 0, 0, 1, 30]),
)
def test_hostile_files_give_rows_or_a_dataset_error(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, edits: list[tuple[float, int]], removed: int
) -> None:
    data = bytearray(good)
    for place, flip in edits:
        data[int(place * len(data))] ^= flip
    at = int(edits[0][0] * len(data))
    path = tmp_path_factory.mktemp("hostile") / "x"
    path.write_bytes(data[:at] + data[at + removed :])
    try:
        rows = list(images(path))
    except DatasetError as error:
        assert error.code in CODES  # noqa: PT017
        json.dumps(error.report).encode()
    else:
        assert len({name for name, *_ in rows}) == len(rows) <= 30


def test_wrong_bytes_in_a_footer_never_end_the_process(tmp_path: Path) -> None:
    good = sound(row_group_size=30)
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for place in range(footer, len(good), 5):
        data = bytearray(good)
        data[place] ^= 2
        path = tmp_path / "x"
        path.write_bytes(data)
        try:
            list(images(path))
        except DatasetError as error:
            assert error.code in CODES  # noqa: PT017
