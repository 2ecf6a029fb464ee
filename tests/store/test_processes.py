"""bpt_store.processes with real processes."""

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bpt_store.processes import become_unprivileged, die_with_parent, stop

PATIENCE_SECONDS = 10.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its user")


def lives(pid: int) -> bool:
    # Who adopts orphans may be slow to reap them.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shell(script: str) -> subprocess.Popen[bytes]:
    """A shell that leads a process group and has said `ready`."""
    process = subprocess.Popen(
        ["sh", "-c", script],
        stdout=subprocess.PIPE,
        start_new_session=True,
        # A shell cannot trap what was ignored when it began, as in tests that were started in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
    return process


def test_stop_lets_a_process_end_in_its_own_way() -> None:
    process = shell("trap 'exit 7' INT; echo ready; while :; do sleep 0.01; done")
    assert stop(process, signal_number=signal.SIGINT, patience_seconds=PATIENCE_SECONDS) == 7


def test_stop_kills_what_does_not_listen() -> None:
    process = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    assert stop(process, patience_seconds=0.1) == -signal.SIGKILL


def test_stop_kills_a_process_without_a_group_of_its_own_and_not_ours() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert stop(process, signal_number=0, patience_seconds=0) == -signal.SIGKILL


def test_stop_leaves_nobody_of_the_group_behind(tmp_path: Path) -> None:
    process = shell(f"sleep 60 & echo $! >{tmp_path}/pid; trap 'exit 0' TERM; echo ready; wait")
    grandchild = int((tmp_path / "pid").read_text())
    assert stop(process, patience_seconds=PATIENCE_SECONDS) == 0
    wait_until(lambda: not lives(grandchild))


def test_stop_of_a_reaped_process_tells_its_status_and_signals_nobody() -> None:
    process = subprocess.Popen(["sh", "-c", "exit 3"])
    process.wait()
    assert stop(process, patience_seconds=0) == 3


@pytest.fixture
def orphan_maker() -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "import subprocess, signal, sys, time; from bpt_store.processes import die_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=die_with_parent(signal.SIGTERM))\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        yield parent
        parent.kill()


def test_a_child_dies_with_its_killed_parent(orphan_maker: subprocess.Popen[bytes]) -> None:
    assert orphan_maker.stdout is not None
    child = int(orphan_maker.stdout.readline())
    assert lives(child)
    orphan_maker.kill()
    wait_until(lambda: not lives(child))


def test_a_child_whose_parent_is_gone_already_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # never the parent which the child will find
        preparation = die_with_parent(signal.SIGTERM)
    with subprocess.Popen(["sleep", "60"], preexec_fn=preparation) as child:
        assert child.wait(PATIENCE_SECONDS) == 1


def fields_of_a_child(preparation: Callable[[], None]) -> dict[str, list[str]]:
    # Not this interpreter: it may be out of nobody's reach.
    output = subprocess.run(
        ["cat", "/proc/self/status"], preexec_fn=preparation, stdout=subprocess.PIPE, cwd="/", check=True
    ).stdout.decode()
    return {name: value.split() for name, value in (line.split(":", 1) for line in output.splitlines())}


@as_root
@pytest.mark.parametrize("closed", [False, True])
def test_an_unprivileged_child_of_root_gets_one_capability_if_it_needs_it(tmp_path: Path, closed: bool) -> None:
    nobody = pwd.getpwnam("nobody")
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o700)
    (directory / "file").touch()
    for path in [directory, directory / "file"] if closed else [Path("/"), Path("/proc/self/status")]:
        fields = fields_of_a_child(become_unprivileged([Path("/"), path]))
        assert fields["Uid"] == [str(nobody.pw_uid)] * 4
        assert fields["Gid"] == [str(nobody.pw_gid)] * 4
        assert fields["Groups"] == []
        # No access by the back door either: all sets are down to the one bit.
        capabilities = {int(fields[name][0], 16) for name in ("CapPrm", "CapEff", "CapAmb")}
        assert capabilities == {2 if closed else 0}
    assert directory.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_unprivileged_child_that_cannot_reach_a_path_is_refused_in_advance(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="start the service as an ordinary user, or move these"):
        become_unprivileged([Path("/"), tmp_path / "missing"])


def test_an_ordinary_user_starts_children_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert fields_of_a_child(become_unprivileged([Path("/missing")]))["Uid"] == [str(os.getuid())] * 4
