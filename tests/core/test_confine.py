"""Each test confines a process of its own: there is no way back."""

from __future__ import annotations

import errno
import json
import os
import platform
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bpt_core import confine

BEGIN = """
import ctypes, errno, json, os, resource, signal, socket, subprocess, sys, threading
from bpt_core.confine import confine

def outcome(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except MemoryError:
        return "MemoryError"
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""


def said_after(script: str) -> Any:
    """What a process prints as JSON."""
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}, reason="no filter for this machine"
)


@linux
def test_a_confined_process_has_no_network_and_starts_no_programs() -> None:
    said = said_after("""
before = socket.socketpair()
bound = socket.socket(); bound.bind(("127.0.0.1", 0)); bound.listen()
unbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held = confine()
print(json.dumps([sorted(held), {
    "socket": outcome(socket.socket),
    "unix": outcome(socket.socket, socket.AF_UNIX),
    "socketpair": outcome(socket.socketpair),
    "connect": outcome(socket.create_connection, bound.getsockname()),
    "connect before": outcome(unbound.connect, bound.getsockname()),
    "bind": outcome(unbound.bind, ("127.0.0.1", 0)),
    "accept": outcome(bound.accept),
    "listen": outcome(bound.listen),
    "sendto": outcome(unbound.sendto, b"x", bound.getsockname()),
    "sendmsg": outcome(before[0].sendmsg, [b"x"]),
    "exec": outcome(os.execv, sys.executable, [sys.executable, "-c", ""]),
    "spawn": outcome(subprocess.run, [sys.executable, "-c", ""]),
    "posix_spawn": outcome(os.posix_spawn, "/bin/true", ["true"], {}),
}]))
""")
    assert {"limits", "network", "programs", "privileges"} <= set(said[0])
    assert said[1] == dict.fromkeys(said[1], "EPERM")


@linux
def test_calls_that_python_has_no_name_for_are_refused_too() -> None:
    # sendmmsg, execveat, ptrace, process_vm_readv, process_vm_writev; io_uring_*, pidfd_getfd
    own = (307, 322, 101, 310, 311) if platform.machine() == "x86_64" else (269, 281, 117, 270, 271)
    numbers = [*own, 425, 426, 427, 438]
    said = said_after(f"""
held = confine()
libc = ctypes.CDLL(None, use_errno=True)
zeros = [ctypes.c_long(0)] * 6
print(json.dumps([[libc.syscall(ctypes.c_long(n), *zeros), ctypes.get_errno()] for n in {numbers}]))
""")
    assert said == [[-1, errno.EPERM]] * len(numbers)


@linux
def test_children_are_confined_as_well() -> None:
    said = said_after("""
confine(programs=True)
code = '''
import socket
try:
    socket.socket()
except PermissionError:
    print("refused", end="")
'''
print(json.dumps(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout))
""")
    assert said == "refused"


@linux
def test_threads_that_run_already_are_confined_as_well() -> None:
    said = said_after("""
confined, said = threading.Event(), []
thread = threading.Thread(target=lambda: (confined.wait(), said.append(outcome(socket.socket))))
thread.start()
confine()
confined.set()
thread.join()
print(json.dumps(said))
""")
    assert said == ["EPERM"]


@linux
@pytest.mark.parametrize(
    ("allowed", "held", "refused"),
    [
        ("network=True", {"limits", "programs", "privileges"}, {"spawn"}),
        ("programs=True", {"limits", "network"}, {"socket"}),
        ("network=True, programs=True", {"limits"}, set()),
    ],
)
def test_what_is_allowed_stays_possible(allowed: str, held: set[str], refused: set[str]) -> None:
    said = said_after(f"""
held = confine({allowed})
spawn = outcome(subprocess.run, [sys.executable, "-S", "-c", ""])
print(json.dumps([sorted(held), {{"socket": outcome(socket.socket), "spawn": spawn}}]))
""")
    assert set(said[0]) - {"processes"} == held
    assert ("processes" in said[0]) <= ("spawn" in refused)
    assert {name for name, outcome in said[1].items() if outcome == "EPERM"} == refused
    assert set(said[1].values()) <= {"EPERM", "done"}


@linux
def test_other_processes_are_out_of_reach() -> None:
    said = said_after("""
parent = os.getpid()
private = [f"/proc/{parent}/{name}" for name in ("environ", "mem", "maps")]
readable = [outcome(open, each) for each in private]
read, write = os.pipe()
child = os.fork()
if child == 0:
    held = confine()
    os.write(write, json.dumps(["processes" in held, [outcome(open, each) for each in private]]).encode())
    os._exit(0)
os.waitpid(child, 0)
print(json.dumps([readable, *json.loads(os.read(read, 1000))]))
""")
    if not said[1]:
        pytest.skip("this kernel has no Landlock")
    assert said == [["done"] * 3, True, ["EACCES"] * 3]


@linux
@pytest.mark.parametrize("more", ["", ", network=True", ", programs=True"])
def test_without_files_nothing_on_disk_can_be_opened_made_or_removed(more: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    said = said_after(f"""
directory = {str(tmp_path)!r}
before = open(directory + "/there")
held = confine(files=False{more})
version = ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
print(json.dumps([version, "files" in held, before.read(), {{
    "read": outcome(open, directory + "/there"),
    "list": outcome(os.listdir, directory),
    "write": outcome(os.open, directory + "/there", os.O_WRONLY),
    "truncate": outcome(os.truncate, directory + "/there", 0),
    "make": outcome(open, directory + "/new", "w"),
    "make a folder": outcome(os.mkdir, directory + "/new"),
    "link": outcome(os.symlink, directory, directory + "/new"),
    "remove": outcome(os.unlink, directory + "/there"),
    "proc": outcome(open, "/proc/self/environ"),
}}]))
""")
    if said[0] < 3:
        pytest.skip("this kernel has no Landlock, or one that lets files be cut")
    assert said[1:3] == [True, "kept"]
    assert said[3] == dict.fromkeys(said[3], "EACCES")
    assert there.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [there]


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges")
def test_root_gives_up_its_privileges(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("private")
    theirs.chmod(0)
    said = said_after(f"""
path = {str(theirs)!r}
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
before = [outcome(open, path), outcome(os.chown, path, 1, 1), outcome(os.chown, path, 0, 0)]
held = confine()
def more():
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
    except ValueError:
        raise PermissionError(errno.EPERM, "")
print(json.dumps([before, "privileges" in held, outcome(open, path), outcome(os.chown, path, 1, 1), outcome(more)]))
""")
    assert said == [["done"] * 3, True, "EACCES", "EPERM", "EPERM"]


@linux
def test_a_signal_to_another_process_is_refused_where_the_kernel_can_do_that() -> None:
    said = said_after("""
libc = ctypes.CDLL(None, use_errno=True)
version = libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
confine()
print(json.dumps([version, outcome(os.kill, os.getppid(), 0), outcome(os.kill, os.getpid(), 0)]))
""")
    if said[0] < 6:
        pytest.skip("this kernel's Landlock knows no signals")
    assert said[1:] == ["EPERM", "done"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there are there other numbers for the same calls")
def test_the_same_calls_under_other_numbers_are_refused() -> None:
    said = said_after("""
import mmap
confine()
libc = ctypes.CDLL(None, use_errno=True)
x32 = libc.syscall(ctypes.c_long(0x40000000 + 39)), ctypes.get_errno()  # getpid
pid = os.fork()
if pid == 0:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, 20 (getpid); int 0x80; ret
    getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    os._exit(getpid() == -errno.EPERM)
_, status = os.waitpid(pid, 0)
print(json.dumps([*x32, status]))
""")
    assert said[:2] == [-1, errno.EPERM]
    killed_without_32_bits = 11  # SIGSEGV
    assert said[2] in {1 << 8, killed_without_32_bits}


def test_limits_are_set_and_bite(tmp_path: Path) -> None:
    said = said_after(f"""
confine(cpu_seconds=100, memory_bytes=1 << 30, open_files=20, file_bytes=0)
kinds = ("CPU", "AS", "NOFILE", "FSIZE", "CORE")
limits = [resource.getrlimit(getattr(resource, "RLIMIT_" + kind)) for kind in kinds]
with open({str(tmp_path / "file")!r}, "wb", 0) as file:
    print(json.dumps([limits, {{
        "memory": outcome(bytearray, 1 << 30),
        "file": outcome(file.write, b"x"),
        "descriptors": outcome(lambda: [os.dup(1) for _ in range(20)]),
    }}]))
""")
    assert said[0] == [[100, 105], [1 << 30, 1 << 30], [20, 20], [0, 0], [0, 0]]
    assert said[1] == {"memory": "MemoryError", "file": "EFBIG", "descriptors": "EMFILE"}


def test_limits_that_are_not_named_stay_as_they_are_and_lower_ones_too() -> None:
    kinds = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)
    said = said_after(f"""
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 40))
confine(open_files=35)
confine(open_files=50)
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), *(resource.getrlimit(kind) for kind in {kinds})]))
""")
    assert said == [[30, 35], *(list(resource.getrlimit(kind)) for kind in kinds)]


@linux
def test_a_process_that_may_do_everything_is_left_as_it_was() -> None:
    said = said_after("""
confine(network=True, programs=True)
print(json.dumps([line for line in open("/proc/self/status") if line.startswith("NoNewPrivs")]))
""")
    assert said == ["NoNewPrivs:\t0\n"]


def test_where_there_is_no_filter_it_goes_on_without() -> None:
    said = said_after("""
import platform
platform.machine = lambda: "riscv64"
print(json.dumps([sorted(confine()), outcome(socket.socket)]))
""")
    assert said == [["limits"], "done"]


def verdict(program: bytes, architecture: int, number: int) -> int:
    """What the kernel makes of a filter: an interpreter of the four instructions that are used."""
    instructions: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    memory = {0: number, 4: architecture}
    at = accumulator = 0
    while True:
        code, then, otherwise, value = instructions[at]
        at += 1
        if code == 0x20:
            accumulator = memory[value]
        elif code == 0x06:
            return value
        else:
            met = accumulator == value if code == 0x15 else accumulator >= value
            assert code in {0x15, 0x35}
            at += then if met else otherwise


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("programs", [True, False])
def test_the_filter_refuses_the_listed_calls_and_no_other(machine: str, network: bool, programs: bool) -> None:
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    filter_ = confine._filter(machine, network=network, programs=programs)
    architecture = confine._ARCHITECTURES[machine]
    refused = {number for number in range(1024) if verdict(filter_, architecture, number) == refuse}
    expected: set[int] = set()
    if not network:
        expected |= {*confine._NETWORK_CALLS[machine], *confine._RING_CALLS}
    if not programs:
        expected |= {*confine._PROGRAM_CALLS[machine], confine._PIDFD_GETFD}
    assert refused == expected
    assert verdict(filter_, architecture, 0) == allow
    assert verdict(filter_, architecture ^ 1, 0) == refuse
    assert verdict(filter_, architecture, 0x40000000) == (refuse if machine == "x86_64" else allow)
