from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.errors import DatasetError

NAMES = ("ant", "bee", "Käfer 10")


def some_items(count: int = 25) -> Iterator[Item]:
    for number in range(count):
        split = list(Split)[number % 3]
        yield Item(bytes([number % 256]) * 1_000, f"set/{number}.png", (number % 3,), split)


def write(
    directory: Path, items: Iterator[Item], *, row_group_rows: int = 256, shard_bytes: int = 256 << 20
) -> tuple[Path, ...]:
    directory.mkdir(exist_ok=True)
    with ShardWriter(directory, NAMES, row_group_rows=row_group_rows, shard_bytes=shard_bytes) as writer:
        for item in items:
            writer.write(item)
    return tuple(writer.shards)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    shards = write(tmp_path, some_items(), row_group_rows=4, shard_bytes=10_000)
    assert [path.name for path in shards] == ["shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet"]
    dataset = PackedDataset(shards)
    assert (dataset.class_names, dataset.task, len(dataset)) == (NAMES, "single-label", 25)
    assert list(dataset.items()) == list(some_items())
    val = list(dataset.items(Split.VAL))
    assert val == [item for item in some_items() if item.split is Split.VAL]
    assert dataset.counts() == {Split.TRAIN: [9, 0, 0], Split.VAL: [0, 8, 0], Split.TEST: [0, 0, 8]}


def test_counts_are_the_callers_own(tmp_path: Path) -> None:
    dataset = PackedDataset(write(tmp_path, some_items()))
    dataset.counts()[Split.TRAIN][0] = 0
    assert dataset.counts()[Split.TRAIN] == [9, 0, 0]


def test_equal_items_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", some_items()), write(tmp_path / "two", some_items())
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_layout_is_hugging_faces(tmp_path: Path) -> None:
    [shard] = write(tmp_path, some_items())
    schema = pq.read_schema(shard)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.equals(pa.schema([("image", image), ("labels", pa.list_(pa.int64())), ("split", pa.string())]))
    names = '["ant", "bee", "K\\u00e4fer 10"]'
    assert schema.metadata == {
        b"bpt": b'{"format": 1, "task": "single-label"}',
        b"huggingface": (
            '{"info": {"features": {"image": {"_type": "Image"}, "labels": {"_type": "Sequence", "feature": '
            f'{{"_type": "ClassLabel", "names": {names}}}}}, "split": {{"_type": "Value", "dtype": "string"}}}}}}}}'
        ).encode(),
    }


def test_reading_holds_one_row_group_in_memory(tmp_path: Path) -> None:
    items = (Item(bytes(1 << 20), f"{number}", (0,), Split.TRAIN) for number in range(70))
    [shard] = write(tmp_path, items)
    with pq.ParquetFile(shard) as parquet:
        assert parquet.num_row_groups == 3
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    assert sum(len(item.image) for item in PackedDataset([shard]).items()) == 70 << 20
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 40 << 20


def test_an_empty_dataset_is_one_shard(tmp_path: Path) -> None:
    shards = write(tmp_path, iter(()))
    assert len(shards) == 1
    assert list(PackedDataset(shards).items()) == []


@pytest.mark.parametrize("labels", [(3,), (-1,), (), (0, 1)])
def test_labels_must_fit_and_a_failed_writer_leaves_nothing(tmp_path: Path, labels: tuple[int, ...]) -> None:
    def items() -> Iterator[Item]:
        yield from some_items()
        yield Item(b"", "odd.png", labels, Split.TRAIN)

    with pytest.raises(DatasetError, match=r"odd\.png"):
        write(tmp_path, items(), row_group_rows=4, shard_bytes=10_000)
    assert list(tmp_path.iterdir()) == []


def test_several_labels_are_fine_in_a_multi_label_dataset(tmp_path: Path) -> None:
    item = Item(b"x", "x.png", (0, 2), Split.TEST)
    with ShardWriter(tmp_path, NAMES, "multi-label") as writer:
        writer.write(item)
    dataset = PackedDataset(writer.shards)
    assert (dataset.task, list(dataset.items())) == ("multi-label", [item])
    assert dataset.counts()[Split.TEST] == [1, 0, 1]


def test_shards_of_different_datasets_are_refused(tmp_path: Path) -> None:
    [mine] = write(tmp_path, some_items())
    (tmp_path / "other").mkdir()
    with ShardWriter(tmp_path / "other", ("ant", "wasp")) as writer:
        pass
    with pytest.raises(DatasetError, match="different datasets"):
        PackedDataset([mine, *writer.shards])
    with pytest.raises(DatasetError, match="one shard"):
        PackedDataset([])


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    [mine] = write(tmp_path, some_items())
    table = pq.read_table(mine)
    foreign = tmp_path / "foreign.parquet"

    def refused() -> bool:
        with pytest.raises(DatasetError, match=r"foreign\.parquet"):
            PackedDataset([foreign])
        return True

    assert refused()
    foreign.write_bytes(b"hello")
    assert refused()
    foreign.write_bytes(mine.read_bytes()[:-100])
    assert refused()
    pq.write_table(table.replace_schema_metadata(None), foreign)
    assert refused()
    later = {**(table.schema.metadata or {}), b"bpt": b'{"format": 2, "task": "single-label"}'}
    pq.write_table(table.replace_schema_metadata(later), foreign)
    assert refused()
    pq.write_table(table.drop_columns(["split"]), foreign)
    assert refused()
