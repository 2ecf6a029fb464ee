"""Child processes: that they do not outlive their parent, and that they need not be root."""

import ctypes
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 4
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_POLL_SECONDS = 0.01

# Loaded here and not in the child: between fork and exec no lock may be taken that another thread held.
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int) -> Callable[[], None]:
    """A `preexec_fn` for `subprocess.Popen`: the kernel signals the child when its parent ends.

    Call it in the process that will be the parent. To Linux the parent is the *thread* that starts the
    child: when that thread ends, the signal is sent although the process lives on. A child that changes its
    user must do so first (Popen's `user=` does), or the kernel forgets the wish. Raises OSError in the child
    where Linux refuses.
    """
    parent = os.getpid()
    return lambda: end_with(parent, signal_number)


def end_with(parent: int, signal_number: int) -> None:
    """Called in a child, exec'd or not: be signalled when the process `parent`, which started us, ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))
    # A parent that ended before the call above sends nothing any more.
    if os.getppid() != parent:
        os._exit(1)


def show_as(name: str) -> None:
    """What `top` and `ps` (as comm) call this process; 15 letters are kept."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0))


def stop(process: subprocess.Popen[bytes], *, signal_number: int = signal.SIGTERM, patience_seconds: float) -> int:
    """Ask the process to end, wait up to `patience_seconds`, then kill it; returns Popen's exit status.

    If it leads a process group (`start_new_session=True`), whatever is left of that group is killed, too,
    even after an orderly end. Does nothing about a process that was reaped before. No other thread may be
    waiting for it.
    """
    if process.returncode is not None:
        return process.returncode
    # Until wait() below the process stays a zombie, so that its number cannot belong to a stranger; for that
    # reason not send_signal(), which reaps.
    os.kill(process.pid, signal_number)
    deadline = time.monotonic() + patience_seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() >= deadline:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(_POLL_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def unprivileged_user() -> pwd.struct_passwd | None:
    """As root, the user for programs that refuse to run as root; None: they run as we do. May raise KeyError."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def become_unprivileged(paths: list[Path]) -> Callable[[], None]:
    """A `preexec_fn` for `subprocess.Popen`: as root, become `unprivileged_user`; otherwise do nothing.

    The child will be able to read the files and pass the directories among `paths`: if their modes forbid it,
    it gets the capability CAP_DAC_OVERRIDE. Raises PermissionError where that is impossible, KeyError without
    that user.
    """
    if (user := unprivileged_user()) is None:
        return lambda: None
    for any_file in (False, True):
        preparation = _becoming(user, any_file=any_file)
        if _can_reach(preparation, paths):
            return preparation
    raise PermissionError(
        f"as root we run this as the user {user.pw_name}, who cannot reach all of {', '.join(map(str, paths))} and "
        "cannot be given the capability CAP_DAC_OVERRIDE here: start the service as an ordinary user, or move "
        "these to where every user may pass"
    )


def _becoming(user: pwd.struct_passwd, *, any_file: bool) -> Callable[[], None]:
    def in_child() -> None:
        if any_file:
            # Keeps the capabilities over the change of user; and without it access(2), by which PostgreSQL
            # looks for its own programs, would ignore the one we are after.
            _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        if any_file:
            mask = 1 << _CAP_DAC_OVERRIDE
            # Effective, permitted, inheritable: the low halves, then the high ones. Only ambient ones survive
            # exec, and those must be in the other sets first.
            sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
            _check(_libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), sets))
            _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))

    return in_child


def _can_reach(preparation: Callable[[], None], paths: list[Path]) -> bool:
    # Tried out in a child: only the kernel knows all the rules (modes, access lists, namespaces).
    child = os.fork()
    if child == 0:
        try:
            preparation()
            reached = [os.access(path, os.X_OK if path.is_dir() else os.R_OK) for path in paths]
            os._exit(0 if all(reached) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
