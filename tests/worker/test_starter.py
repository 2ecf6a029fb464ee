"""Processes of jobs: each one new, with nothing to give away, and none outlives who asked for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.service import eventually
from worker.starter import Started, Starter, StarterLost

MODULE = """
import os, sys, signal, subprocess, time
from pathlib import Path
from worker.child import Child
here = Path(__file__).parent
with (here / "imports").open("a") as file:
    file.write("once\\n")
def main():
    child = Child.begin()
    child.event("begun", {"pid": os.getpid(), "group": os.getpgid(0)})
    exec(child.job["do"])
"""
PATIENCE = 20.0


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    (tmp_path / "labourer.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(Path.cwd()))))
    starter = Starter("labourer")
    yield starter
    starter.close()


@contextmanager
def begun(starter: Starter, directory: Path, do: str) -> Iterator[tuple[Started, Callable[[], str]]]:
    """A process that runs statements, and how to read what it has said so far, or all where it ended."""
    job_file = directory / "job file.json"
    job_file.write_text(json.dumps({"do": do}))
    read_end, write_end = os.pipe()
    with (directory / "log").open("wb") as log:
        process = starter.start(job_file, log=log, events=write_end)
    os.close(write_end)
    with os.fdopen(read_end) as events:
        yield process, events.readline
        process.stop(0.1)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def assert_goes(pid: int) -> None:
    eventually(lambda: gone(pid) or None, seconds=2, what="the end of a process")


def test_each_job_has_a_process_of_its_own_and_imports_happen_once(starter: Starter, tmp_path: Path) -> None:
    seen = []
    for number in range(3):
        with begun(starter, tmp_path, f"print('log', {number}); sys.exit({number})") as (process, line):
            assert f'"pid": {process.pid}, "group": {process.pid}' in line()
            assert process.wait(PATIENCE) == number
            assert line() == ""
        assert (tmp_path / "log").read_text() == f"log {number}\n"
        seen.append(process.pid)
    assert len(set(seen)) == 3
    assert (tmp_path / "imports").read_text() == "once\n"


def test_what_a_process_changes_the_next_one_does_not_see(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "os.environ['LEFT'] = '1'; sys.modules['json'] = None") as (process, _):
        assert process.wait(PATIENCE) == 0
    with begun(starter, tmp_path, "import json; assert 'LEFT' not in os.environ") as (process, _):
        assert process.wait(PATIENCE) == 0


def test_a_process_that_breaks_says_why_in_its_log(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "raise ValueError('what is this')") as (process, _):
        assert process.wait(PATIENCE) == 1
    assert "ValueError: what is this" in (tmp_path / "log").read_text()


def test_a_signal_shows_in_the_status(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)") as (process, _):
        assert process.wait(PATIENCE) == -signal.SIGSEGV


def test_a_process_gets_no_credentials_and_no_files_but_its_own(
    starter: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BPT_DATABASE_URL", "BPT_REDIS_URL", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    look = "print('canary' in os.environ.values(), os.environ['OMP_NUM_THREADS'], sorted(os.listdir('/proc/self/fd')))"
    with begun(starter, tmp_path, look) as (process, _):
        process.wait(PATIENCE)
    events, listing = "3", "4"
    said = (tmp_path / "log").read_text()
    assert said.startswith("False 1 ")
    assert len(said[len("False 1 ") :].split(",")) == len(["0", "1", "2", events, listing])


def test_a_process_is_called_after_what_it_does(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "time.sleep(60)") as (process, line):
        line()
        assert psutil.Process(process.pid).name() == "labourer"


def test_stopping_asks_first_and_kills_who_does_not_listen(starter: Starter, tmp_path: Path) -> None:
    polite = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); child.event('ready', {}); time.sleep(60)"
    with begun(starter, tmp_path, polite) as (process, line):
        line(), line()
        process.stop(PATIENCE)
        assert process.status == 7
        assert gone(process.pid)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); child.event('ready', {}); time.sleep(60)"
    with begun(starter, tmp_path, deaf) as (process, line):
        line(), line()
        process.stop(0.1)
        assert process.status == -signal.SIGKILL
        assert gone(process.pid)


def test_nothing_of_its_group_is_left(starter: Starter, tmp_path: Path) -> None:
    do = "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)"
    with begun(starter, tmp_path, do) as (process, _):
        assert process.wait(PATIENCE) == 0
        assert_goes(int((tmp_path / "log").read_text()))


def test_a_process_that_goes_on_when_its_time_is_over_is_still_running(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "time.sleep(60)") as (process, line):
        line()
        with pytest.raises(TimeoutError):
            process.wait(0.05)
        assert not gone(process.pid)
    assert gone(process.pid)


def test_a_process_ends_when_its_input_closes(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "time.sleep(60)") as (process, line):
        line()
        os.dup2(os.open(os.devnull, os.O_RDONLY), process._input)
        assert process.wait(PATIENCE) == 1


def test_a_starter_that_was_killed_takes_its_process_along_and_another_takes_its_place(
    starter: Starter, tmp_path: Path
) -> None:
    with begun(starter, tmp_path, "time.sleep(60)") as (process, line):
        line()
        assert starter._popen is not None
        starter._popen.kill()
        assert_goes(process.pid)
        with pytest.raises(StarterLost):
            process.wait(PATIENCE)
    with begun(starter, tmp_path, "sys.exit(3)") as (process, _):
        assert process.wait(PATIENCE) == 3


def test_a_starter_that_cannot_import_is_an_error_and_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = Starter("nowhere.labourer")
    with pytest.raises(StarterLost), begun(starter, tmp_path, ""):
        pass
    starter.close()


def test_a_starter_that_is_frozen_is_killed_with_what_it_started(starter: Starter, tmp_path: Path) -> None:
    with begun(starter, tmp_path, "time.sleep(60)") as (process, line):
        line()
        assert starter._popen is not None
        os.kill(starter._popen.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGSTOP)
        process.stop(0.1)
        assert_goes(process.pid)


def test_all_end_with_the_supervisor(starter: Starter, tmp_path: Path) -> None:
    """It is killed, and cannot tell anybody."""
    script = f"""
import os, signal
from pathlib import Path
from tests.worker.test_starter import begun
from worker.starter import Starter
starter = Starter("labourer")
deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
with begun(starter, Path({str(tmp_path)!r}), deaf) as (process, line):
    line()
    print(process.pid, starter._popen.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for pid in done.stdout.split():
        assert_goes(int(pid))
