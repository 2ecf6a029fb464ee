"""Versions that are made from another one: what is added, relabelled and removed, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpt_core.dataset import MULTI_LABEL, UNLABELLED, PackedDataset
from bpt_core.items import IndexedItem, Items
from bpt_core.packing import Changes, Packed, PackSettings
from bpt_core.pictures import Split
from tests.core.packs import found, packed, picture, pictures, refused


def indexed(result: Packed) -> dict[str, IndexedItem]:
    return {item.path: item for item in Items.read(result.items)}


def test_a_version_without_changes_has_the_same_bytes(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=20))
    two = packed(tmp_path / "two", None, base=one)
    for name in ("items", "thumbnails"):
        assert getattr(one, name).read_bytes() == getattr(two, name).read_bytes()
    assert [shard.read_bytes() for shard in one.shards] == [shard.read_bytes() for shard in two.shards]
    assert two.report["changes"] == {"added": 0, "relabelled": 0, "removed": 0}


def test_added_pictures_move_nobody(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=30))
    more = pictures("cat", "cow", each=30, seed=500)
    two = packed(tmp_path / "two", more, base=one)
    before, after = indexed(one), indexed(two)
    assert two.class_names == ("cat", "cow", "dog")
    assert set(after) == {*before, *(name for name in more)}
    # cat/0.png was sent twice with other pixels: the path alone is no identity.
    for item in Items.read(one.items):
        again = Items.read(two.items).get(item.id)
        assert again is not None
        assert (again.split, again.labels, again.digest) == (item.split, item.labels, item.digest)
    assert two.report["changes"] == {"added": 60, "relabelled": 0, "removed": 0}
    assert all(two.report["counts"][name]["val"] for name in two.class_names)


def test_what_is_there_already_is_not_added_again(tmp_path: Path) -> None:
    sent = pictures("cat", "dog", each=10)
    one = packed(tmp_path / "one", sent)
    again = {f"copy/{name}": data for name, data in sent.items()}
    two = packed(tmp_path / "two", {**again, "cat/new.png": picture(77)}, base=one)
    assert len(PackedDataset(two.shards)) == 21
    assert found(two.report)["already_there"]["items"]["total"] == 20
    assert two.report["changes"]["added"] == 1


def test_pixels_that_are_there_stay_in_their_split_under_another_label_too(tmp_path: Path) -> None:
    sent = pictures("cat", "dog", each=40)
    one = packed(tmp_path / "one", sent)
    late = [item for item in Items.read(one.items) if item.split is not Split.TRAIN and item.labels == ("cat",)]
    assert late
    two = packed(
        tmp_path / "two",
        {f"cow/{at}.png": sent[item.path] for at, item in enumerate(late)}
        | {f"cow/x{n}.png": picture(800 + n) for n in range(5)},
        base=one,
    )
    for at, item in enumerate(late):
        assert indexed(two)[f"cow/{at}.png"].split is item.split


def test_given_splits_of_what_is_added_do_not_leak_into_what_was_there(tmp_path: Path) -> None:
    sent = pictures("train/cat", "train/dog", "test/cat", "test/dog", each=6)
    one = packed(tmp_path / "one", sent)
    leak = {"train/cat/leak.png": sent["test/dog/0.png"], "train/cat/fine.png": picture(99)}
    two = packed(tmp_path / "two", leak, base=one)
    assert "train/cat/leak.png" not in indexed(two)
    assert indexed(two)["train/cat/fine.png"].split is Split.TRAIN
    assert found(two.report)["duplicates_across_splits"]["items"]["total"] == 1


def test_relabelling_and_removing_touch_only_what_is_named(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=20))
    before = indexed(one)
    cats = [item for item in before.values() if item.labels == ("cat",) and item.split is Split.TRAIN][:2]
    changes = Changes({cat.id: ["tiger"] for cat in cats}, frozenset({before["dog/5.png"].id}))
    two = packed(tmp_path / "two", None, base=one, changes=changes)
    after = indexed(two)
    assert set(before) - set(after) == {"dog/5.png"}
    assert {path for path in after if after[path].labels != before[path].labels} == {cat.path for cat in cats}
    assert all(after[path].split is before[path].split for path in after)
    assert two.report["changes"] == {"added": 0, "relabelled": 2, "removed": 1}
    assert two.class_names == ("cat", "dog", "tiger")


def test_a_class_that_loses_its_last_picture_is_gone(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "cow", "dog", each=4))
    gone = frozenset(item.id for item in Items.read(one.items) if item.labels == ("cow",))
    assert packed(tmp_path / "two", None, base=one, changes=Changes(remove=gone)).class_names == ("cat", "dog")


def test_a_change_that_leaves_too_little_is_refused(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=4))
    cats = [item for item in Items.read(one.items) if item.labels == ("cat",)]
    late = frozenset(item.id for item in cats[1:])
    assert refused(tmp_path / "two", None, base=one, changes=Changes(remove=late)).code == "class_too_small"
    everything = Changes({item.id: ["dog"] for item in cats})
    assert refused(tmp_path / "three", None, base=one, changes=everything).code == "too_few_classes"


def test_items_that_are_not_there_are_all_named(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=4))
    error = refused(tmp_path / "two", None, base=one, changes=Changes({"itm_1": ["a"]}, frozenset({"itm_2"})))
    assert error.code == "item_unknown"
    assert [item["entry"] for item in error.report["rejected"]["items"]] == ["itm_1", "itm_2"]


def test_a_name_that_is_known_wins_over_a_new_spelling(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=4))
    assert packed(tmp_path / "two", pictures("CAT", each=4, seed=50), base=one).class_names == ("cat", "dog")


def test_the_task_stays(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", pictures("a", each=4), PackSettings(task=UNLABELLED))
    two = packed(tmp_path / "two", pictures("b", each=4, seed=9), base=one)
    assert (two.task, two.report["splits"]["test"], two.class_names) == (UNLABELLED, 8, ())
    three = packed(tmp_path / "three", pictures("cat", "dog", each=6), PackSettings(task=MULTI_LABEL))
    first = next(iter(Items.read(three.items)))
    both = packed(tmp_path / "four", None, base=three, changes=Changes({first.id: ["dog", "cat"]}))
    assert Items.read(both.items).get(first.id).labels == ("cat", "dog")  # type: ignore[union-attr]
    single = packed(tmp_path / "five", pictures("cat", "dog", each=6))
    first = next(iter(Items.read(single.items)))
    error = refused(tmp_path / "six", None, base=single, changes=Changes({first.id: ["dog", "cat"]}))
    assert error.code == "several_labels"


@pytest.mark.parametrize("bad", [b"<html>", b"GIF89a"])
def test_bad_images_count_among_what_is_added_alone(tmp_path: Path, bad: bytes) -> None:
    one = packed(tmp_path / "one", pictures("cat", "dog", each=50))
    error = refused(tmp_path / "two", {**pictures("cat", each=4, seed=70), "cat/bad.png": bad}, base=one)
    assert error.code == "too_many_bad_images"
