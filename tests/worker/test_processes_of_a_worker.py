"""What a worker's processes may know and load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bpt_store.settings import Settings


def environment_with(settings: Settings) -> dict[str, str]:
    return {
        "BPT_DATABASE_URL": settings.database_url.get_secret_value(),
        "BPT_SYSTEM_DATABASE_URL": settings.system_database_url.get_secret_value(),
        "BPT_REDIS_URL": settings.redis_url.get_secret_value(),
        "BPT_OBJECTS_URL": settings.objects_url,
    }


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("worker.tasks, worker.sweep", ["torch"]),
        ("worker.webhooks", ["torch", "fastapi"]),
        ("worker.packer", ["torch", "sqlalchemy"]),
        ("worker.trainer, worker.predictor", ["sqlalchemy", "celery"]),
    ],
)
def test_a_process_does_not_load_what_is_not_its_business(
    settings: Settings, modules: str, forbidden: list[str]
) -> None:
    """What several do not load together, none of them loads."""
    code = f"import sys, {modules}; print(*(name for name in {forbidden} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment_with(settings), check=True, capture_output=True)
    assert done.stdout.split() == []


def test_the_api_in_its_own_role_does_not_load_torch(settings: Settings) -> None:
    code = "import sys; from api.app import create_app; create_app(); sys.exit('torch' in sys.modules)"
    environment = {**environment_with(settings), "BPT_ROLE": "api"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_child_whose_supervisor_is_gone_already_does_not_begin() -> None:
    arguments = [
        sys.executable,
        "-c",
        "from worker import packer; packer.main()",
        "/nowhere/job.json",
        "1",
        "999999999",
    ]
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_child_whose_last_word_nobody_reads_ends_all_the_same(settings: Settings) -> None:
    """Its parent had begun to stop: the worker would end 30 s later, long after most deployments had killed it."""
    code = """
import sys, time
import worker.app
from billiard.pool import Worker
from multiprocessing import Value
child = Worker.__new__(Worker)
child.on_ready_counter = Value("i", 0)
began = time.monotonic()
child._ensure_messages_consumed(completed=1)
sys.exit(time.monotonic() - began > 10)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment_with(settings), check=False, timeout=60)
    assert done.returncode == 0
