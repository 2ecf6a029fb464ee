from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core import images
from bpt_core.archive import ArchiveLimits
from bpt_core.dataset import UNLABELLED, Item, PackedDataset, ShardWriter
from bpt_core.errors import DatasetError
from bpt_core.packing import PackSettings, pack
from bpt_core.pictures import Split
from tests.core.packs import findings, found, packed, picture, pictures, placed, refused


def test_a_packed_dataset_holds_what_was_put_in(tmp_path: Path) -> None:
    files = pictures("set/cat", "set/dog", each=20)
    result = packed(tmp_path, files)
    dataset = PackedDataset(result.shards)
    assert (dataset.class_names, dataset.task, len(dataset)) == (("cat", "dog"), "single-label", 40)
    for item in dataset.items():
        stored, given_ = images.decode(item.image), images.canonical(files[item.path])
        assert stored.tobytes() == given_.tobytes()
        assert dataset.class_names[item.labels[0]] == item.path.split("/")[1]
    counts = {name: dict(zip(map(str, Split), numbers, strict=True)) for name, numbers in by_class(dataset)}
    assert result.report["counts"] == counts


def by_class(dataset: PackedDataset) -> list[tuple[str, tuple[int, ...]]]:
    counts = dataset.counts()
    return list(zip(dataset.class_names, zip(*(counts[split] for split in Split), strict=True), strict=True))


def test_the_report_counts_and_measures(tmp_path: Path) -> None:
    files = {
        **pictures("cat", "dog"),
        "cat/wide.jpg": picture(7, "JPEG", (900, 40)),
        "dog/tall.bmp": picture(8, "BMP", (400, 800)),
        "readme.txt": b"hello",
        "notes.CSV": b"a,b",
        "cat/.DS_Store": b"?",
        "cat/.ipynb_checkpoints/0.png": picture(9),
    }
    report = packed(tmp_path, files).report
    assert report["images"] == {"accepted": 8, "rejected": 0, "packed": 8}
    assert report["formats"] == {"BMP": 1, "JPEG": 1, "PNG": 6}
    assert report["sizes"] == {
        "width": {"min": 12, "median": 12, "max": 900},
        "height": {"min": 9, "median": 9, "max": 800},
    }
    assert report["ignored"] == {
        "total": 4,
        "items": [
            {"entry": "readme.txt", "reason": "metadata"},
            {"entry": "notes.CSV", "reason": "metadata"},
            {"entry": "cat/.DS_Store", "reason": "system file"},
            {"entry": "cat/.ipynb_checkpoints/0.png", "reason": "hidden"},
        ],
    }
    assert report["rejected"] == {"total": 0, "items": []}


def test_equal_content_gives_equal_bytes_in_any_order_and_however_decoded(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog", each=30), "cat/copy.png": picture(3)}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = packed(tmp_path / "one", files, PackSettings())
    two = packed(tmp_path / "two", dict(reversed(files.items())), PackSettings(decoders=2))
    assert [path.read_bytes() for path in one.shards] == [path.read_bytes() for path in two.shards]
    assert one.report == two.report


def test_classes_are_mixed_and_splits_lie_together(tmp_path: Path) -> None:
    result = packed(tmp_path, pictures("cat", "dog", each=50))
    items = list(PackedDataset(result.shards).items())
    assert [item.split for item in items] == sorted((item.split for item in items), key=list(Split).index)
    changes = sum(one.labels != two.labels for one, two in pairwise(items))
    assert changes > 25


def test_shards_stay_near_their_size(tmp_path: Path) -> None:
    result = packed(tmp_path, pictures("cat", "dog", each=300), PackSettings(shard_bytes=40_000))
    assert len(result.shards) > 1
    assert len(placed(result)) == 600


def test_class_names_sort_as_people_count(tmp_path: Path) -> None:
    result = packed(tmp_path, pictures("class 10", "class 9", "Class 1", "ant"))
    assert result.class_names == ("ant", "Class 1", "class 9", "class 10")


@pytest.mark.parametrize("wrapping", ["", "set/", "a/b/c/", "test/"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_decide(tmp_path: Path, wrapping: str, val: str) -> None:
    folders = [f"{wrapping}{split}/{name}" for split in ("Train", val, "TEST") for name in ("cat", "dog")]
    result = packed(tmp_path, pictures(*folders))
    for path, (name, split) in placed(result).items():
        folder = path.removeprefix(wrapping).split("/")
        assert name == folder[1]
        assert split == {"Train": "train", val: "val", "TEST": "test"}[folder[0]]
    assert findings(result.report) == set()


def test_the_class_lies_directly_below_the_split_or_directly_above_the_image(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    below = packed(tmp_path / "one", pictures("train/cat/black", "train/cat/white", "train/dog"))
    assert below.class_names == ("cat", "dog")
    (tmp_path / "two").mkdir()
    above = packed(tmp_path / "two", pictures("animals/cat/black", "animals/cat/white", "animals/dog"))
    assert above.class_names == ("black", "dog", "white")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert packed(tmp_path / "one", pictures("vehicles/train", "vehicles/bus")).class_names == ("bus", "train")
    (tmp_path / "two").mkdir()
    assert packed(tmp_path / "two", pictures("train/train", "train/bus")).class_names == ("bus", "train")


def test_without_split_folders_a_tenth_each_goes_to_val_and_test(tmp_path: Path) -> None:
    counts = packed(tmp_path, pictures("cat", "dog", each=100)).report["counts"]
    for split in ("val", "test"):
        assert 8 <= sum(count[split] for count in counts.values()) <= 35


def test_without_val_folder_val_is_carved_from_train_and_test_stays(tmp_path: Path) -> None:
    files = pictures("train/cat", "train/dog", "test/cat", "test/dog", each=30)
    result = packed(tmp_path, files)
    for path, (_, split) in placed(result).items():
        assert split == "test" if path.startswith("test/") else split in {"train", "val"}
    assert all(1 <= count["val"] <= 12 and count["test"] == 30 for count in result.report["counts"].values())


def test_a_val_split_is_never_called_test(tmp_path: Path) -> None:
    report = packed(tmp_path, pictures("train/cat", "train/dog", "val/cat", "val/dog")).report
    assert all(count == {"train": 3, "val": 3, "test": 0} for count in report["counts"].values())
    assert findings(report) == {"no_test_split"}


@pytest.mark.parametrize("seed", range(5))
def test_two_images_of_a_class_are_one_for_train_and_one_for_val(tmp_path: Path, seed: int) -> None:
    report = packed(tmp_path, pictures("cat", "dog", "cow", each=2, seed=seed)).report
    assert all(count == {"train": 1, "val": 1, "test": 0} for count in report["counts"].values())


def test_a_picture_keeps_its_split_when_others_are_added(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    before = placed(packed(tmp_path / "one", pictures("cat", "dog", each=60)))
    after = placed(packed(tmp_path / "two", pictures("cat", "dog", each=90)))
    assert all(after[path] == place for path, place in before.items())


def test_duplicates_across_splits_stay_in_train_only(tmp_path: Path) -> None:
    files = pictures("train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")
    leaks = {"val/cat/leak.png": files["train/cat/1.png"], "test/dog/leak.png": files["val/dog/0.png"]}
    result = packed(tmp_path, {**files, **leaks})
    assert set(placed(result)) == set(files)
    assert found(result.report)["duplicates_across_splits"]["items"] == {
        "total": 2,
        "items": [
            {"entry": "val/cat/leak.png", "split": "val", "same_as": "train/cat/1.png"},
            {"entry": "test/dog/leak.png", "split": "test", "same_as": "val/dog/0.png"},
        ],
    }
    assert result.report["images"]["packed"] == 18


def test_a_leak_under_another_label_is_told_as_a_conflict(tmp_path: Path) -> None:
    files = pictures("train/cat", "train/dog", "val/cat", "val/dog")
    assert "label_conflict_across_splits" not in findings(packed(tmp_path / "none", files).report)
    report = packed(tmp_path / "one", {**files, "val/dog/cat.png": files["train/cat/1.png"]}).report
    assert found(report)["label_conflict_across_splits"]["items"]["items"] == [
        {"entry": "val/dog/cat.png", "same_as": "train/cat/1.png", "labels": ["cat", "dog"]}
    ]


def test_a_val_folder_that_repeats_train_is_replaced_by_a_carved_one(tmp_path: Path) -> None:
    files = pictures("train/cat", "train/dog", each=10)
    copies = {name.replace("train", "val"): data for name, data in files.items()}
    report = packed(tmp_path, {**files, **copies}).report
    assert found(report)["duplicates_across_splits"]["items"]["total"] == 20
    assert all(count["val"] >= 1 and sum(count.values()) == 10 for count in report["counts"].values())


def test_duplicates_within_split_and_label_are_kept_and_counted(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog"), "cat/copy.png": picture(0)}
    result = packed(tmp_path, files)
    assert set(placed(result)) == set(files)
    duplicates = found(result.report)["exact_duplicates"]["items"]
    assert duplicates["total"] == 1
    assert {"cat/copy.png", "cat/0.png"} <= set(str(duplicates["items"]).replace("'", " ").split())


def test_the_same_pixels_under_two_labels_are_kept_and_reported(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog", each=10), "dog/again.bmp": picture(0, "BMP")}
    result = packed(tmp_path, files)
    where = placed(result)
    assert where["cat/0.png"][1] == where["dog/again.bmp"][1]
    conflicts = found(result.report)["label_conflict"]["items"]
    assert "dog/again.bmp" in str(conflicts)


def test_class_names_that_differ_by_case_or_normal_form_are_one_class(tmp_path: Path) -> None:
    result = packed(tmp_path, pictures("train/Bär", "train/dog", "val/ba\u0308r", "val/Dog"))
    assert result.class_names == ("Bär", "Dog")


def test_a_few_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog", each=20), "cat/bad.png": picture(1)[:60], "dog/bad.jpg": b"<html>"}
    result = packed(tmp_path, files)
    assert len(placed(result)) == 40
    rejected = result.report["rejected"]
    assert rejected["total"] == 2
    codes = [(item["entry"], item["code"]) for item in rejected["items"]]
    assert codes == [("cat/bad.png", "image_corrupt"), ("dog/bad.jpg", "image_unsupported")]
    assert all(item["detail"] for item in rejected["items"])
    assert "bad_images" in findings(result.report)


@pytest.mark.parametrize(("limit", "bad"), [(0.05, 3), (0.0, 1)])
def test_too_many_bad_images_fail_and_all_are_named(tmp_path: Path, limit: float, bad: int) -> None:
    broken = {f"cat/bad{number}.png": b"GIF89a" for number in range(bad)}
    files = {**pictures("cat", "dog", each=20), **broken}
    error = refused(tmp_path, files, PackSettings(bad_image_fraction_limit=limit))
    assert error.code == "too_many_bad_images"
    assert [item["entry"] for item in error.report["rejected"]["items"]] == list(broken)
    assert error.report["images"] == {"accepted": 40, "rejected": bad, "packed": 0}


def test_exactly_five_percent_bad_images_pass(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog", each=19), "cat/bad1.png": b"?", "cat/bad2.png": b"?"}
    assert packed(tmp_path, files).report["images"]["rejected"] == 2


def test_archive_faults_name_the_bad_images_too(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog"), "cat/a.jpg": b"<html>", "cat/b.jpg": b"PK\x03\x04", "cat/c.jpg": b"%PDF"}
    error = refused(tmp_path, files)
    assert error.code == "entry_type_forbidden"
    codes = {item["entry"]: item["code"] for item in error.report["rejected"]["items"]}
    assert codes == {
        "cat/a.jpg": "image_unsupported",
        "cat/b.jpg": "entry_type_forbidden",
        "cat/c.jpg": "image_unsupported",
    }


def test_a_file_too_large_to_hold_is_a_bad_image(tmp_path: Path) -> None:
    files = {**pictures("cat", "dog", each=20), "cat/film.mp4": bytes(20_000)}
    limited = PackSettings(archive=ArchiveLimits(entry_bytes=10_000))
    [item] = packed(tmp_path, files, limited).report["rejected"]["items"]
    assert (item["entry"], item["code"]) == ("cat/film.mp4", "image_too_large")


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"hello"}, {"cat/": b""}])
def test_no_images_are_an_empty_dataset(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert refused(tmp_path, files).code == "dataset_empty"


@pytest.mark.parametrize("folders", [["cat"], ["train/cat", "val/cat"]])
def test_one_class_is_too_few(tmp_path: Path, folders: list[str]) -> None:
    assert refused(tmp_path, pictures(*folders)).code == "too_few_classes"


def test_images_in_no_class_folder_are_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    flat = refused(tmp_path / "one", {"0.png": picture(0), "1.png": picture(1)})
    assert flat.code == "too_few_classes"
    assert findings(flat.report) == {"images_left_out"}
    (tmp_path / "two").mkdir()
    stray = {"test/7.png": picture(7), "extra/cat/8.png": picture(8), "9.png": picture(9)}
    result = packed(tmp_path / "two", {**pictures("train/cat", "train/dog"), **stray})
    assert set(result.class_names) == {"cat", "dog"}
    assert [item["entry"] for item in result.report["ignored"]["items"]] == list(stray)


@pytest.mark.parametrize(
    "files",
    [
        {**pictures("cat", each=5), "dog/0.png": picture(99)},
        pictures("train/cat", "train/dog", "test/cat", "test/dog", "test/cow"),
        pictures("val/cat", "val/dog"),
    ],
    ids=["one image", "in test only", "in val only"],
)
def test_a_class_without_enough_images_to_learn_from_is_too_small(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert refused(tmp_path, files).code == "class_too_small"


def test_the_smallest_class_can_be_set(tmp_path: Path) -> None:
    error = refused(tmp_path, pictures("cat", "dog"), PackSettings(class_images_min=4))
    assert error.code == "class_too_small"
    assert "cat (3 in train, 0 in val)" in str(error)


def test_progress_reaches_the_end_and_an_exception_from_it_leaves_nothing(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    packed(tmp_path, pictures("cat", "dog"))
    archive = tmp_path / "upload.zip"
    pack(archive, tmp_path / "again", on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert len(calls) == 7
    assert calls[-1] == (archive.stat().st_size, archive.stat().st_size)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(archive, tmp_path / "stopped", on_progress=stop)
    assert list((tmp_path / "stopped").iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bpt_core.dataset.ShardWriter._close", full)
    with pytest.raises(OSError, match="No space"):
        packed(tmp_path, pictures("cat", "dog"))
    assert list((tmp_path / "packed").iterdir()) == []


# --- without labels ---


@pytest.mark.parametrize(
    "names",
    [
        ["1.png"],
        ["1.png", "deep/er/2.png", "train/cat/3.png", "val/dog/4.png", "test/5.png"],
        [f"one/{number}.png" for number in range(9)],
    ],
    ids=["one image", "any folders", "one folder"],
)
def test_unlabelled_images_may_lie_anywhere_and_are_all_in_test(tmp_path: Path, names: list[str]) -> None:
    files = {name: picture(seed) for seed, name in enumerate(names)}
    result = packed(tmp_path, {**files, "readme.txt": b"hello"}, PackSettings(task=UNLABELLED))
    dataset = PackedDataset(result.shards)
    assert (result.class_names, dataset.class_names, dataset.task) == ((), (), UNLABELLED)
    items = {item.path: item for item in dataset.items()}
    assert set(items) == set(names)
    for name, item in items.items():
        assert (item.labels, item.split) == ((), Split.TEST)
        assert images.decode(item.image).tobytes() == images.canonical(files[name]).tobytes()
    assert result.report["images"] == {"accepted": len(names), "rejected": 0, "packed": len(names)}
    assert (result.report["counts"], result.report["splits"]["test"]) == ({}, len(names))
    assert not findings(result.report)
    assert dataset.images() == dataset.images(Split.TEST) == len(names)
    assert dataset.images(Split.TRAIN) == 0


def test_unlabelled_duplicates_are_kept_and_counted(tmp_path: Path) -> None:
    files = {"a/1.png": picture(1), "train/x/1.png": picture(1), "2.png": picture(2)}
    result = packed(tmp_path, files, PackSettings(task=UNLABELLED))
    assert len(PackedDataset(result.shards)) == 3
    assert findings(result.report) == {"exact_duplicates"}


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "dataset_empty"),
        ({"readme.txt": b"hello"}, "dataset_empty"),
        ({"../1.png": b"?"}, "entry_path_unsafe"),
        ({"1.zip": b"PK\x03\x04"}, "entry_type_forbidden"),
        ({"1.png": b"<svg/>", "2.png": picture(2)}, "too_many_bad_images"),
    ],
)
def test_unlabelled_archives_are_as_untrusted_as_others(tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    assert refused(tmp_path, files, PackSettings(task=UNLABELLED)).code == code


def test_a_dataset_without_labels_takes_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError), ShardWriter(tmp_path, ["cat"], UNLABELLED) as writer:
        writer.write(Item(b"", "1.png", (0,), Split.TEST))
    assert list(tmp_path.iterdir()) == []


FOLDERS = st.tuples(
    st.sampled_from(["", "set/"]),
    st.sampled_from(["", "train/", "train/", "val/", "test/"]),
    st.sampled_from(["cat", "dog", "train"]),
).map("".join)


@settings(max_examples=40, deadline=None)
@given(layout=st.dictionaries(FOLDERS, st.lists(st.integers(0, 30), min_size=2, max_size=6), min_size=3, max_size=8))
def test_any_layout_is_packed_soundly_or_refused(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, list[int]]
) -> None:
    files = {
        f"{folder}/{n}.png".lstrip("/"): picture(seed)
        for folder, seeds in layout.items()
        for n, seed in enumerate(seeds)
    }
    tmp_path = tmp_path_factory.mktemp("layout")
    try:
        result = packed(tmp_path, files)
    except DatasetError:
        assert list((tmp_path / "packed").iterdir()) == []
        return
    splits: dict[str, set[Split]] = {}
    trained = set()
    for item in PackedDataset(result.shards).items():
        splits.setdefault(images.pixel_hash(images.decode(item.image)), set()).add(item.split)
        trained |= set(item.labels) if item.split is Split.TRAIN else set()
    assert all(len(of_one_picture) == 1 for of_one_picture in splits.values())
    assert trained == set(range(len(result.class_names)))
