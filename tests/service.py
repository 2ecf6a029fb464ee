"""The whole service as its users run it, `bpt up`, with times short enough to watch faults being mended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import psutil
from sqlalchemy import create_engine, text

from bpt_store.up import environment_of

Found = TypeVar("Found")

SHORT_TIMES = {
    "BPT_LEASE_SECONDS": "3",
    "BPT_HEARTBEAT_SECONDS": "0.5",
    "BPT_SWEEP_SECONDS": "1",
    "BPT_RING_AFTER_SECONDS": "1",
    "BPT_RETRY_BACKOFF_SECONDS": "0.1",
    "BPT_EVENTS_POLL_SECONDS": "0.1",
    "BPT_STOP_PATIENCE_SECONDS": "5",
    "BPT_UPLOAD_STALL_SECONDS": "1",
    "BPT_UPLOAD_LIMIT_BYTES": "20000000",
    "BPT_IMAGE_LIMIT_BYTES": "2000000",
    "BPT_IMAGES_PER_PREDICTION": "16",
    "BPT_PREDICT_QUEUE_ROWS": "64",
    "BPT_PREDICT_JSON_LIMIT_BYTES": "1000000",
    "BPT_QUEUED_JOBS_LIMIT": "3",
    "BPT_BATCH_PART_IMAGES": "4",
    "BPT_THREADS": "1",
    "BPT_INGEST_DECODERS": "1",
    "BPT_WEBHOOK_INSECURE": "1",
    "BPT_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    "BPT_WEBHOOK_RETRY_SECONDS": "0.1 0.1",
    "BPT_WEBHOOK_POLL_SECONDS": "0.5",
}


def eventually(look: Callable[[], Found | None], *, seconds: float = 60, what: str = "it") -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None and found is not False:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} seconds")


def has_ended(process: psutil.Process) -> bool:
    """Also where nobody has buried it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass
class Service:
    url: str
    data_dir: Path
    admin_key: str
    process: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def start(cls, data_dir: Path, environment: dict[str, str]) -> Iterator[Service]:
        data_dir.mkdir(parents=True, exist_ok=True)
        ready = data_dir / "ready.json"
        ready.unlink(missing_ok=True)
        with (data_dir / "up.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bpt_store.up", "--data-dir", data_dir, "--port", "0", "--ready-file", ready],
                env={**environment, **SHORT_TIMES},
                stdout=log,
                stderr=log,
            )
        try:
            eventually(
                lambda: ready.exists() or process.poll() is not None, seconds=180, what="the start of the service"
            )
            assert process.poll() is None, (data_dir / "up.log").read_text()
            url = json.loads(ready.read_text())["url"]
            yield cls(url, data_dir, cls._admin_key(data_dir), process)
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
            left = psutil.wait_procs(family, timeout=10)[1]
            assert not left, f"left running: {left}"

    @staticmethod
    def _admin_key(data_dir: Path) -> str:
        kept = data_dir / "admin-key"
        if not kept.exists():
            arguments = [sys.executable, "-m", "bpt_store.admin", "bootstrap", "--data-dir", str(data_dir)]
            kept.write_text(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip())
        return kept.read_text()

    def client(self, key: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def new_customer(self, scopes: list[str] | None = None) -> Customer:
        """A customer nobody else uses, with a key."""
        with self.client(self.admin_key) as admin:
            customer = admin.post("/v1/customers", json={"name": f"customer {uuid4().hex}"}).json()
            body = {"customer": customer["id"], "name": "test", **({"scopes": scopes} if scopes else {})}
            key = admin.post("/v1/api-keys", json=body).json()
        return Customer(self, customer["id"], key["id"], key["token"])

    def objects(self) -> list[str]:
        """Everything in object storage; folders may go away meanwhile."""
        root = self.data_dir / "objects"
        return sorted(
            str((Path(folder) / name).relative_to(root)) for folder, _, names in os.walk(root) for name in names
        )

    def rows(self, query: str, **values: Any) -> list[Any]:
        """A look into the database past row-level security, as bpt_system."""
        engine = create_engine(environment_of(self.data_dir)["BPT_SYSTEM_DATABASE_URL"])
        with engine.begin() as connection:
            found = list(connection.execute(text(query), values))
        engine.dispose()
        return found

    def processes(self, word: str) -> list[psutil.Process]:
        """The service's processes with `word` in their command line, parents before children."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for process in family:
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@dataclass
class Customer:
    service: Service
    id: str
    key_id: str
    key: str

    @property
    def uuid(self) -> UUID:
        return UUID(hex=self.id.removeprefix("cus_"))

    def http(self) -> httpx.Client:
        return self.service.client(self.key)

    def upload(self, archive: bytes, name: str = "dataset", **query: str) -> dict[str, Any]:
        """Upload and wait for the end of ingest -> the dataset."""
        with self.http() as http:
            reply = http.post(
                "/v1/datasets",
                params={"name": name, **query},
                content=archive,
                headers={"Content-Type": "application/zip"},
            )
            assert reply.status_code == 201, reply.text
            url = reply.headers["Location"]

            def ended() -> dict[str, Any] | None:
                dataset: dict[str, Any] = http.get(url).json()
                return dataset if dataset["state"] in ("ready", "failed") else None

            return eventually(ended, what="ingest")

    def tune(self, dataset: dict[str, Any], prompt_set: str = "flowers", **body: Any) -> dict[str, Any]:
        """Ask for a small tuning job -> the job, not waited for."""
        asked = {
            "dataset": dataset["id"],
            "prompt_set": prompt_set,
            "method": {"type": "bpt-bilinear", "prompts": 4, "rank": 2},
            "hyperparameters": {"epochs": 2, "head_fit_epochs": 2, "views": 1},
            **body,
        }
        with self.http() as http:
            reply = http.post("/v1/tuning-jobs", json=asked)
        assert reply.status_code == 201, reply.text
        job: dict[str, Any] = reply.json()
        return job

    def predict_batch(self, dataset: dict[str, Any], *prompt_sets: str, **body: Any) -> dict[str, Any]:
        """Ask for a batch prediction -> the job, not waited for."""
        with self.http() as http:
            asked = {"dataset": dataset["id"], "prompt_sets": [*prompt_sets], **body}
            reply = http.post("/v1/batch-predictions", json=asked)
        assert reply.status_code == 201, reply.text
        job: dict[str, Any] = reply.json()
        return job

    def job(self, job: dict[str, Any]) -> dict[str, Any]:
        with self.http() as http:
            found: dict[str, Any] = http.get(_path(job)).json()
        return found

    def finished(self, job: dict[str, Any], *, seconds: float = 120) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found = self.job(job)
            return found if found["state"] in ("succeeded", "failed", "cancelled") else None

        return eventually(ended, seconds=seconds, what="the end of the job")

    def events(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        with self.http() as http:
            found: list[dict[str, Any]] = http.get(f"{_path(job)}/events").json()["data"]
        return found


def _path(job: dict[str, Any]) -> str:
    return f"/v1/{'batch-predictions' if 'prompt_sets' in job else 'tuning-jobs'}/{job['id']}"
