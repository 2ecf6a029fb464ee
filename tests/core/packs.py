"""Noise pictures, archives of them, and what packing makes of those."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpt_core import images
from bpt_core.dataset import PackedDataset, read_image
from bpt_core.errors import DatasetError
from bpt_core.items import Items
from bpt_core.packing import Base, Changes, Packed, PackSettings, pack
from bpt_core.pictures import item_id


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 9)) -> bytes:
    """Noise: every seed gives other pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def pictures(*folders: str, each: int = 3, seed: int = 0) -> dict[str, bytes]:
    return {
        f"{folder}/{number}.png": picture(seed + 1_000 * place + number)
        for place, folder in enumerate(folders)
        for number in range(each)
    }


def packed(
    tmp_path: Path,
    files: Mapping[str, bytes] | None,
    settings: PackSettings | None = None,
    *,
    base: Packed | None = None,
    changes: Changes | None = None,
) -> Packed:
    tmp_path.mkdir(exist_ok=True)
    archive = tmp_path / "upload.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for name, data in (files or {}).items():
            writer.writestr(zipfile.ZipInfo(name), data)
    result = pack(
        archive if files is not None else None,
        tmp_path / "packed",
        settings,
        base=Base(base.shards, base.items, base.thumbnails) if base is not None else None,
        changes=changes,
    )
    assert set((tmp_path / "packed").iterdir()) == {*result.shards, result.items, result.thumbnails}
    agree(result)
    assert json.loads(json.dumps(result.report)) == result.report
    return result


def agree(result: Packed) -> None:
    """The index says of each item what the shards hold, and its thumbnail is where it says."""
    index, items = list(Items.read(result.items)), list(PackedDataset(result.shards).items())
    thumbnails = result.thumbnails.read_bytes()
    for entry, item in zip(index, items, strict=True):
        assert (entry.path, entry.split) == (item.path, item.split)
        assert entry.labels == tuple(result.class_names[label] for label in item.labels)
        assert entry.digest == images.pixel_hash(images.decode(item.image))
        assert entry.id == item_id(entry.digest, entry.path)
    for entry, item in (index[0], items[0]), (index[-1], items[-1]):
        assert read_image(result.shards[entry.shard], entry.row) == item.image
        thumbnail = thumbnails[entry.thumbnail_offset :][: entry.thumbnail_length]
        if max(entry.size) <= 96:
            assert thumbnail == b""
        else:
            assert Image.open(io.BytesIO(thumbnail)).format == "JPEG"
    assert sum(entry.thumbnail_length for entry in index) == len(thumbnails)


def refused(
    tmp_path: Path,
    files: Mapping[str, bytes] | None,
    settings: PackSettings | None = None,
    *,
    base: Packed | None = None,
    changes: Changes | None = None,
) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        packed(tmp_path, files, settings, base=base, changes=changes)
    assert list((tmp_path / "packed").iterdir()) == []
    assert json.dumps(caught.value.report)
    return caught.value


def placed(result: Packed) -> dict[str, tuple[str, str]]:
    """path -> class, split"""
    items = PackedDataset(result.shards).items()
    return {item.path: (result.class_names[item.labels[0]], item.split.value) for item in items}


def found(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """code -> finding, without those that only say how few and small these pictures are."""
    ours = {"few_images", "unusual_size", "low_information", "blurred", "class_without_test", "class_without_val"}
    return {finding["code"]: finding for finding in report["findings"] if finding["code"] not in ours}


def findings(report: dict[str, Any]) -> set[str]:
    return set(found(report))
