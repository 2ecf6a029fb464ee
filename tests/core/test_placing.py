from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpt_core.annotations import Columns
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL, PackedDataset
from bpt_core.items import Items
from bpt_core.packing import Packed, PackSettings
from bpt_core.pictures import Split
from tests.core.packs import findings, found, packed, picture, pictures, placed, refused


def files(count: int, folder: str = "images") -> dict[str, bytes]:
    return {f"{folder}/{number}.png": picture(number) for number in range(count)}


def table(*rows: str) -> bytes:
    return "\n".join(rows).encode()


def labels(result: Packed) -> dict[str, tuple[str, ...]]:
    return {item.path: item.labels for item in Items.read(result.items)}


def test_a_table_of_labels_stands_above_the_folders(tmp_path: Path) -> None:
    rows = [f"images/{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(8)]
    result = packed(tmp_path, {**files(8), "labels.csv": table("file_name,label", *rows)})
    assert result.class_names == ("cat", "dog")
    assert labels(result) == {f"images/{n}.png": ("cat" if n % 2 else "dog",) for n in range(8)}
    assert result.task == PackedDataset(result.shards).task == SINGLE_LABEL


def test_hugging_face_metadata_lies_in_each_split_folder(tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    for split, start in (("train", 0), ("test", 8)):
        names = [f"{number}.png" for number in range(start, start + 8)]
        sent |= {f"set/{split}/{name}": picture(start + at) for at, name in enumerate(names)}
        rows = [json.dumps({"file_name": name, "label": "ab"[at % 2]}) for at, name in enumerate(names)]
        sent[f"set/{split}/metadata.jsonl"] = table(*rows)
    result = packed(tmp_path, sent)
    counts = result.report["counts"]
    assert {name: count["test"] for name, count in counts.items()} == {"a": 4, "b": 4}
    assert all(count["val"] >= 1 for count in counts.values())


def test_images_without_a_row_are_left_out_and_rows_without_an_image_are_told(tmp_path: Path) -> None:
    rows = [f"{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(9)]
    sent = {**files(8), "images/stray.png": picture(50), "labels.csv": table("file,label", *rows)}
    report = packed(tmp_path, sent).report
    assert [item["entry"] for item in found(report)["images_left_out"]["items"]["items"]] == ["images/stray.png"]
    assert [item["entry"] for item in found(report)["files_missing"]["items"]["items"]] == ["8.png"]


def test_lists_of_labels_make_a_multi_label_dataset(tmp_path: Path) -> None:
    rows = [json.dumps({"file_name": f"images/{n}.png", "labels": [["a"], ["a", "b"], []][n % 3]}) for n in range(12)]
    result = packed(tmp_path, {**files(12), "metadata.jsonl": table(*rows)})
    assert result.task == PackedDataset(result.shards).task == MULTI_LABEL
    assert labels(result) == {f"images/{n}.png": [("a",), ("a", "b"), ()][n % 3] for n in range(12)}
    assert sum(result.report["splits"].values()) == 12


def test_a_repeated_file_has_all_its_labels(tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{label}" for n in range(10) for label in ("ab", "a")[n % 2]]
    result = packed(tmp_path, {**files(10), "labels.csv": table("file_name,label", *rows)})
    assert (result.task, labels(result)["images/0.png"]) == (MULTI_LABEL, ("a", "b"))


def test_several_labels_are_refused_where_one_was_announced(tmp_path: Path) -> None:
    rows = [json.dumps({"file_name": f"images/{n}.png", "labels": ["a", "b"]}) for n in range(10)]
    error = refused(tmp_path, {**files(10), "metadata.jsonl": table(*rows)}, PackSettings(task=SINGLE_LABEL))
    assert error.code == "several_labels"


def test_for_a_multi_label_task_equal_pixels_in_two_folders_are_one_picture_with_both(tmp_path: Path) -> None:
    sent = {**pictures("cat", "dog", each=6), "dog/again.png": picture(0)}
    result = packed(tmp_path, sent, PackSettings(task=MULTI_LABEL))
    assert labels(result)["cat/0.png"] == ("cat", "dog")
    assert "dog/again.png" not in labels(result)


def test_a_group_lies_in_one_split(tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{'ab'[n % 2]},patient {n // 4}" for n in range(120)]
    result = packed(tmp_path, {**files(120), "labels.csv": table("file_name,label,group", *rows)})
    splits: dict[str, set[Split]] = {}
    for item in Items.read(result.items):
        assert item.group is not None
        splits.setdefault(item.group, set()).add(item.split)
    assert all(len(of_group) == 1 for of_group in splits.values())
    assert {split for of_group in splits.values() for split in of_group} == set(Split)


def test_a_group_column_may_have_another_name(tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{'ab'[n % 2]},{n // 4}" for n in range(40)]
    columns = Columns(group="patient")
    sent = {**files(40), "labels.csv": table("file_name,label,patient", *rows)}
    result = packed(tmp_path, sent, PackSettings(columns=columns))
    assert {item.group for item in Items.read(result.items)} == {str(n) for n in range(10)}


def test_groups_that_straddle_given_splits_are_told_and_left(tmp_path: Path) -> None:
    rows = [f"images/{n}.png,{'ab'[n % 2]},{('train', 'val')[n // 10]},g{n % 10}" for n in range(20)]
    result = packed(tmp_path, {**files(20), "labels.csv": table("file_name,label,split,group", *rows)})
    assert found(result.report)["groups_across_splits"]["items"]["total"] == 10
    assert result.report["splits"] == {"train": 10, "val": 10, "test": 0}


def test_a_bad_table_names_its_line_and_leaves_nothing(tmp_path: Path) -> None:
    sent = {**pictures("cat", "dog"), "labels.csv": table("file_name,label", "cat/0.png,cat", "cat/1.png")}
    error = refused(tmp_path, sent)
    assert error.code == "annotations_invalid"
    assert error.report["rejected"]["items"][0]["entry"] == "labels.csv"
    assert "3" in str(error)


def test_a_table_without_labels_leaves_the_folders_in_charge(tmp_path: Path) -> None:
    sent = pictures("cat", "dog", each=10)
    rows = [f"{name},{('train', 'val', 'test')[at % 3]}" for at, name in enumerate(sent)]
    result = packed(tmp_path, {**sent, "metadata.csv": table("file_name,split", *rows)})
    assert placed(result) == {
        name: (name.split("/")[0], ("train", "val", "test")[at % 3]) for at, name in enumerate(sent)
    }


@pytest.mark.parametrize(("one", "other"), [("Cat", "cat"), ("cat", "cat "), ("Bär", "ba\u0308r")])
def test_names_that_differ_by_case_space_around_or_normal_form_are_one_class_and_told(
    tmp_path: Path, one: str, other: str
) -> None:
    result = packed(tmp_path, pictures(f"train/{one}", "train/dog", f"val/{other}", "val/dog"))
    assert len(result.class_names) == 2
    assert sorted(found(result.report)["merged_class_names"]["items"]["items"][0]["names"]) == sorted({one, other})
    assert "merged_class_names" not in findings(packed(tmp_path / "x", pictures("cat", "dog")).report)
