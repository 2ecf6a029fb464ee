from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core.errors import DatasetError
from bpt_core.items import IndexedItem, Items, write_items
from bpt_core.pictures import Facts, Split


def item(number: int, labels: tuple[str, ...] = ("cat",), split: Split = Split.TRAIN, *findings: str) -> IndexedItem:
    return IndexedItem(
        id=f"itm_{number}",
        path=f"a/{number}.png",
        digest=f"{number:064x}",
        format="PNG",
        labels=labels,
        split=split,
        group=None if number % 2 else "g",
        size=(12, 9),
        facts=Facts(24, 18, 0.1, 0.2, 0.3, 4.0, 2**64 - 1 - number),
        findings=findings,
        shard=number // 3,
        row=number % 3,
        thumbnail_offset=10 * number,
        thumbnail_length=10,
    )


def index(tmp_path: Path, items: list[IndexedItem]) -> Items:
    write_items(tmp_path / "items.parquet", items)
    return Items.read(tmp_path / "items.parquet")


def test_what_was_written_is_read_exactly(tmp_path: Path) -> None:
    items = [item(number, ("cat", "dog")[: number % 3], list(Split)[number % 3], "dark") for number in range(9_000)]
    found = index(tmp_path, items)
    assert (len(found), list(found)) == (9_000, items)
    assert found.get("itm_8999") == items[8999]
    assert found.get("itm_9000") is None
    assert found.ids(Split.VAL) == [each.id for each in items if each.split is Split.VAL]


def test_an_empty_index_is_one(tmp_path: Path) -> None:
    found = index(tmp_path, [])
    assert (list(found), found.page(5), found.ids(Split.TEST)) == ([], ([], False), [])


FILES = st.lists(
    st.tuples(
        st.sets(st.sampled_from(("cat", "dog", "cow")), max_size=2),
        st.sampled_from(list(Split)),
        st.sets(st.sampled_from(("dark", "blurred")), max_size=2),
    ),
    max_size=12,
)


@given(
    files=FILES,
    limit=st.integers(1, 4),
    split=st.none() | st.sampled_from(list(Split)),
    label=st.none() | st.sampled_from(("cat", "dog")),
    finding=st.none() | st.sampled_from(("dark", "blurred")),
)
@settings(max_examples=60, deadline=None)
def test_pages_give_what_fits_once_and_in_order(
    files: list[tuple[set[str], Split, set[str]]],
    limit: int,
    split: Split | None,
    label: str | None,
    finding: str | None,
) -> None:
    items = [
        item(number, tuple(sorted(labels)), where, *sorted(findings))
        for number, (labels, where, findings) in enumerate(files)
    ]
    file = io.BytesIO()
    write_items(file, items)  # type: ignore[arg-type]
    file.seek(0)
    found = Items.read(file)
    wanted = [
        each
        for each in items
        if (split is None or each.split is split)
        and (label is None or label in each.labels)
        and (finding is None or finding in each.findings)
    ]
    got: list[IndexedItem] = []
    more = True
    while more:
        page, more = found.page(limit, after=got[-1].id if got else None, split=split, label=label, finding=finding)
        assert len(page) <= limit
        got += page
    assert got == wanted


def test_an_unknown_cursor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        index(tmp_path, [item(1)]).page(5, after="itm_7")
    assert caught.value.code == "item_unknown"


def test_anything_else_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for content in (b"hello", None):
        if content is None:
            pq.write_table(pa.table({"a": [1]}), path)
        else:
            path.write_bytes(content)
        with pytest.raises(DatasetError):
            Items.read(path)
