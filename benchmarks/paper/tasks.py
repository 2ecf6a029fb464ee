"""A dataset in an archive or a folder -> a packed dataset of the size that a comparison can afford."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.paper.plan import Size
from bpt_core.archive import ArchiveLimits
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.packing import PackSettings, pack

VAL_FRACTION = TEST_FRACTION = 0.2  # where a dataset does not say


def load(source: Path, directory: Path, size: Size, *, merged: bool = False) -> PackedDataset:
    """The dataset `source`, packed below `directory` on the first call and read from there later.

    `merged` is how the paper's authors train: train and val together, and what is judged after every epoch is the
    test split.
    """
    whole = _packed(source, directory)
    facts = json.dumps([size.train, size.val, size.test, merged])
    made = directory / f"{source.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
    if not (made / "done").is_file():
        made.mkdir(parents=True, exist_ok=True)
        with ShardWriter(made, whole.class_names, whole.task) as writer:
            for item in _cut(whole, size):
                split = _merged(item.split) if merged else item.split
                writer.write(Item(item.image, item.path, item.labels, split))
        (made / "done").touch()
    return PackedDataset(_shards(made))


def digest(dataset: PackedDataset) -> str:
    """Of what is in it, image by image: two comparisons are one only if this is equal."""
    found = hashlib.sha256()
    for split in Split:
        for item in dataset.items(split):
            found.update(f"{split}\0{item.labels}\0".encode() + hashlib.sha256(item.image).digest())
    return found.hexdigest()[:16]


def _packed(source: Path, directory: Path) -> PackedDataset:
    made = directory / source.stem
    if not (made / "done").is_file():
        settings = PackSettings(
            val_fraction=VAL_FRACTION, test_fraction=TEST_FRACTION, archive=ArchiveLimits(entries=2_000_000)
        )
        if source.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            archive = directory / f"{source.stem}.zip"
            zip_folder(source, archive)
            pack(archive, made, settings)
            archive.unlink()
        else:
            pack(source, made, settings)
        (made / "done").touch()
    return PackedDataset(_shards(made))


def zip_folder(source: Path, archive: Path) -> None:
    """A folder of class folders, with or without train, val and test above them, or CUB-200-2011 as it is unpacked."""
    images = source / "images.txt", source / "train_test_split.txt"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        if all(table.is_file() for table in images):
            paths, is_train = (dict(line.split() for line in table.read_text().splitlines()) for table in images)
            for number, name in paths.items():
                split = Split.TRAIN if is_train[number] == "1" else Split.TEST
                file.write(source / "images" / name, f"{split}/{name}")
        else:
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(source).as_posix())


def _cut(dataset: PackedDataset, size: Size) -> Iterator[Item]:
    """So many of every class and split, those whose paths have the least hashes: a larger cut holds a smaller one."""
    limits = {Split.TRAIN: size.train, Split.VAL: size.val, Split.TEST: size.test}
    for split, limit in limits.items():
        taken: Counter[tuple[int, ...]] = Counter()
        for item in sorted(dataset.items(split), key=lambda each: hashlib.sha256(each.path.encode()).digest()):
            taken[item.labels] += 1
            if not limit or taken[item.labels] <= limit:
                yield item


def _merged(split: Split) -> Split:
    return Split.VAL if split is Split.TEST else Split.TRAIN


def _shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("shard-*.parquet"))
