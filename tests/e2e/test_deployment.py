"""docker-compose.yml, Dockerfile and docs/deployment.md, held against the service without a container engine.

Each service's own command runs here as a process, from the package as the image would install it, in an empty
directory, with the environment that the file gives it; what the containers' network and volumes would provide is
PostgreSQL, Redis and directories of the tests.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url, text

from bpt_store.embedded import EmbeddedServices
from bpt_store.settings import Settings
from bpt_store.up import worker_command
from tests.conftest import PASSWORD
from tests.service import eventually

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CADDYFILE: str = COMPOSE["configs"]["caddyfile"]["content"]
DOCS = (ROOT / "docs" / "deployment.md").read_text()

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<word>[^{}]*))?\}")
INTERNAL_ROUTES = {"/metrics"}
HEALTH_ROUTES = {"/healthz", "/readyz", "/metrics"}
STOP_SECONDS = 10
QUIET = {"sweep", "webhooks"}  # they listen to nothing that could be asked

live = pytest.mark.slow  # these start the services


def interpolate(value: object, variables: dict[str, str]) -> str:
    """What Compose makes of a value in the file."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, operator, word = match["name"], match["operator"], match["word"]
        if variables.get(name):
            return variables[name]
        assert operator == ":-", f"{name} is needed: {word}"
        return word

    return VARIABLE.sub(replace, str(value).lower() if isinstance(value, bool) else str(value))


def variables_in(value: object) -> list[tuple[str, str | None, str | None]]:
    """(name, operator, word) of each variable anywhere in `value`."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in variables_in(part)]
    if isinstance(value, list):
        return [found for part in value for found in variables_in(part)]
    if not isinstance(value, str):
        return []
    return [(m["name"], m["operator"], m["word"]) for m in VARIABLE.finditer(value) if m["name"]]


def settings_of(name: str) -> dict[str, str]:
    environment: dict[str, str] = SERVICES[name].get("environment", {})
    return {variable: value for variable, value in environment.items() if variable.startswith("BPT_")}


def image_command() -> list[str]:
    found = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert len(found) == 1
    command: list[str] = json.loads(found[0])
    return command


def command_of(name: str) -> list[str]:
    command: list[str] = SERVICES[name].get("command") or image_command()
    return command


def copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        found += line.split()[:-1]
    return found


# The file


def test_every_setting_has_its_variable_and_every_variable_its_setting() -> None:
    named = {variable for name in SERVICES for variable in settings_of(name)}
    assert named == {f"BPT_{field.upper()}" for field in Settings.model_fields}


def test_a_default_in_the_file_is_the_default_of_the_setting() -> None:
    needed: dict[str, Any] = dict.fromkeys(("database_url", "system_database_url", "redis_url"), SecretStr("x"))
    needed["objects_url"] = "file:///x"
    tunable = set()
    for name in OURS:
        for variable, value in settings_of(name).items():
            field = variable.removeprefix("BPT_").lower()
            own = [found for found in variables_in(value) if found[0].startswith("BPT_")]
            if not own or field in needed:
                continue
            assert own == [(variable, ":-", own[0][2])]
            tunable.add(field)
            read = Settings(**{**needed, field: own[0][2]})
            assert getattr(read, field) == Settings.model_fields[field].default, variable
    set_by_the_file = {"role", "work_directory", "weights_directory", "owner_database_url", "superuser_database_url"}
    assert tunable == set(Settings.model_fields) - set(needed) - set_by_the_file


def test_all_processes_share_their_settings_but_for_the_role_and_what_only_migrations_may_know() -> None:
    own = {"BPT_ROLE"}
    owners = {"BPT_OWNER_DATABASE_URL", "BPT_SUPERUSER_DATABASE_URL"}
    common = {key: value for key, value in settings_of("sweep").items() if key not in own}
    for name in OURS:
        settings = settings_of(name)
        assert common.items() <= settings.items(), name
        assert set(settings) - set(common) == (
            owners if name == "migrate" else own if "BPT_ROLE" in settings else set()
        )
    passwords = {
        name: {found[0] for found in variables_in(service)} & {"POSTGRES_SUPERUSER_PASSWORD", "POSTGRES_OWNER_PASSWORD"}
        for name, service in SERVICES.items()
    }
    assert {name for name, known in passwords.items() if known} == {"migrate", "postgres"}


def test_no_secret_has_a_default_or_a_value() -> None:
    secrets = [found for found in variables_in(COMPOSE) if re.search("PASSWORD|SECRET|TOKEN|KEY", found[0])]
    assert secrets
    assert all(operator == ":?" and word for _, operator, word in secrets)
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", variable):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), variable
            for password in re.findall(r"://\w*:(.*)@", str(value)):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", password), variable


def test_the_example_environment_lists_what_the_file_asks_for_and_gives_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    listed = {m[2]: (m[1], m[3]) for line in lines if (m := re.fullmatch(r"(#?)([A-Z_0-9]+)=(.*)", line))}
    required = {name for name, operator, _ in variables_in(COMPOSE) if operator == ":?"}
    assert {name for name, (commented, _) in listed.items() if not commented} == required
    assert all(value == "" for name, (_, value) in listed.items() if re.search("PASSWORD|SECRET|TOKEN|KEY", name))
    passed_on = {
        variable
        for service in SERVICES.values()
        for variable, value in service.get("environment", {}).items()
        if value is None
    }
    others = {name for name, _, _ in variables_in(COMPOSE) if not name.startswith("BPT_")} | passed_on
    assert others <= set(listed)
    assert set(listed) - others <= {f"BPT_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command of the docs uses openssl")
def test_the_command_of_the_docs_fills_in_every_password_with_one_of_its_own(tmp_path: Path) -> None:
    command = re.search(r"^\(umask.*$", DOCS, re.MULTILINE)
    assert command
    shutil.copy(ROOT / ".env.example", tmp_path)
    subprocess.run(["sh", "-c", command[0]], cwd=tmp_path, check=True)
    made = tmp_path / ".env"
    values = re.findall(r"^\w+_PASSWORD=([0-9a-f]{64})$", made.read_text(), re.MULTILINE)
    required = {name for name, operator, _ in variables_in(COMPOSE) if operator == ":?"}
    assert len(set(values)) == len(values) == len(required)
    assert made.stat().st_mode & 0o077 == 0
    assert len(made.read_text().splitlines()) == len((ROOT / ".env.example").read_text().splitlines())


def test_workers_run_the_command_that_bpt_up_runs() -> None:
    for name, queue in (("tune", "tune"), ("ingest", "ingest"), ("batch", "batch_predict")):
        assert command_of(f"worker-{name}") == ["python", "-m", *worker_command(queue)]


def test_whatever_runs_for_long_is_started_again_and_can_be_asked_how_it_is() -> None:
    long_running = set(SERVICES) - {"migrate"}
    assert {name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"} == long_running
    assert SERVICES["migrate"]["restart"] == "no"
    # The file says why their processes' life is enough.
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == long_running - QUIET


def test_nothing_of_ours_starts_before_the_migration_has_ended_well() -> None:
    for name in OURS - {"migrate"}:
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_only_the_proxy_is_reached_from_outside_and_never_the_databases() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"proxy"}
    assert all(port.startswith("${") and ":-127.0.0.1:" in port for port in SERVICES["proxy"]["ports"])
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["data"]
    assert SERVICES["proxy"]["networks"] == ["outside"]


def test_workers_are_given_more_time_to_stop_than_they_give_their_jobs() -> None:
    patience_seconds = Settings.model_fields["stop_patience_seconds"].default
    for name in ("tune", "ingest", "batch"):
        assert int(SERVICES[f"worker-{name}"]["stop_grace_period"].removesuffix("s")) >= patience_seconds + 10


def test_each_volume_is_used_and_belongs_to_the_user_of_the_image() -> None:
    mounts = {name: [mount.split(":") for mount in service.get("volumes", [])] for name, service in SERVICES.items()}
    assert {mount[0] for of_service in mounts.values() for mount in of_service} == set(COMPOSE["volumes"])
    made = re.search(r"install --directory .*? (/.+)$", DOCKERFILE, re.MULTILINE)
    assert made
    assert {mount[1] for name in OURS for mount in mounts[name]} == set(made[1].split())
    assert interpolate(settings_of("api")["BPT_OBJECTS_URL"], {}) == "file:///objects"
    needs_objects = {name for name, of_service in mounts.items() if ["objects", "/objects"] in of_service}
    assert needs_objects == OURS - {"migrate", "webhooks"}


def test_the_docs_take_the_gpu_from_every_service_that_reserves_one_and_mention_each_service_and_volume() -> None:
    reserving = {name for name, service in SERVICES.items() if "devices" in json.dumps(service.get("deploy", {}))}
    assert reserving == {"predict", "worker-tune", "worker-batch"}
    snippet = re.search(r"## Without a GPU.*?```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert snippet
    without = yaml.safe_load(snippet[1].replace("!reset ", ""))["services"]
    assert without == {name: {"deploy": None} for name in reserving}
    rows = set(re.findall(r"^\| `([\w-]+)` \|", DOCS, re.MULTILINE))
    assert rows == set(SERVICES) | set(COMPOSE["volumes"])


# The proxy


def proxied_to(path: str) -> str:
    """Where the Caddyfile sends a path: a service's name, or `404`. The first block that matches has it."""
    blocks = re.findall(r"^\thandle(?: @(\w+))? \{\n(.*?)\n\t\}", CADDYFILE, re.MULTILINE | re.DOTALL)
    assert [matcher for matcher, _ in blocks][-1] == ""
    for matcher, block in blocks:
        patterns = re.search(rf"^\t@{matcher} path (.+)$", CADDYFILE, re.MULTILINE) if matcher else None
        if patterns is None or any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns[1].split()):
            upstream = re.search(r"dynamic a (\S+) 8000 ", block)
            return upstream[1] if upstream else "404"
    raise AssertionError("no block without a matcher")


def test_the_proxy_tells_paths_of_predict_from_those_that_only_look_alike() -> None:
    to_predict = ("/v1/predictions", "/v1/predictions/x", "/v2", "/v2/models/flowers/infer")
    to_api = ("/", "/v1/predictionsx", "/v20", "/v1/datasets", "/docs", "/readyz")
    assert {proxied_to(path) for path in to_predict} == {"predict"}
    assert {proxied_to(path) for path in to_api} == {"api"}
    assert {proxied_to(path) for path in ("/metrics", "/metrics/")} == {"404"}


def test_the_proxy_lets_pass_whatever_the_service_itself_would_take() -> None:
    limit = re.search(r"max_size \$\{REQUEST_LIMIT:-(\d+)GB\}", CADDYFILE)
    assert limit
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert int(limit[1]) * 10**9 > defaults["upload_limit_bytes"]
    assert int(limit[1]) * 10**9 > defaults["images_per_prediction"] * defaults["image_limit_bytes"] + (1 << 20)


# The image


def test_the_image_runs_as_an_ordinary_user_and_has_no_compiler() -> None:
    final = DOCKERFILE.split("\nFROM ")[-1]
    user = re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert user
    assert int(user[1]) >= 1000
    assert f"--uid {user[1]} " in final
    assert not re.search(r"\b(apt|apt-get|gcc|build-essential)\b", final)
    assert re.findall(r"^EXPOSE (\d+)$", final, re.MULTILINE) == ["8000"]
    assert {command_of(name)[command_of(name).index("--port") + 1] for name in ("api", "predict")} == {"8000"}


def test_what_the_image_copies_exists_and_is_sent_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in lines
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in lines, source
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own package, built from what the Dockerfile copies and nothing else."""
    directory = tmp_path_factory.mktemp("wheel")
    checkout = directory / "checkout"
    checkout.mkdir()
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, checkout / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, checkout)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(directory), str(checkout))
    (wheel,) = directory.glob("*.whl")
    return wheel


def pip(*arguments: str) -> None:
    command, *others = arguments
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps", *others],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@live
def test_a_wheel_of_what_the_image_copies_has_every_module_and_data_file(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = [path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    packages = [name for name in packages if name not in ("tests", "benchmarks")]  # run from a checkout
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(f"{package}*" for package in packages) == sorted(include)
    here = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    # Alembic's template is for making new migrations, which is done in a checkout.
    assert here - packed <= {"migrations/script.py.mako"}
    assert packed - here == set()


# The services


class Running:
    """All services of ours, each by its own command, as far as they run for long; what `migrate` said."""

    def __init__(self, directory: Path, installed: Path, embedded: EmbeddedServices, database: str) -> None:
        self._directory, self._installed, self._database = directory, installed, database
        self._superuser = make_url(embedded.superuser_url)
        # A Redis database of its own: other tests count the messages in theirs.
        self._redis_url = f"{embedded.redis_url}?virtual_host=9"
        self.ports = {"api": free_port(), "predict": free_port()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """The service's environment as the file has it, its hosts and directories exchanged for those of the test."""
        variables = {found[0]: PASSWORD for found in variables_in(COMPOSE) if found[1] == ":?"}
        environment: dict[str, str | None] = SERVICES[name]["environment"]
        found = {key: interpolate(value, variables) for key, value in environment.items() if value is not None}
        for key, value in found.items():
            if key.endswith("DATABASE_URL"):
                found[key] = self._local(value)
        assert found["BPT_REDIS_URL"] == f"redis://:{PASSWORD}@redis:6379/0"
        found["BPT_REDIS_URL"] = self._redis_url
        found["BPT_OBJECTS_URL"] = found["BPT_OBJECTS_URL"].replace("file:///", f"file://{self._directory}/")
        for key in ("BPT_WORK_DIRECTORY", "BPT_WEIGHTS_DIRECTORY", "HF_HOME"):
            found[key] = f"{self._directory}{found[key]}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(self._installed), "HOME": str(self._directory), "OMP_NUM_THREADS": "1"}
        return {**found, **own}

    def command(self, name: str) -> list[str]:
        command = command_of(name)
        if name in self.ports:
            assert command[command.index("--host") + 1] == "0.0.0.0"
            changed = {"0.0.0.0": "127.0.0.1", "8000": str(self.ports[name])}
            command = [changed.get(word, word) for word in command]
        return command

    def run(self, command: list[str], *, like: str) -> subprocess.CompletedProcess[str]:
        """A command in the environment of a service, as `docker compose exec` and health checks run it."""
        return subprocess.run(
            command,
            env=self.environment(like),
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def health(self, name: str, *, patience_seconds: int = 8) -> subprocess.CompletedProcess[str]:
        kind, *test = [interpolate(word, {}) for word in SERVICES[name]["healthcheck"]["test"]]
        test = [word.replace("--timeout 8", f"--timeout {patience_seconds}") for word in test]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        if name in self.ports:
            command = [word.replace(":8000/", f":{self.ports[name]}/") for word in command]
        return self.run(command, like=name)

    def start(self, name: str) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    def get(self, name: str, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.ports[name]}{path}", timeout=10)

    def is_ready(self, name: str) -> bool:
        assert self.processes[name].poll() is None, f"{name} ended: {self.log(name)}"
        if name in self.ports:
            try:
                return self.get(name, "/readyz").status_code == 200
            except httpx.TransportError:
                return False
        # These say nothing while nothing is wrong.
        return name in QUIET or " ready" in self.log(name)

    def _local(self, url: str) -> str:
        given = make_url(url)
        assert (given.drivername, given.host, given.port) == ("postgresql+psycopg", "postgres", 5432)
        if given.username == "postgres":
            assert given.database == "postgres"
            return self._superuser.render_as_string(hide_password=False)
        assert given.database == "bpt"
        local = self._superuser.set(username=given.username, password=given.password, database=self._database)
        return local.render_as_string(hide_password=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def running(embedded: EmbeddedServices, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Everything that docker-compose.yml runs of ours, after its migration of a database that does not exist yet."""
    database = f"test_{uuid4().hex}"
    installed = tmp_path_factory.mktemp("installed")
    pip("install", "--no-index", "--target", str(installed), str(wheel))
    running = Running(tmp_path_factory.mktemp("deployment"), installed, embedded, database)
    try:
        migrated = running.run(running.command("migrate"), like="migrate")
        assert migrated.returncode == 0, migrated.stderr
        for name in sorted(OURS - {"migrate"}):
            running.start(name)
        for name in running.processes:
            eventually(partial(running.is_ready, name), what=f"readiness of {name}")
        yield running
    finally:
        for process in running.processes.values():
            # Each leads a session of its own; nothing is left to signal where all went well.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        superuser = create_engine(embedded.superuser_url, isolation_level="AUTOCOMMIT")
        with superuser.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)"))
        superuser.dispose()


@live
def test_every_service_gets_ready_by_its_own_command_after_the_migration_and_stays(running: Running) -> None:
    workers = {"worker-tune", "worker-ingest", "worker-batch"}
    assert set(running.processes) == {"api", "predict", *workers, *QUIET}
    assert {name for name, process in running.processes.items() if process.poll() is None} == set(running.processes)
    for name in QUIET:
        assert running.log(name) == "", "it only speaks up when something is wrong or had to be mended"


@live
def test_what_runs_is_the_installed_package_and_not_the_checkout(running: Running) -> None:
    code = (
        "import api, bpt_core, bpt_store, migrations, worker; print(*{m.__file__ for m in (api, worker, migrations)})"
    )
    origins = running.run(["python", "-c", code], like="sweep").stdout.split()
    assert len(origins) == 3
    assert not [origin for origin in origins if Path(origin).is_relative_to(ROOT)]


@live
def test_the_first_key_is_made_by_the_command_of_the_docs_and_the_api_takes_it(running: Running) -> None:
    command = re.search(r"^docker compose exec api (python -m bpt_store\.admin bootstrap)$", DOCS, re.MULTILINE)
    assert command
    made = running.run(command[1].split(), like="api")
    assert made.returncode == 0, made.stderr
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    url = f"http://127.0.0.1:{running.ports['api']}/v1/customers"
    assert httpx.post(url, json={"name": "acme"}, headers=headers, timeout=10).status_code == 201


@live
def test_the_proxy_sends_each_route_to_the_role_that_has_it_and_hides_the_internal_ones(running: Running) -> None:
    routes = {name: set(running.get(name, "/openapi.json").json()["paths"]) for name in running.ports}
    assert {"/v1/datasets", "/v1/tuning-jobs", "/v1/prompt-sets", "/v1/api-keys"} <= routes["api"] - routes["predict"]
    # The role api shows the whole interface, since behind the proxy it is the one that is asked for it.
    assert routes["predict"] < routes["api"]
    protocol = {path for path in routes["predict"] if path == "/v2" or path.startswith("/v2/")}
    assert {"/v2", "/v2/health/ready", "/v2/models/{name}/versions/{version}/infer"} < protocol
    assert routes["predict"] - HEALTH_ROUTES == {"/v1/predictions", *protocol}
    for path in routes["api"] - HEALTH_ROUTES:
        assert proxied_to(path) == ("predict" if path in routes["predict"] else "api")
    assert {proxied_to(path) for path in INTERNAL_ROUTES} == {"404"}
    # Health tells more of the one that answers: the proxy asks the API.
    assert {proxied_to(path) for path in HEALTH_ROUTES - INTERNAL_ROUTES} == {"api"}


@live
def test_health_checks_are_content_with_services_that_work(running: Running) -> None:
    for name in ("api", "predict", "worker-tune", "worker-ingest", "worker-batch"):
        found = running.health(name)
        assert found.returncode == 0, f"{name}: {found.stdout}{found.stderr}"


@live
def test_sigterm_ends_every_service_in_order_within_seconds_and_leaves_no_process(running: Running) -> None:
    # The last of the tests that use `running`: it ends them all.
    family = [psutil.Process(process.pid) for process in running.processes.values()]
    family += [child for process in list(family) for child in process.children(recursive=True)]
    for process in running.processes.values():
        process.terminate()
    statuses = {name: process.wait(timeout=STOP_SECONDS) for name, process in running.processes.items()}
    # uvicorn ends in order and then by the signal it was sent, as a shell expects it; Docker shows that as 143.
    assert statuses == {name: -signal.SIGTERM if name in running.ports else 0 for name in running.processes}
    for name in running.ports:
        assert "Application shutdown complete" in running.log(name)
    left = psutil.wait_procs(family, timeout=5)[1]
    assert not left
    # And now the checks say so.
    for name in ("api", "worker-tune"):
        assert running.health(name, patience_seconds=1).returncode != 0, name
