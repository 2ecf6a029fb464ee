"""The demo's parts that need no running service; tests/e2e runs it whole."""

from __future__ import annotations

import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bpt_client.demo import _Kept
from bpt_client.demo_report import held_out_images
from bpt_client.errors import InputError
from bpt_client.local_service import make_data_dir


def test_a_service_that_cannot_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("no json")
    command = [sys.executable, "-m", "bpt_client.cli", "demo", "--data-dir", str(tmp_path), "--exit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: the service ended with status 1; the end of ")
    assert "secrets.json is damaged" in "\n".join(rest)
    assert "Traceback" not in done.stderr
    assert "demo: ok" not in done.stdout


def test_keys_are_kept_for_ourselves_alone(tmp_path: Path) -> None:
    kept = _Kept(tmp_path / "new" / "demo.json")
    assert kept.read() == {}
    kept.write({"key": "bpt_1"})
    kept.write({"key": "bpt_2"})
    assert kept.read() == {"key": "bpt_2"}
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    kept.path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        kept.read()


def test_a_data_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o750)
    make_data_dir(tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o750
    make_data_dir(tmp_path / "deep" / "new")
    assert stat.S_IMODE((tmp_path / "deep" / "new").stat().st_mode) & 0o077 in (0, 0o011)


def test_held_out_images_are_test_images_of_different_classes_under_names_that_tell_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for split in ("train", "test"):
            for label in "abcdefghij":
                for index in (1, 2, 3):
                    out.writestr(f"{split}/{label}/{index}.jpg", f"{split} {label} {index}")
    found = held_out_images(archive, 8, tmp_path / "held-out")
    assert len({each.truth for each in found}) == 8
    assert all(each.content.decode().startswith(f"test {each.truth} ") for each in found)
    assert [each.name for each in found] == [f"image-{number}.jpg" for number in range(1, 9)]
    assert all(each.path.read_bytes() == each.content for each in found)
    assert held_out_images(archive, 8, tmp_path / "held-out") == found
