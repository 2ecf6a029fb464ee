"""The examples of the README and of the guide work as they stand, and the table of settings is the truth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpt_store.settings import Settings
from tests import archives
from tests.service import Service
from tests.settings_table import README, table, with_table

BPT = f'bpt() {{ "{sys.executable}" -m bpt_client.cli "$@"; }}\n'
# The README's stand-in for jq, which may not be there.
JSON = f"""json() {{ "{sys.executable}" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }}\n"""


GUIDE = README.parent / "docs" / "production.md"


def examples(language: str, page: Path = README) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "flowers.zip").write_bytes(archives.flowers())
    (tmp_path / "photo.jpg").write_bytes(archives.picture(1, 99))
    return tmp_path


def run(arguments: list[str], place: Path, **environment: str) -> str:
    done = subprocess.run(
        arguments,
        cwd=place,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_curl_examples_work_as_they_stand(service: Service, place: Path) -> None:
    script = "set -euo pipefail\n" + JSON + examples("bash")
    said = run(["bash", "-c", script], place, BPT_URL=service.url, ADMIN_KEY=service.admin_key)
    assert '"succeeded"' in said
    assert '"predictions":[{"label":' in said


def test_the_python_example_works_as_it_stands(service: Service, place: Path) -> None:
    customer = service.new_customer()
    said = run(
        [sys.executable, "-W", "error", "-c", examples("python")],
        place,
        BPT_URL=service.url,
        BPT_API_KEY=customer.key,
        PYTHONPATH=str(README.parent),
    )
    assert "epoch" in said
    predicted, by_triton = said.splitlines()[-2:]
    assert predicted.startswith("photo.jpg [(")
    assert by_triton.startswith("[b'")


def test_the_commands_work_as_they_stand(service: Service, place: Path) -> None:
    customer = service.new_customer()
    # A zip instead of a folder, and few epochs: the command says what it does either way.
    script = examples("sh").replace("flowers/", "flowers.zip").replace("--follow", "--epochs 2 --follow")
    said = run(
        ["bash", "-c", "set -euo pipefail\n" + BPT + script],
        place,
        BPT_URL=service.url,
        BPT_API_KEY=customer.key,
        PYTHONPATH=str(README.parent),
    )
    assert "photo.jpg" in said


def test_the_way_to_production_and_back_is_as_the_guide_says(service: Service, place: Path) -> None:
    customer = service.new_customer()
    for name, first in (("golden", 500), ("more", 900)):
        (place / f"{name}.zip").write_bytes(archives.flowers(seed=first))
    script = re.sub(r"(flowers|golden|more)/", r"\1.zip", examples("sh", GUIDE))
    script = script.replace("--follow", "--epochs 2 --prompts 4 --follow").replace("0.6", "0.2")
    said = run(
        ["bash", "-c", "set -euo pipefail\n" + BPT + script],
        place,
        BPT_URL=service.url,
        BPT_API_KEY=customer.key,
        PYTHONPATH=str(README.parent),
    )
    assert "photo.jpg" in said
    with customer.http() as http:
        moves = http.get("/v1/prompt-sets/flowers/aliases/production/history").json()["data"]
        archived = http.get("/v1/prompt-sets/flowers/versions", params={"archived": True}).json()["data"]
    assert [(move["from_version"], move["to_version"]) for move in moves] == [(2, 1), (1, 2), (None, 1)]
    assert [version["version"] for version in archived] == [2]


def test_the_table_of_settings_is_up_to_date() -> None:
    readme = README.read_text()
    assert table() in readme, "run: python -m tests.settings_table"
    assert with_table(readme) == readme


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
