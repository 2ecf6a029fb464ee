"""The drawn sample dataset: repeatable, complete, and not to be told apart by colour alone."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bpt_core.samples import CLASS_NAMES, SIZE, draw, main, write_archive, write_gallery


def test_the_same_label_and_seed_give_the_same_pixels() -> None:
    assert draw(3, 17).tobytes() == draw(3, 17).tobytes()


def test_another_seed_or_another_label_gives_another_picture() -> None:
    pictures = {draw(label, seed).tobytes() for label in (0, 1) for seed in range(4)}
    assert len(pictures) == 8


def test_every_class_draws_an_rgb_picture_of_the_stated_size_with_contrast() -> None:
    for label in range(len(CLASS_NAMES)):
        picture = draw(label, 5)
        assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))
        assert np.asarray(picture).std() > 15


def test_class_names_are_distinct_and_safe_as_folder_names() -> None:
    assert 8 <= len(CLASS_NAMES) == len(set(CLASS_NAMES)) <= 12
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in CLASS_NAMES)


@pytest.mark.parametrize("label", [-1, len(CLASS_NAMES)])
def test_an_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(IndexError, match="label"):
        draw(label, 0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        draw(0, -1)


def test_the_archive_holds_every_class_in_every_split_with_the_counts_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "flowers.zip"
    write_archive(path, train=2, val=1, test=1)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        contents = [archive.read(name) for name in names]
    counts = (("train", 2), ("val", 1), ("test", 1))
    expected = [
        f"{split}/{name}/{index:04d}.jpg"
        for split, count in counts
        for name in CLASS_NAMES
        for index in range(1, count + 1)
    ]
    assert sorted(names) == sorted(expected)
    assert len(set(contents)) == len(contents), "no picture may stand in two splits"
    with Image.open(io.BytesIO(contents[0])) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIZE, SIZE))


def test_the_same_arguments_give_the_same_archive_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first.zip", "again.zip", "other.zip"))
    write_archive(first, train=1, val=0, test=0)
    write_archive(again, train=1, val=0, test=0)
    write_archive(other, train=1, val=0, test=0, seed=1)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_a_negative_count_or_seed_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "none.zip"
    with pytest.raises(ValueError, match="counts"):
        write_archive(path, train=1, val=-1, test=0)
    with pytest.raises(ValueError, match="seed"):
        write_archive(path, train=1, val=0, test=0, seed=-1)
    assert not path.exists()


def test_mean_colour_alone_does_not_give_the_class_away() -> None:
    per_class = 5
    features = np.array(
        [
            [np.asarray(draw(label, seed), np.float64).mean((0, 1)) for seed in range(2 * per_class)]
            for label in range(len(CLASS_NAMES))
        ]
    )
    centroids = features[:, :per_class].mean(1)
    held_out = features[:, per_class:]
    distance = ((held_out[:, :, None] - centroids[None, None]) ** 2).sum(-1)
    right = distance.argmin(-1) == np.arange(len(CLASS_NAMES))[:, None]
    assert right.mean() < 2.5 / len(CLASS_NAMES)


def test_the_gallery_is_a_png_with_a_column_for_each_class(tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    write_gallery(path, rows=1)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > SIZE * len(CLASS_NAMES)
        assert SIZE < sheet.height < 2 * SIZE


def test_the_command_line_writes_the_archive_and_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.zip"
    main([str(path), "--train", "1", "--val", "0", "--test", "0", "--seed", "2"])
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == len(CLASS_NAMES)
    assert f"{len(CLASS_NAMES)} images" in capsys.readouterr().out
