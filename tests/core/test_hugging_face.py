"""A packed dataset is loaded by the library that its layout comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpt_core import images
from bpt_core.dataset import MULTI_LABEL, PackedDataset
from bpt_core.packing import PackSettings
from tests.core.packs import packed, pictures


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("task", ["single-label", MULTI_LABEL])
def test_load_dataset_sees_pictures_labels_and_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    result = packed(tmp_path, pictures("cat", "dog", each=20), PackSettings(task=task))
    files = [str(path) for path in result.shards]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["labels"].feature.names == ["cat", "dog"]
    for row, item in zip(loaded, PackedDataset(result.shards).items(), strict=True):
        assert row["image"].tobytes() == images.decode(item.image).tobytes()
        assert (tuple(row["labels"]), row["split"]) == (item.labels, item.split)
