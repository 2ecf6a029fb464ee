from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bpt_core.pictures import Facts, Picture, Split
from bpt_core.splits import split_by_hash, units

HASHES = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")


@given(
    classes_of=st.dictionaries(HASHES, st.sets(st.sampled_from("abcd"), min_size=1, max_size=2), min_size=1),
    val_fraction=st.floats(0, 0.6),
    test_fraction=st.floats(0, 0.4),
)
def test_every_class_keeps_a_train_picture_and_with_two_has_a_val_one_unless_shared(
    classes_of: dict[str, set[str]], val_fraction: float, test_fraction: float
) -> None:
    split_of = split_by_hash(classes_of, val_fraction, test_fraction)
    assert split_of == split_by_hash(dict(reversed(classes_of.items())), val_fraction, test_fraction)
    assert set(split_of) == set(classes_of)
    for name in set().union(*classes_of.values()):
        splits = [split_of[pixels] for pixels in classes_of if name in classes_of[pixels]]
        shared = any(len(classes_of[pixels]) > 1 for pixels in classes_of if name in classes_of[pixels])
        assert Split.TRAIN in splits
        if len(splits) > 1 and not shared:
            assert Split.VAL in splits


def test_about_a_tenth_goes_to_val_and_a_tenth_to_test() -> None:
    classes_of = {f"{number:03x}".ljust(64, "0"): {"a"} for number in range(4_096)}
    splits = list(split_by_hash(classes_of, 0.1, 0.1).values())
    assert [splits.count(split) for split in Split] == [3_276, 410, 410]


@given(
    classes_of=st.dictionaries(HASHES, st.sets(st.sampled_from("abc"), min_size=1, max_size=2), min_size=2),
    data=st.data(),
)
def test_what_is_settled_stays_and_new_units_do_not_move_each_other(
    classes_of: dict[str, set[str]], data: st.DataObject
) -> None:
    known = data.draw(st.sets(st.sampled_from(sorted(classes_of))))
    settled = {unit: data.draw(st.sampled_from(list(Split))) for unit in sorted(known)}
    split_of = split_by_hash(classes_of, 0.3, 0.3, settled)
    assert {unit: split_of[unit] for unit in settled} == settled
    assert set(split_of) == set(classes_of)


def picture(digest: int, group: str | None = None) -> Picture:
    facts = Facts(1, 1, 0.5, 0.1, 0.1, 1.0, 0)
    return Picture(f"{digest}-{group}.png", f"{digest:064x}", "PNG", facts, (1, 1), 0, 0, 0, group=group)


def test_a_group_is_one_unit_and_equal_pixels_tie_groups_together() -> None:
    ones = [picture(1, "a"), picture(2, "a"), picture(2, "b"), picture(3, "b"), picture(4, "c"), picture(5), picture(3)]
    names = units(ones)
    assert len({names[0], names[1], names[2], names[3], names[6]}) == 1
    assert len({names[0], names[4], names[5]}) == 3
    assert names[5] == ones[5].digest
    assert dict(zip((one.path for one in ones), names, strict=True)) == dict(
        zip((one.path for one in reversed(ones)), units(list(reversed(ones))), strict=True)
    )


def test_a_group_keeps_its_unit_when_pictures_join_it() -> None:
    before = units([picture(1, "a"), picture(2, "a")])
    after = units([picture(1, "a"), picture(2, "a"), picture(3, "a")])
    assert after == [before[0]] * 3
