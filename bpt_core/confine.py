"""Takes from a process what code that reads untrusted bytes has no need of. Linux; nothing here can be undone."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from enum import StrEnum

_CPU_GRACE_SECONDS = 5  # from SIGXCPU to SIGKILL


class Protection(StrEnum):
    LIMITS = "limits"  # setrlimit(2)
    NETWORK = "network"  # seccomp(2): no sockets
    PROGRAMS = "programs"  # seccomp(2): no exec, no hand on other processes
    PRIVILEGES = "privileges"  # capabilities(7): root is nobody in particular
    PROCESSES = "processes"  # landlock(7): /proc and signals do not reach processes outside
    FILES = "files"  # landlock(7): nothing on disk can be opened, made or removed


_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER, _SECCOMP_ALL_THREADS = 1, 1
_RET_ALLOW = 0x7FFF0000
_RET_EPERM = 0x00050000 | errno.EPERM

# Classic BPF (linux/bpf_common.h): load a word of struct seccomp_data, compare, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # offsets in struct seccomp_data
_X32_CALLS = 0x40000000  # x86_64 only: the same calls under other numbers

# AUDIT_ARCH_* (linux/audit.h), and numbers of system calls (asm/unistd_64.h, asm-generic/unistd.h).
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NETWORK_CALLS = {
    # socket, socketpair, bind, connect, listen, accept, accept4, sendto, sendmsg, sendmmsg
    "x86_64": (41, 53, 49, 42, 50, 43, 288, 44, 46, 307),
    "aarch64": (198, 199, 200, 203, 201, 202, 242, 206, 211, 269),
}
_RING_CALLS = (425, 426, 427)  # io_uring_setup, _enter, _register: sockets without a system call of their own
_PROGRAM_CALLS = {
    # execve, execveat, ptrace, process_vm_readv, process_vm_writev
    "x86_64": (59, 322, 101, 310, 311),
    "aarch64": (221, 281, 117, 270, 271),
}
_PIDFD_GETFD = 438  # another process's open files

# landlock(7): the same numbers everywhere.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_ASK_VERSION = 1
_LANDLOCK_EXECUTE, _LANDLOCK_SCOPE_SIGNALS = 1, 2
_LANDLOCK_FILES = ((1, 0x1FFF), (2, 0x2000), (3, 0x4000))  # rights to files, by the version that knows them
_LANDLOCK_TRUNCATE = 3  # before, truncate(2) was nobody's concern

_CAPABILITY_VERSION = 0x20080522


class _Filter(ctypes.Structure):  # struct sock_fprog
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(
    *,
    cpu_seconds: int | None = None,
    memory_bytes: int | None = None,
    open_files: int | None = None,
    file_bytes: int | None = None,
    network: bool = False,
    programs: bool = False,
    files: bool = True,
) -> frozenset[Protection]:
    """This process and all it will start, until they end -> which protections hold. Call it before threads start.

    cpu_seconds: SIGXCPU then, SIGKILL 5 s later. memory_bytes: of address space. open_files: as many descriptors.
    file_bytes: no file grows beyond. Core files are off. A limit that is lower already stays.
    Without `network` sockets fail with PermissionError. Without `programs` so do exec, signals to other processes and
    reaching into them, and privileges of root are gone. Without `files` so does all that opens, makes or removes a
    file; those that are open stay. Where the kernel cannot do that, or this is no Linux on x86_64 or aarch64, it goes
    on without.
    """
    _limit(resource.RLIMIT_CORE, 0)
    if cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + _CPU_GRACE_SECONDS)
    if memory_bytes is not None:
        _limit(resource.RLIMIT_AS, memory_bytes)
    if open_files is not None:
        _limit(resource.RLIMIT_NOFILE, open_files)
    if file_bytes is not None:
        _limit(resource.RLIMIT_FSIZE, file_bytes)
    held = {Protection.LIMITS}
    machine = platform.machine()
    if (network and programs and files) or machine not in _ARCHITECTURES or sys.platform != "linux":
        return frozenset(held)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.maxsize < 1 << 32 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return frozenset(held)
    if not programs and _give_up_privileges(libc):
        held.add(Protection.PRIVILEGES)
    version = 0 if programs and files else _enter_domain(libc, files=files)
    if version:
        held |= _without({Protection.PROCESSES: programs, Protection.FILES: files or version < _LANDLOCK_TRUNCATE})
    if not (network and programs) and _refuse(libc, machine, _filter(machine, network=network, programs=programs)):
        held |= _without({Protection.NETWORK: network, Protection.PROGRAMS: programs})
    return frozenset(held)


def _without(allowed: dict[Protection, bool]) -> set[Protection]:
    return {protection for protection, is_allowed in allowed.items() if not is_allowed}


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Never raises a limit: only root might, and what stands there was meant."""
    now = resource.getrlimit(kind)
    wanted = (soft, soft if hard is None else hard)
    resource.setrlimit(kind, (_lower(wanted[0], *now), _lower(wanted[1], now[1])))


def _lower(*limits: int) -> int:
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)


def _filter(machine: str, *, network: bool, programs: bool) -> bytes:
    """The program of seccomp(2): calls that are not to be made fail with EPERM, all others go ahead."""
    refused: list[int] = []
    if not network:
        refused += [*_NETWORK_CALLS[machine], *_RING_CALLS]
    if not programs:
        refused += [*_PROGRAM_CALLS[machine], _PIDFD_GETFD]
    # Each test jumps over what follows it to the one refusal at the end, or falls through to the next.
    tests = [(_IF_EQUAL, number) for number in refused]
    if machine == "x86_64":
        tests.insert(0, (_IF_AT_LEAST, _X32_CALLS))
    to_the_end = range(len(tests), 0, -1)
    return b"".join(
        [
            _instruction(_LOAD, _ARCHITECTURE_AT),
            # 32-bit calls have numbers of their own.
            _instruction(_IF_EQUAL, _ARCHITECTURES[machine], otherwise=len(tests) + 2),
            _instruction(_LOAD, _NUMBER_AT),
            *(_instruction(*test, then=jump) for test, jump in zip(tests, to_the_end, strict=True)),
            _instruction(_RETURN, _RET_ALLOW),
            _instruction(_RETURN, _RET_EPERM),
        ]
    )


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)  # struct sock_filter


def _refuse(libc: ctypes.CDLL, machine: str, program: bytes) -> bool:
    held = _Filter(len(program) // 8, program)
    call = ctypes.c_long(_SECCOMP[machine])
    flags = ctypes.c_uint(_SECCOMP_ALL_THREADS)
    return bool(libc.syscall(call, ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), flags, ctypes.byref(held)) == 0)


def _give_up_privileges(libc: ctypes.CDLL) -> bool:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    return bool(libc.capset(header, bytes(24)) == 0)  # effective, permitted, inheritable: two words of each


def _enter_domain(libc: ctypes.CDLL, *, files: bool) -> int:
    """Landlock -> its version; 0 where there is none.

    Memory, files and environment of processes outside the domain are out of reach, also through /proc. Every domain
    does that. It must forbid something as well: if not all of `files`, then running programs, so that whoever allows
    programs and not files gets neither. From version 6 on (Linux 6.12) signals stay inside, too.
    """
    create = ctypes.c_long(_LANDLOCK_CREATE_RULESET)
    version = libc.syscall(create, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_ASK_VERSION))
    forbidden = _LANDLOCK_EXECUTE if files else sum(rights for since, rights in _LANDLOCK_FILES if version >= since)
    attributes = (ctypes.c_uint64 * 3)(forbidden, 0, _LANDLOCK_SCOPE_SIGNALS)  # files, network, scope
    size = ctypes.c_size_t(24 if version >= 6 else 8)
    rules = libc.syscall(create, ctypes.byref(attributes), size, ctypes.c_uint32(0))
    if rules < 0:
        return 0
    try:
        entered = libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), rules, ctypes.c_uint32(0)) == 0
        return int(version) if entered else 0
    finally:
        os.close(rules)
