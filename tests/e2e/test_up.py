"""`bpt up` where it cannot start. How it goes on after a kill: test_backup.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import Service

pytestmark = pytest.mark.slow


def test_a_port_that_is_taken_is_a_clear_error_and_leaves_nothing_running(service: Service, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    arguments = [sys.executable, "-m", "bpt_store.up", "--data-dir", str(tmp_path / "d"), "--port", port]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_directory_in_use_is_a_clear_error(service: Service) -> None:
    arguments = [sys.executable, "-m", "bpt_store.up", "--data-dir", str(service.data_dir), "--port", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(service.data_dir) in done.stderr
