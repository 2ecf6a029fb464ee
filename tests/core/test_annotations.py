from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core.annotations import SPLIT_NAMES, Annotations, Columns, is_table
from bpt_core.cells import labels_of, split_of, text_of
from bpt_core.errors import DatasetError
from bpt_core.pictures import Annotation, Split


def labels(said: dict[str, Annotation]) -> dict[str, tuple[str, ...] | None]:
    return {path: annotation.labels for path, annotation in said.items()}


def said_by(text: str | bytes, *paths: str, name: str = "labels.csv", **settings: object) -> dict[str, Annotation]:
    tables = Annotations(**settings)  # type: ignore[arg-type]
    tables.read(name, text.encode() if isinstance(text, str) else text)
    return tables.match(paths)


def fault(text: str | bytes, name: str = "labels.csv", **settings: object) -> str:
    """The only thing that is wrong with this table, in words."""
    with pytest.raises(DatasetError) as caught:
        said_by(text, "a", name=name, **settings)
    assert caught.value.code == "annotations_invalid"
    [item] = caught.value.report["rejected"]["items"]
    assert item["code"] == "annotations_invalid"
    json.dumps(item).encode()
    return f"{item['entry']}: {item['detail']}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("metadata.csv", "a/b/Metadata.JSONL", "x/LABELS.csv", "labels.jsonl")),
        *((name, False) for name in ("labels.txt", "my-labels.csv", "labels.csv/1.jpg", "metadata.json", "labels")),
    ],
)
def test_tables_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_table(name) is expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_is_read_with_any_delimiter_and_line_end(delimiter: str, start: str, end: str) -> None:
    rows = [
        ["id", "File_Name", "CLASS", "Subset"],
        ["1", "a", '" cat, ""big"""', "Training"],
        ["2", "b", "dog;", "DEV"],
    ]
    rows[1][2] = '" cat, ""big"""'
    rows[2][2] = '"dog;"'
    text = start + end.join([delimiter.join(row) for row in rows] + ["", ""])
    assert said_by(text, "a", "b") == {
        "a": Annotation(('cat, "big"',), Split.TRAIN),
        "b": Annotation(("dog;",), Split.VAL),
    }


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    assert labels(said_by("\ufefffile,label\na,cat\n", "a")) == {"a": ("cat",)}
    assert labels(said_by('\ufeff{"file": "a", "label": "cat"}', "a", name="labels.jsonl")) == {"a": ("cat",)}


def test_json_lines_hold_text_numbers_and_lists() -> None:
    rows = [
        {"file_name": "a", "label": " cat "},
        {"file_name": "b", "label": 3},
        {"file_name": "c", "label": ["y", "x", "y"], "group": 7},
        {"file_name": "d", "label": []},
        {"file_name": "e", "label": None, "split": "test"},
        {"FILE_NAME": 6, "Label": True},
    ]
    tables = Annotations()
    tables.read("metadata.jsonl", "\n\n".join(json.dumps(row) for row in rows).encode())
    assert tables.match("abcde6") == {
        "a": Annotation(("cat",)),
        "b": Annotation(("3",)),
        "c": Annotation(("x", "y"), group="7"),
        "d": Annotation(()),
        "e": Annotation(split=Split.TEST),
        "6": Annotation(("true",)),
    }
    assert tables.has_labels
    assert tables.several_seen


@pytest.mark.parametrize("name", ["file_name", "filename", "file", "path", "image", "image_path", "image_name", "img"])
@pytest.mark.parametrize(
    "label", ["label", "labels", "class", "class_name", "category", "categories", "target", "tags"]
)
def test_usual_columns_are_found(name: str, label: str) -> None:
    assert labels(said_by(f"x,{name.upper()},{label.title()}\n1,a,cat\n", "a")) == {"a": ("cat",)}


def test_the_first_of_the_usual_columns_counts_unless_another_is_given() -> None:
    text = "class,label,path,file_name,group_id,place\nc,l,b,a,g,p\n"
    assert said_by(text, "a", "b") == {"a": Annotation(("l",), group="g")}
    columns = Columns(file=" PATH", label="Class", group="place")
    assert said_by(text, "a", "b", columns=columns) == {"b": Annotation(("c",), group="p")}


def test_columns_that_are_asked_for_must_be_there() -> None:
    text = "file,label\na,b\n"
    assert fault(text, columns=Columns(file="name")) == "labels.csv: line 1: no column names the file"
    assert fault(text, columns=Columns(label="species")) == "labels.csv: no table has a column species"
    tables = Annotations(Columns(split="fold"))
    tables.read("labels.csv", text.encode())
    tables.read("metadata.csv", b"file,fold\na,test\n")
    assert tables.match(["a"]) == {"a": Annotation(("b",), Split.TEST)}


def test_without_tables_nothing_is_said_and_nothing_is_asked_for() -> None:
    tables = Annotations(Columns(label="species"))
    assert tables.match(["a"]) == {}
    assert not tables.has_labels
    assert not tables.several_seen


def test_a_table_without_labels_has_none() -> None:
    tables = Annotations()
    tables.read("metadata.csv", b"file,split\na,train\n")
    assert tables.match(["a"]) == {"a": Annotation(None, Split.TRAIN)}
    assert not tables.has_labels


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["b", "a"]', ("a", "b")),
        ("['b', 'a']", ("a", "b")),
        ("[ 'it\\'s' , \"x\", ]", ("it's", "x")),
        ("['caf\\xe9', '\\u00e4', '\\U0001f600', 'back\\\\slash']", ("back\\slash", "café", "ä", "😀")),
        ("[1, 2.5, -3]", ("-3", "1", "2.5")),
        ("[1, 'x']", ("1", "x")),
        ("[]", ()),
        ('["", null]', None),
        ("[-1]", None),
        ("[-1, 4]", ("4",)),
        ("no list]", ("no list]",)),
    ],
)
def test_lists_in_cells_are_json_or_python(cell: str, expected: tuple[str, ...] | None) -> None:
    assert labels_of(cell, several=False) == (expected, cell[0] == "[")


@pytest.mark.parametrize(
    "cell",
    [
        *("[cat]", "['a' 'b']", "['a'; 'b']", "['\\n']", "[['a']]", '[{"a": 1}]', "[" * 50_000 + "]" * 50_000),
        *("['\\x1']", "['\\ud800']", "[" + "1," * 10_001 + "]", "[--1]", "['\\U99999999']"),
    ],
)
def test_what_only_looks_like_a_list_is_refused(cell: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        labels_of(cell, several=False)


def test_text_is_split_only_if_several_labels_are_meant() -> None:
    assert labels_of("b| a;c,", several=True)[0] == ("a", "b", "c")
    assert labels_of("b| a;c,", several=False)[0] == ("b| a;c,",)
    assert labels_of(5, several=True)[0] == ("5",)
    assert labels_of("x" * 150 + "|" + "y" * 150, several=True)[0] == ("x" * 150, "y" * 150)


def test_an_empty_cell_says_none_of_them_only_among_lists() -> None:
    single = "file,label\na,cat\nb,\nc, \n"
    assert labels(said_by(single, *"abc")) == {"a": ("cat",), "b": None, "c": None}
    assert labels(said_by(single, *"abc", several=True)) == {"a": ("cat",), "b": (), "c": ()}
    lists = "file,label\na,\nb,\"['cat']\"\n"
    assert labels(said_by(lists, *"ab")) == {"a": (), "b": ("cat",)}


@pytest.mark.parametrize(
    ("text", "several", "seen"),
    [
        ("file,label\na,cat\nb,dog\nc,\n", False, False),
        ("file,label\na,cat\na,cat\n", False, False),
        ("file,label\na,cat\na,dog\n", False, True),
        ("file,label\na,['cat']\n", False, False),
        ("file,label\na,[]\n", False, True),
        ("file,label\na,\"['cat', 'dog']\"\n", False, True),
        ("file,label\na,cat|dog\n", True, True),
        ("file,label\na,cat\n", True, False),
    ],
)
def test_several_labels_are_noticed(text: str, several: bool, seen: bool) -> None:
    tables = Annotations(several=several)
    tables.read("labels.csv", text.encode())
    tables.match(["a", "b"])
    assert tables.several_seen is seen


def test_a_list_is_noticed_even_if_its_image_is_missing() -> None:
    tables = Annotations()
    tables.read("labels.csv", b"file,label\na,[]\n")
    assert tables.several_seen


def test_what_rows_and_tables_say_is_united() -> None:
    tables = Annotations()
    tables.read("labels.csv", b"file,label,split\na,dog,\na,cat,test\nb,cow,\n")
    tables.read("metadata.jsonl", b'{"file": "./a", "label": "ant", "group": "g"}')
    assert tables.match(["a", "b"]) == {
        "a": Annotation(("ant", "cat", "dog"), Split.TEST, "g"),
        "b": Annotation(("cow",)),
    }


@pytest.mark.parametrize(("column", "kind"), [("split", "splits"), ("group", "groups")])
def test_two_splits_or_groups_of_one_file_are_refused(column: str, kind: str) -> None:
    assert fault(f"file,{column}\na,train\na,test\n").startswith(f"a: it is said to be in two {kind}, t")
    assert said_by(f"file,{column}\na,train\na,train\na,\n", "a")
    tables = Annotations()
    tables.read("x/labels.csv", f"file,{column}\na,train\nb,train\n".encode())
    tables.read("labels.csv", f"file,{column}\nx/a,test\nx/b,test\n".encode())
    with pytest.raises(DatasetError, match="1 more at fault"):
        tables.match(["x/a", "x/b"])


def test_split_names_are_those_of_folders() -> None:
    assert {name: split_of(name.upper()) for name in SPLIT_NAMES} == SPLIT_NAMES
    assert set(SPLIT_NAMES) == {*("train", "training", "val", "valid", "validation", "dev", "test", "testing")}
    assert split_of("  ") is split_of(None) is None
    with pytest.raises(ValueError, match="no split"):
        split_of("trains")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a", "line 3: 1 cells where the first line has 4"),
        ("a,b,,,", "line 3: 5 cells where the first line has 4"),
        (",cat,,", "line 3: no file is named"),
        ("a,c\x07t,,", "line 3: control or direction characters in a cell"),
        ("a,\u202ecat,,", "line 3: control or direction characters in a cell"),
        (f"a,{'x' * 201},,", "line 3: a label or group is over 200 characters long"),
        (f"a,cat,,{'x' * 201}", "line 3: a label or group is over 200 characters long"),
        ("a,cat,trian,", 'line 3: "trian" is no split: train, val or test'),
        ("a,[cat],,", "line 3: a label in brackets that is no list"),
        ("a\x0bb,cat,,", "line 3: the file's name is too long, or holds control or direction characters"),
        (f"{'a' * 4_097},cat,,", "line 3: the file's name is too long, or holds control or direction characters"),
        ('a,"cat,,', "line 5: unexpected end of data"),
        ('a,"c"t,,', "line 3: ',' expected after '\"'"),
        (f"a,{'x' * 131_073},,", "line 3: field larger than field limit (131072)"),
        ("a,\0,,", "line 3: a byte is 0: this is no text, or not in UTF-8"),
    ],
)
def test_bad_rows_are_named_with_table_and_line(row: str, expected: str) -> None:
    text = f"file,label,split,group\nb,dog,train,g\n{row}\n"
    if "unexpected end" in expected:
        text += "c,cow,,\nd,cow,,"
    assert fault(text, name="x/labels.csv") == f"x/labels.csv: {expected}"


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", "7", "[" * 100_000, '{"file": "a", "label": ' + "[" * 100_000, '{"file": "a", "label": NaN}'),
        *('{"file": "a", "label": ' + "9" * 10_000 + "}", '{"file": "a", "label": {}}', '{"file": "a", "label": [[]]}'),
        *('{"file": "a", "label": "\\ud800"}', '{"file": "\\udfff"}', '{"file": ["a"]}', '{"label": "a"}'),
        *('{"file": ""}', '{"file": "a", "File": "b"}', '{"file": "a", "split": 3}', '{"file": "a", "group": ["g"]}'),
    ],
)
def test_bad_json_lines_are_named(line: str) -> None:
    assert fault(f'{{"file": "b"}}\n{line}\n{{"file": "c"}}', name="labels.jsonl").startswith("labels.jsonl: line 2: ")


def test_all_bad_lines_are_named() -> None:
    tables = Annotations()
    with pytest.raises(DatasetError, match="line 2: 1 cells where the first line has 2, and 2 more") as caught:
        tables.read("labels.csv", b'file,label\na\nb,c\n"multi\nline",x,y\n,\n')
    details = [item["detail"] for item in caught.value.report["rejected"]["items"]]
    assert [detail[:7] for detail in details] == ["line 2:", "line 4:", "line 6:"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "line 0: no column names the file"),
        (b"name,label\na,b\n", "line 1: no column names the file"),
        (b'file,"label\na,b\n', "line 1: unexpected end of data"),
        (b"file,label,Label\na,b,c\n", "line 1: the column label is there twice"),
        (b"file,label\na,caf\xe9\n", "line 2: the text is not in UTF-8"),
        ("file,label\na,b\n".encode("utf-16"), "line 1: a byte is 0: this is no text, or not in UTF-8"),
        (b"file,label\na," + b'"x\n' * 600_000, "line "),
    ],
)
def test_what_is_no_table_is_refused(data: bytes, expected: str) -> None:
    assert fault(data).startswith(f"labels.csv: {expected}")


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpt_core.annotations.ROW_BYTES", 100)
    assert "a row is over 100 bytes" in fault(b"file,label\na," + b"x" * 100)
    assert "a row is over 100 bytes" in fault(b'file,label\na,"' + b"x\n" * 60)
    assert "a row is over 100 bytes" in fault(b'{"file": "' + b"x" * 100, name="labels.jsonl")
    assert said_by(b"file,label\n" + b"a,b\n" * 60, "a")
    assert said_by(b'{"file": "a"}\n' * 60, "a", name="labels.jsonl")
    monkeypatch.setattr("bpt_core.annotations.ROWS", 5)
    assert "over 5 rows" in fault(b"file,label\n" + b"a,b\n" * 6)
    monkeypatch.setattr("bpt_core.annotations.LINES", 4)
    assert "over 4 lines" in fault(b"file,label\n\n\n\n\n")
    monkeypatch.setattr("bpt_core.annotations.LINES", 40)
    monkeypatch.setattr("bpt_core.annotations.CLASSES", 3)
    assert "over 3 different labels" in fault(b"file,label\na,1\na,2\na,3\na,4\na,5\n")
    monkeypatch.setattr("bpt_core.annotations.TABLE_BYTES", 30)
    assert "over 30 bytes" in fault(b"file,label\n" + b"a,b\n" * 5)
    monkeypatch.setattr("bpt_core.annotations.TABLES_BYTES", 40)
    tables = Annotations()
    tables.read("labels.csv", b"file,label\na,b\n" + b"\n" * 10)
    with pytest.raises(DatasetError, match="all tables together over 40"):
        tables.read("labels.csv", b"file,label\na,b\n" + b"\n" * 10)


def test_text_in_cells_is_one_form_of_the_same() -> None:
    assert text_of("  cafe\u0301 ") == "café"
    assert text_of(float("nan")) == text_of(None) == text_of("\u3000") == ""
    with pytest.raises(ValueError, match="neither text nor a number"):
        text_of(b"cat")


@pytest.mark.parametrize(
    ("table", "reference", "path"),
    [
        ("labels.csv", "a/1.jpg", "a/1.jpg"),
        ("labels.csv", "./a//1.jpg", "a/1.jpg"),
        ("labels.csv", "/a/1.jpg", "a/1.jpg"),
        ("labels.csv", "a\\1.jpg", "a/1.jpg"),
        ("labels.csv", "A/1.JPG", "a/1.jpg"),
        ("labels.csv", "e\u0301.jpg", "é.jpg"),
        ("set/labels.csv", "1.jpg", "set/1.jpg"),
        ("set/labels.csv", "set/1.jpg", "set/1.jpg"),
        ("set/meta/labels.csv", "../img/1.jpg", "set/img/1.jpg"),
        ("set/meta/labels.csv", "img/1.jpg", "set/img/1.jpg"),
        ("labels.csv", "img/1.jpg", "wrap/set/img/1.jpg"),
        ("meta/labels.csv", "1.jpg", "set/img/1.jpg"),
        ("labels.csv", "C:\\data\\cat\\1.jpg", "cat/1.jpg"),
        ("labels.csv", "https://example.org/x/cat/1.jpg", "set/cat/1.jpg"),
        ("labels.csv", "1", "img/1.jpg"),
        ("labels.csv", "id.1", "img/id.1.png"),
    ],
)
def test_references_find_their_images(table: str, reference: str, path: str) -> None:
    row = json.dumps({"file": reference, "label": "x"})
    assert labels(said_by(row, path, "other/2.jpg", name=table.replace("csv", "jsonl"))) == {path: ("x",)}


@pytest.mark.parametrize(
    "reference", ["2.jpg", "1", "1.jp", "..", ".", "jpg", "1.jpg/", "1.jpg/x", "../../../y.jpg", "1.png", "/"]
)
def test_references_to_nothing_are_listed(reference: str) -> None:
    tables = Annotations()
    tables.read("set/labels.jsonl", json.dumps({"file": reference, "label": "x"}).encode())
    said = tables.match(["img/a1.jpg", "a/x.jpg.png"])
    assert said == {}
    assert tables.missing.items == [{"entry": reference, "table": "set/labels.jsonl", "reason": "no such image"}]


def test_ambiguous_references_match_nothing_and_are_listed() -> None:
    tables = Annotations()
    tables.read("labels.csv", b"file,label\n1.jpg,x\n2,x\nb/3.jpg,x\ncat/1.jpg,y\n")
    said = tables.match(["a/cat/1.jpg", "b/dog/1.jpg", "2.png", "a/2.jpg", "b/3.jpg", "a/b/3.jpg"])
    assert labels(said) == {"b/3.jpg": ("x",), "a/cat/1.jpg": ("y",)}
    assert tables.missing.total == 2
    assert [(item["entry"], item["reason"]) for item in tables.missing.items] == [
        ("1.jpg", "several images could be meant"),
        ("2", "several images could be meant"),
    ]


@pytest.mark.parametrize(
    ("table", "reference", "paths", "meant"),
    [
        ("set/meta/labels.csv", "../img/1.jpg", ["set/img/1.jpg", "other/img/1.jpg"], "set/img/1.jpg"),
        ("a/b/labels.csv", "img/1.jpg", ["c/img/1.jpg", "a/img/1.jpg"], "a/img/1.jpg"),
        ("a/b/labels.csv", "1.jpg", ["1.jpg", "a/1.jpg", "a/b/1.jpg"], "a/b/1.jpg"),
        ("a/b/labels.csv", "1.jpg", ["1.jpg", "a/1.jpg", "a/c/1.jpg"], "a/1.jpg"),
        ("labels.csv", "../1.jpg", ["1.jpg", "a/1.jpg"], None),
        ("labels.csv", "x/cat/1.jpg", ["s/cat/1.jpg", "s/dog/1.jpg"], "s/cat/1.jpg"),
    ],
)
def test_the_nearest_image_is_meant(table: str, reference: str, paths: list[str], meant: str | None) -> None:
    assert list(said_by(f"file\n{reference}\n", *paths, name=table)) == ([] if meant is None else [meant])


def test_where_a_table_knows_its_files_others_are_not_mistaken_for_them() -> None:
    tables = Annotations()
    tables.read("val/metadata.csv", b"file_name,label\n1.jpg,x\n2.jpg,x\n3.jpg,x\n")
    assert labels(tables.match(["val/1.jpg", "val/2.jpg", "train/3.jpg"])) == {"val/1.jpg": ("x",), "val/2.jpg": ("x",)}
    assert [item["entry"] for item in tables.missing.items] == ["3.jpg"]


def test_two_references_of_a_table_are_not_one_image() -> None:
    tables = Annotations()
    tables.read("labels.csv", b"file,label\ntrain/1.jpg,x\nval/1.jpg,y\n2.jpg,z\nold/2.jpg,z\n")
    assert labels(tables.match(["set/1.jpg", "2.jpg"])) == {"2.jpg": ("z",)}
    assert [item["entry"] for item in tables.missing.items] == ["train/1.jpg", "val/1.jpg", "old/2.jpg"]


def test_matching_again_counts_again() -> None:
    tables = Annotations()
    tables.read("labels.csv", b"file\n1.jpg\n")
    tables.match([])
    tables.match([])
    assert tables.missing.total == 1


def test_many_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = [f"{number}/image.jpg" for number in range(2_000)]
    tables = Annotations()
    tables.read("labels.csv", "\n".join(["file,label", *(f"x/{path},y" for path in paths), "image.jpg,z"]).encode())
    assert len(tables.match(paths)) == 2_000
    assert tables.missing.total == 1


def test_equal_rows_cost_little_memory() -> None:
    data = "\n".join(["file,label,split", *(f"{number},cat,train" for number in range(5_000))]).encode()
    tables = Annotations()
    tables.read("labels.csv", data[:29])
    tracemalloc.start()
    try:
        tables.read("labels.csv", data)
        assert tracemalloc.get_traced_memory()[1] < 200 * 5_000
    finally:
        tracemalloc.stop()


PIECES = st.sampled_from(
    [
        *("file", "label", "split", ",", ",", "\n", "\n", "a", '"', "[", "]", "'", "{", "}", ":", '"file"', "\\"),
        *("train", "\r", "é", "\u202e", "\0", " ", "1", "-1", "|", "null", "\\ud800"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    text=st.one_of(st.lists(PIECES, max_size=40).map("".join).map(str.encode), st.binary(max_size=60)),
    start=st.sampled_from([b"", b"file,label,split\n", b'{"file": "a", "label": ']),
    name=st.sampled_from(["labels.csv", "x/metadata.jsonl"]),
    several=st.booleans(),
)
def test_hostile_tables_give_annotations_or_a_dataset_error(
    text: bytes, start: bytes, name: str, several: bool
) -> None:
    tables = Annotations(several=several)
    try:
        tables.read(name, start + text)
        said = tables.match(["a", "x/a"])
    except DatasetError as error:
        assert error.code == "annotations_invalid"  # noqa: PT017
        assert error.report["rejected"]["total"] >= 1  # noqa: PT017
        assert "\\u0000" not in json.dumps(error.report).replace("\\\\", "")  # noqa: PT017
    else:
        assert said.keys() <= {"a", "x/a"}
        json.dumps([tables.missing.items, [each.labels for each in said.values()]], ensure_ascii=False).encode()
