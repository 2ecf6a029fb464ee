"""Every finding is made where it is due, named so that the customer can act, and not made where it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import count
from random import Random
from typing import Any

import pytest

from bpt_core.archive import REPORT_ITEMS, Tally
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL, UNLABELLED
from bpt_core.findings import Finding, Severity, Verdict, by_item, examine, verdict
from bpt_core.pictures import Facts, Picture, Split

INFO, WARNING, SERIOUS = Severity.INFO, Severity.WARNING, Severity.SERIOUS
TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
ORDINARY = Facts(width=640, height=480, brightness=0.5, contrast=0.2, sharpness=0.04, entropy=7.2, hash=0)

_numbers = count()


def picture(
    *labels: str, path: str | None = None, digest: str | None = None, split: Split = TRAIN, **facts: Any
) -> Picture:
    path = path or f"pictures/{next(_numbers):06d}.jpg"
    digest = digest or sha256(path.encode()).hexdigest()
    facts.setdefault("hash", int(sha256(f"hash of {digest}".encode()).hexdigest()[:16], 16))
    return Picture(
        path=path,
        digest=digest,
        format="JPEG",
        facts=ORDINARY._replace(**facts),
        size=(320, 240),
        offset=0,
        length=0,
        thumbnail_length=0,
        labels=labels,
        split=split,
    )


def pictures(number: int, *labels: str, split: Split = TRAIN, **facts: Any) -> list[Picture]:
    return [picture(*labels, split=split, **facts) for _ in range(number)]


def a_class(name: str, train: int = 20, val: int = 2, test: int = 2) -> list[Picture]:
    return [*pictures(train, name), *pictures(val, name, split=VAL), *pictures(test, name, split=TEST)]


def found(
    pictures: Sequence[Picture], task: str = UNLABELLED, class_names: Sequence[str] | None = None
) -> dict[str, Finding]:
    if class_names is None:
        class_names = sorted({label for picture in pictures for label in picture.labels})
    return {finding.code: finding for finding in examine(pictures, class_names, task=task)}


def ids(pictures: Iterable[Picture]) -> frozenset[str]:
    return frozenset(picture.id for picture in pictures)


def test_nothing_is_found_in_a_good_dataset() -> None:
    assert examine([*a_class("ant"), *a_class("bee")], ["ant", "bee"], task=SINGLE_LABEL) == []


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL, UNLABELLED])
def test_nothing_is_found_in_nothing(task: str) -> None:
    assert examine([], [], task=task) == []


LOOKS: dict[str, dict[str, Any]] = {
    "dark": {"brightness": 0.03, "contrast": 0.05},
    "bright": {"brightness": 0.96, "contrast": 0.05},
    "blurred": {"sharpness": 0.0003},
    "low_information": {"contrast": 0.01, "sharpness": 0.0},
}


@pytest.mark.parametrize("code", LOOKS)
def test_a_picture_that_looks_wrong_is_named_with_its_facts(code: str) -> None:
    bad = picture(path="x\n/bad.jpg", **LOOKS[code])
    findings = found([*pictures(99), bad])
    assert list(findings) == [code]
    finding = findings[code]
    [item] = finding.items.items
    assert (item["item"], item["entry"]) == (bad.id, "x\\u000a/bad.jpg")
    known = set(item) - {"item", "entry"}
    assert known
    assert {name: item[name] for name in known} == {name: getattr(bad.facts, name) for name in known}
    assert (finding.severity, finding.pictures, finding.share) == (INFO, ids([bad]), 0.01)
    assert "1 picture, 1.0 % of all" in finding.explanation


@pytest.mark.parametrize("code", LOOKS)
def test_looks_are_a_warning_above_1_percent_of_the_pictures(code: str) -> None:
    bad = pictures(2, **LOOKS[code])
    finding = found([*pictures(98), *bad])[code]
    assert (finding.severity, finding.items.total, finding.pictures) == (WARNING, 2, ids(bad))


@pytest.mark.parametrize(
    ("code", "name", "values", "others"),
    [
        ("dark", "brightness", [0.02, 0.05, 0.1], {"contrast": 0.05}),
        ("bright", "brightness", [0.98, 0.95, 0.9], {"contrast": 0.05}),
        ("blurred", "sharpness", [0.0001, 0.0002, 0.0003], {}),
        ("low_information", "contrast", [0.001, 0.005, 0.01], {}),
        ("unusual_size", "width", [30_000, 20, 40], {}),
    ],
)
def test_the_worst_come_first(code: str, name: str, values: list[float], others: dict[str, Any]) -> None:
    facts: list[dict[str, Any]] = [{**others, name: value} for value in (values[1], values[0], values[2])]
    bad = [picture(path=f"{index}.jpg", **each) for index, each in enumerate(facts)]
    items = found([*pictures(97), *bad])[code].items.items
    assert [item[name] for item in items] == values


def test_where_all_pictures_are_of_one_colour_nothing_else_is_said_of_them() -> None:
    assert list(found(pictures(5, contrast=0.0, sharpness=0.0, entropy=0.0))) == ["low_information"]


def test_a_tiny_share_is_not_told_as_nothing() -> None:
    assert "1 picture, under 0.1 % of all" in found([*pictures(2_000), picture(**LOOKS["dark"])])["dark"].explanation


def test_a_dark_picture_with_something_bright_in_it_is_not_dark_nor_a_bright_one_with_something_dark_bright() -> None:
    night, product = picture(brightness=0.05, contrast=0.15), picture(brightness=0.95, contrast=0.15)
    assert found([night, product]) == {}


def test_two_grey_values_are_low_information_only_where_one_of_them_is_almost_everywhere() -> None:
    drawing, speck = picture(entropy=0.5, contrast=0.3), picture(entropy=0.1, contrast=0.1)
    assert found([drawing, speck])["low_information"].pictures == ids([speck])


def test_dark_and_pale_pictures_are_not_called_blurred_for_it() -> None:
    pale = picture(contrast=0.05, sharpness=0.04 * (0.05 / 0.2) ** 2)
    assert found([*pictures(99), pale]) == {}


def test_pictures_are_called_blurred_where_all_of_them_are() -> None:
    finding = found(pictures(10, sharpness=0.0002))["blurred"]
    assert (finding.severity, finding.items.total) == (WARNING, 10)


def test_smooth_photographs_among_drawings_are_not_called_blurred() -> None:
    assert found([*pictures(99, sharpness=0.4), picture(sharpness=0.02)]) == {}


def test_pictures_all_made_alike_are_not_called_blurred_for_a_little_less_detail() -> None:
    assert found([*pictures(99, sharpness=0.0101), picture(sharpness=0.006)]) == {}


def test_what_is_blurred_depends_on_how_much_the_detail_of_the_others_differs() -> None:
    rng = Random(0)
    wide = [picture(sharpness=0.04 * 10 ** rng.uniform(-1, 1)) for _ in range(200)]
    narrow = [picture(sharpness=0.04 * 10 ** rng.uniform(-0.2, 0.2)) for _ in range(200)]
    soft = picture(sharpness=0.005)
    assert found([*wide, soft]) == {}
    assert found([*narrow, soft])["blurred"].pictures == ids([soft])


@pytest.mark.parametrize(
    ("width", "height", "is_unusual"),
    [(640, 480, False), (1280, 960, False), (320, 240, False), (2560, 1920, True), (160, 120, True), (1600, 31, True)],
)
def test_pictures_much_larger_or_smaller_than_the_rest_are_of_unusual_size(
    width: int, height: int, is_unusual: bool
) -> None:
    odd = picture(width=width, height=height)
    findings = found([*pictures(99), odd])
    assert list(findings) == (["unusual_size"] if is_unusual else [])
    if is_unusual:
        [item] = findings["unusual_size"].items.items
        assert item == {"item": odd.id, "entry": odd.path, "width": width, "height": height}
        assert "640 x 480" in findings["unusual_size"].explanation


def test_no_size_is_unusual_where_sizes_differ_much() -> None:
    rng = Random(0)
    sides = [round(600 * 10 ** rng.uniform(-0.7, 0.7)) for _ in range(200)]
    assert found([picture(width=side, height=side) for side in [*sides, 2600]]) == {}


def test_small_pictures_are_not_unusual_among_small_ones() -> None:
    assert found([*pictures(50, width=28, height=28), *pictures(50, width=60, height=60)]) == {}


@pytest.mark.parametrize(("odd", "severity"), [(5, INFO), (6, WARNING)])
def test_unusual_sizes_are_a_warning_above_5_percent(odd: int, severity: Severity) -> None:
    finding = found([*pictures(100 - odd), *pictures(odd, width=64, height=64)])["unusual_size"]
    assert finding.severity is severity


@pytest.mark.parametrize(("others", "severity"), [(57, INFO), (56, WARNING)])
def test_exact_copies_are_groups_and_a_warning_where_they_add_more_than_5_percent(
    others: int, severity: Severity
) -> None:
    # Three copies too many among sixty pictures are 5 percent.
    pair = [picture("ant", path=path, digest="aa") for path in ("b\n.jpg", "a.jpg")]
    three = [picture("ant", path=path, digest="bb") for path in ("e.jpg", "d.jpg", "c.jpg")]
    findings = found([*pictures(others - 2, "ant"), *pair, *three], SINGLE_LABEL)
    finding = findings["exact_duplicates"]
    assert finding.items.items == [
        {"items": [pair[1].id, pair[0].id], "entries": ["a.jpg", "b\\u000a.jpg"], "total": 2},
        {"items": [each.id for each in reversed(three)], "entries": ["c.jpg", "d.jpg", "e.jpg"], "total": 3},
    ]
    assert (finding.severity, finding.pictures) == (severity, ids([*pair, *three]))
    assert "3 pictures, 5." in finding.explanation
    assert not {"near_duplicates", "label_conflict"} & set(findings)


@pytest.mark.parametrize(
    ("splits", "severity"),
    [((TRAIN, VAL), WARNING), ((TRAIN, TEST), WARNING), ((VAL, TEST), INFO), ((TRAIN, TRAIN), INFO)],
)
def test_copies_in_train_and_in_val_or_test_are_a_warning_since_scores_flatter(
    splits: tuple[Split, Split], severity: Severity
) -> None:
    copies = [picture(split=split, digest="aa") for split in splits]
    alike = [picture(split=split, hash=bits) for split, bits in zip(splits, (1 << 60, 1 << 60 | 1), strict=True)]
    findings = found([*pictures(98), *copies, *alike])
    for code in ("exact_duplicates", "near_duplicates"):
        assert findings[code].severity is severity
        assert ("better than they are" in findings[code].explanation) == (severity is WARNING)


def test_a_group_names_ten_pictures_and_counts_all() -> None:
    findings = found([*pictures(12, digest="aa"), *pictures(88), *pictures(12, hash=1 << 60)])
    for code in ("exact_duplicates", "near_duplicates"):
        [group] = findings[code].items.items
        assert (len(group["items"]), len(group["entries"]), group["total"]) == (10, 10, 12)
        assert len(findings[code].pictures) == 12


@pytest.mark.parametrize(("others", "severity"), [(98, WARNING), (97, SERIOUS)])
def test_a_picture_under_two_labels_is_a_conflict_and_serious_above_2_percent(others: int, severity: Severity) -> None:
    torn = [picture("bee", path="a.jpg", digest="aa"), picture("ant", path="b.jpg", digest="aa")]
    finding = found([*pictures(others, "ant"), *torn], SINGLE_LABEL)["label_conflict"]
    assert finding.items.items == [
        {"items": [each.id for each in torn], "entries": ["a.jpg", "b.jpg"], "total": 2, "labels": ["ant", "bee"]}
    ]
    assert (finding.severity, finding.pictures) == (severity, ids(torn))


def test_a_picture_under_two_labels_is_no_exact_copy_but_for_several_labels_it_is() -> None:
    torn = [picture("ant", digest="aa"), picture("bee", digest="aa")]
    assert "exact_duplicates" not in found([*pictures(98, "ant"), *torn], SINGLE_LABEL)
    findings = found([*pictures(98, "ant"), *torn], MULTI_LABEL)
    assert findings["exact_duplicates"].pictures == ids(torn)
    assert "label_conflict" not in findings


def test_pictures_alike_under_the_same_label_are_near_duplicates() -> None:
    alike = [
        picture("ant", path=f"{name}.jpg", hash=bits) for name, bits in (("a", 0b0), ("b", 0b11), ("c", 0b1111111))
    ]
    finding = found([*pictures(97, "ant"), *alike], SINGLE_LABEL)["near_duplicates"]
    assert finding.items.items == [
        {
            "items": [each.id for each in alike],
            "entries": ["a.jpg", "b.jpg", "c.jpg"],
            "total": 3,
            "distance": 5,
            "splits": ["train"],
        }
    ]
    assert (finding.severity, finding.pictures, finding.share) == (INFO, ids(alike), 0.03)


def test_pictures_alike_under_different_labels_are_a_near_conflict() -> None:
    torn = [picture("bee", hash=1 << 60), picture("ant", hash=1 << 60)]
    fine = pictures(2, "ant", hash=0xFFFF)
    findings = found([*pictures(96, "ant"), *torn, *fine], SINGLE_LABEL)
    conflict = findings["near_duplicate_label_conflict"]
    assert (conflict.severity, conflict.pictures) == (WARNING, ids(torn))
    assert conflict.items.items[0]["labels"] == ["ant", "bee"]
    assert findings["near_duplicates"].pictures == ids([*torn, *fine])
    assert "near_duplicate_label_conflict" not in found([*torn, *fine], MULTI_LABEL)


def test_of_pictures_alike_all_exact_copies_are_marked_and_each_digest_is_named_first() -> None:
    same = [picture(path=path, digest="aa", hash=1 << 60) for path in ("a.jpg", "b.jpg")]
    other = picture(path="c.jpg", hash=1 << 60 | 1)
    finding = found([*pictures(97), *same, other])["near_duplicates"]
    [group] = finding.items.items
    assert (group["entries"], finding.pictures) == (["a.jpg", "c.jpg", "b.jpg"], ids([*same, other]))


def test_groups_across_splits_come_first() -> None:
    fine = pictures(2, hash=0xFFFF)
    torn = [picture(hash=1 << 50, split=split) for split in (TEST, TRAIN)]
    groups = found([*pictures(96), *fine, *torn])["near_duplicates"].items.items
    assert [group["splits"] for group in groups] == [["train", "test"], ["train"]]


@pytest.mark.parametrize("facts", [{"contrast": 0.01, "sharpness": 0.0}, {"entropy": 1.0}])
def test_pictures_whose_hash_says_nothing_are_not_alike_by_it(facts: dict[str, Any]) -> None:
    findings = found([*pictures(98), *pictures(2, hash=0, **facts)])
    assert "near_duplicates" not in findings


def test_few_pictures_of_a_class_are_a_warning_that_names_it() -> None:
    dataset = [*a_class("ant"), *a_class("bee", train=9), *a_class("wasp", train=10), *a_class("fly", train=3)]
    finding = found(dataset, SINGLE_LABEL)["few_images"]
    assert finding.items.items == [{"class": "fly", "train": 3}, {"class": "bee", "train": 9}]
    assert (finding.severity, finding.share, finding.pictures) == (WARNING, 0.5, frozenset())
    assert "fly 3, bee 9" in finding.explanation


@pytest.mark.parametrize(("classes", "severity"), [(9, SERIOUS), (10, WARNING)])
def test_fewer_than_three_pictures_are_serious_where_more_than_a_tenth_of_the_classes_have_no_more(
    classes: int, severity: Severity
) -> None:
    dataset = [each for number in range(classes - 1) for each in a_class(f"class {number}")]
    finding = found([*dataset, *a_class("rare", train=2)], SINGLE_LABEL)["few_images"]
    assert finding.severity is severity


def test_a_class_without_training_pictures_is_serious() -> None:
    dataset = [each for number in range(30) for each in a_class(f"class {number}")]
    findings = found([*dataset, *a_class("unseen", train=0)], SINGLE_LABEL)
    assert findings["few_images"].severity is SERIOUS
    assert "class_imbalance" not in findings


@pytest.mark.parametrize(("train", "severity"), [(100, None), (101, WARNING), (1000, WARNING), (1001, SERIOUS)])
def test_uneven_classes_are_a_warning_over_ten_and_serious_over_a_hundred_times(
    train: int, severity: Severity | None
) -> None:
    findings = found([*a_class("ant", train=train), *a_class("bee", train=10)], SINGLE_LABEL)
    if severity is None:
        assert findings == {}
    else:
        finding = findings["class_imbalance"]
        assert (finding.severity, finding.items.items) == (severity, [{"class": "bee", "train": 10}])


def test_a_class_without_val_is_a_warning_and_one_without_test_information() -> None:
    dataset = [*a_class("ant"), *a_class("bee", val=0), *a_class("wasp", test=0)]
    findings = found(dataset, SINGLE_LABEL)
    assert list(findings) == ["class_without_val", "class_without_test"]
    without_val, without_test = findings.values()
    assert (without_val.severity, without_val.items.items) == (WARNING, [{"class": "bee"}])
    assert (without_test.severity, without_test.items.items) == (INFO, [{"class": "wasp"}])


def test_without_any_test_picture_that_alone_is_said() -> None:
    findings = found([*a_class("ant", test=0), *a_class("bee", test=0)], SINGLE_LABEL)
    assert list(findings) == ["no_test_split"]
    assert findings["no_test_split"].severity is INFO


def test_every_label_of_a_picture_counts() -> None:
    both = [*pictures(20, "ant", "bee"), *pictures(2, "ant", "bee", split=VAL), *pictures(2, "ant", "bee", split=TEST)]
    assert found(both, MULTI_LABEL) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("Cat", "cat"),
        ("go-kart", "go kart"),
        ("go_kart", "gokart"),
        ("St. Bernard", "st bernard"),
        ("class-1", "class 1"),
        ("cats_", "cats"),
        ("A- ", "A-"),
        ("\uff23at", "cat"),
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_names_that_differ_only_by_case_blanks_or_punctuation_are_similar(names: tuple[str, str]) -> None:
    findings = found([*a_class("ant"), *a_class(names[0]), *a_class(names[1])], SINGLE_LABEL, ["ant", *names])
    assert list(findings) == ["similar_class_names"]
    finding = findings["similar_class_names"]
    assert (finding.severity, finding.items.items) == (WARNING, [{"names": list(names)}])


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "cats"),
        ("C", "C++"),
        ("C", "C#"),
        ("-1", "1"),
        ("A-", "A"),
        ("1.5", "15"),
        ("10-20", "1020"),
        ("size -1", "size 1"),
        ("...", "___"),
    ],
)
def test_names_that_mean_different_things_are_not_similar(names: tuple[str, str]) -> None:
    assert found([*a_class(names[0]), *a_class(names[1])], SINGLE_LABEL) == {}


def test_without_labels_nothing_is_said_of_classes_and_splits() -> None:
    torn = [picture(digest="aa"), picture(digest="aa")]
    assert set(found([*pictures(2, split=TEST), *torn], UNLABELLED, [])) == {"exact_duplicates"}


def test_an_item_list_ends_while_pictures_and_total_do_not() -> None:
    finding = found(pictures(REPORT_ITEMS + 5, **LOOKS["dark"]))["dark"]
    assert (finding.items.total, len(finding.items.items)) == (REPORT_ITEMS + 5, REPORT_ITEMS)
    assert len(finding.pictures) == REPORT_ITEMS + 5
    assert "1,005 pictures, 100.0 % of all" in finding.explanation


def everything_wrong() -> tuple[list[Picture], list[str]]:
    dataset = [
        *(each for facts in LOOKS.values() for each in pictures(3, "Ant", **facts)),
        *pictures(3, "Ant", digest="aa"),
        *(picture(label, digest="bb") for label in ("Ant", "ant")),
        *(picture(label, hash=1 << 60, split=split) for label, split in (("Ant", TRAIN), ("ant", VAL))),
        *pictures(250, "Ant", split=TRAIN),
        picture("Ant", width=10, height=10),
        picture("Ant", split=TEST),
    ]
    return dataset, ["Ant", "ant", "unseen"]


def test_findings_come_by_severity_then_share_whatever_the_order_of_the_pictures() -> None:
    dataset, names = everything_wrong()
    findings = examine(dataset, names, task=SINGLE_LABEL)
    keys = [(list(Severity).index(finding.severity), finding.share) for finding in findings]
    assert keys == sorted(keys, reverse=True)
    assert {finding.code for finding in findings} == {
        *LOOKS,
        *("unusual_size", "exact_duplicates", "label_conflict", "near_duplicates", "near_duplicate_label_conflict"),
        *("few_images", "class_imbalance", "class_without_val", "class_without_test", "similar_class_names"),
    }
    Random(0).shuffle(dataset)
    assert examine(dataset, names, task=SINGLE_LABEL) == findings


def test_a_finding_is_plain_json_with_a_complete_sentence() -> None:
    for finding in examine(*everything_wrong(), task=SINGLE_LABEL):
        told = finding.to_json()
        assert json.loads(json.dumps(told)) == told
        assert set(told) == {"code", "severity", "explanation", "items"}
        assert set(told["items"]) == {"total", "items"}
        assert told["explanation"].endswith(".")
        assert any(character.isdigit() for character in told["explanation"]) or finding.code == "no_test_split"


def test_every_item_is_told_the_codes_of_its_findings() -> None:
    bad, good = picture(**LOOKS["dark"], width=10, height=10), picture()
    codes = by_item(examine([*pictures(98), bad, good], [], task=UNLABELLED))
    assert codes == {bad.id: ["dark", "unusual_size"]}


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        ([], Verdict.GOOD),
        ([INFO], Verdict.GOOD),
        ([INFO, WARNING], Verdict.CARE),
        ([WARNING, SERIOUS, INFO], Verdict.FIX),
    ],
)
def test_the_verdict_follows_the_most_severe_finding(severities: list[Severity], expected: Verdict) -> None:
    assert verdict(Finding("code", severity, "", Tally()) for severity in severities) is expected
