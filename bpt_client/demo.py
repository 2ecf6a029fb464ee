"""`bpt demo`: a dataset from upload to prediction, on a service that the demo starts itself."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from bpt_client.client import Client
from bpt_client.demo_report import HeldOut, held_out_images, print_next_steps, print_predictions, print_summary
from bpt_client.errors import BptError, Conflict, InputError, TuningFailed, Unauthenticated
from bpt_client.local_service import LocalService, make_data_dir
from bpt_client.models import Dataset, Prediction, TuningJob
from bpt_client.terminal import duration, errors, fail, output, percent, size
from bpt_client.watch import JobWatch

DATASET = "flowers"
CUSTOMER = "demo"
IMAGES_PER_CLASS = {"train": 40, "val": 20, "test": 20}
SAMPLE_SEED = 0

# What differs from the service's defaults. Both methods see the same crops: gentler ones, for small drawn flowers.
# BPT gets as many epochs as two cores do in two minutes; it would go on learning for many more.
LINEAR_PROBE_SET = "flowers-linear"
LINEAR_PROBE_HYPERPARAMETERS: dict[str, Any] = {"crop_scale_min": 0.3}
BPT_SET = "flowers"
BPT_PROMPTS, BPT_RANK = 16, 16
BPT_HYPERPARAMETERS: dict[str, Any] = {"epochs": 14, "learning_rate": 0.02, "crop_scale_min": 0.3}

PREDICTIONS = 8


@dataclass
class _Outcome:
    """What the demo ends with."""

    dataset: Dataset
    linear_probe: TuningJob
    bpt: TuningJob
    finished_before: list[TuningJob] = field(default_factory=list)
    tuning_seconds: float = 0.0


class Demo:
    """`leave` ends the service afterwards, instead of at Ctrl-C."""

    def __init__(self, data_dir: Path, *, leave: bool) -> None:
        self._data_dir = data_dir.resolve()
        self._leave = leave
        self._console = output()
        self._began = time.monotonic()

    def run(self) -> int:
        """The exit code: 0, 1 after a failure that was told, 130 when Ctrl-C came before the end."""
        # Both would end this process at once, and nobody would end the service.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        shown = False
        figures: dict[str, Any] = {}
        try:
            with self._service() as service:
                figures = self._show(service)
                shown = True
                if not self._leave:
                    self._console.print(Text("\nThe service runs until Ctrl-C.", style="bold"))
                    service.wait()
                self._say("ending the service")
        except KeyboardInterrupt:
            self._say("everything the demo started has ended")
            return 0 if shown else 130
        except (BptError, OSError, subprocess.SubprocessError) as error:
            _fail_at_length(error)
            return 1
        sys.stdout.write(f"demo: ok {json.dumps(figures)}\n")
        sys.stdout.flush()
        return 0

    def _service(self) -> LocalService:
        self._say(f"starting PostgreSQL, Redis, the API and the workers (data in {self._data_dir})")
        return LocalService(self._data_dir)

    def _show(self, service: LocalService) -> dict[str, Any]:
        self._say(f"the service is ready at {service.url} after {duration(time.monotonic() - self._began)}")
        key = self._key(service)
        with Client(service.url, key) as client:
            archive = self._archive()
            outcome = self._tune(client, self._dataset(client, archive))
            self._say(f"predicting {PREDICTIONS} test images over HTTP")
            held_out = held_out_images(archive, PREDICTIONS, self._data_dir / "samples" / "held-out")
            prediction = client.predict([(each.name, each.content) for each in held_out], BPT_SET, top_k=3)
        print_predictions(self._console, held_out, prediction)
        print_summary(self._console, outcome.linear_probe, outcome.bpt)
        print_next_steps(self._console, self._data_dir, held_out[0].path, service.url, key, is_ending=self._leave)
        return self._figures(outcome, held_out, prediction)

    # --- keys ---------------------------------------------------------------------------------------------------

    def _key(self, service: LocalService) -> str:
        """The customer's key; the keys of the first run are kept and used again."""
        kept = _Kept(self._data_dir / "demo.json")
        keys = kept.read()
        if "admin_key" not in keys:
            keys["admin_key"] = service.bootstrap()
            kept.write(keys)
        if "key" not in keys:
            with Client(service.url, keys["admin_key"]) as admin:
                try:
                    customer = admin.customers.create(CUSTOMER)
                except Conflict:  # a run before was interrupted between the customer and the key
                    customer = next(each for each in admin.customers.list() if each.name == CUSTOMER)
                token = admin.api_keys.create(customer.id, "demo").token
            if token is None:
                raise InputError("the service made a key and did not tell it")
            keys |= {"customer": customer.id, "key": token}
            kept.write(keys)
            self._say(f"customer {CUSTOMER!r} and an API key are made")
        try:
            with Client(service.url, keys["key"]) as client:
                next(client.datasets.list(), None)
        except Unauthenticated as error:
            raise InputError(f"the key in {kept.path} is not one of this service's: remove that file") from error
        return keys["key"]

    # --- dataset ------------------------------------------------------------------------------------------------

    def _archive(self) -> Path:
        counts = [str(count) for count in IMAGES_PER_CLASS.values()]
        path = self._data_dir / "samples" / f"{DATASET}-{'-'.join(counts)}-{SAMPLE_SEED}.zip"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            options = [f"--{split}={count}" for split, count in IMAGES_PER_CLASS.items()]
            command = [sys.executable, "-m", "bpt_core.samples", str(partial), *options, f"--seed={SAMPLE_SEED}"]
            with self._busy("drawing the sample dataset"):
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise InputError(f"the sample dataset could not be drawn: {done.stderr.strip()}")
            partial.rename(path)
        return path

    def _dataset(self, client: Client, archive: Path) -> Dataset:
        """The dataset of an earlier run with the same content, else a new one."""
        sha256 = _sha256(archive)
        for dataset in client.datasets.list():
            same = dataset.name == DATASET and dataset.source is not None and dataset.source.sha256 == sha256
            if same and not dataset.is_failed:
                how = "is there from an earlier run"
                break
        else:
            with self._busy(f"uploading {archive.name} ({size(archive.stat().st_size)})"):
                dataset = client.datasets.upload(archive, name=DATASET)
            how = "was uploaded and validated"
        if not dataset.is_ready:
            with self._busy("validating"):
                dataset = client.datasets.wait(dataset.id)
        splits = ", ".join(f"{images} {split}" for split, images in dataset.splits.items() if images)
        self._say(
            f"dataset {dataset.name!r} {how}: {len(dataset.class_names)} classes, images: {splits}; verdict of its "
            f"report: {dataset.verdict}"
        )
        return dataset

    # --- tuning -------------------------------------------------------------------------------------------------

    def _tune(self, client: Client, dataset: Dataset) -> _Outcome:
        unfinished = [job for job in client.tuning_jobs.list() if not job.is_terminal]
        finished = []
        for job in reversed(unfinished):  # oldest first, as they run
            self._say(f"job {job.id} ({job.prompt_set}) of an earlier run is {job.state}: finishing it first")
            try:
                finished.append(self._follow(client, job))
            except TuningFailed as error:  # its end, whatever it is, must not stop every later demo
                self._say(str(error))
        began = time.monotonic()
        self._say("linear probe: only a head on the frozen backbone's features, to compare with")
        linear_probe = self._follow(
            client,
            client.tuning_jobs.create(
                dataset.id, LINEAR_PROBE_SET, method="linear-probe", hyperparameters=LINEAR_PROBE_HYPERPARAMETERS
            ),
        )
        job = client.tuning_jobs.create(
            dataset.id,
            BPT_SET,
            method="bpt-bilinear",
            prompts=BPT_PROMPTS,
            rank=BPT_RANK,
            hyperparameters=BPT_HYPERPARAMETERS,
        )
        self._say(
            f"bilinear prompt tuning: {job.method.prompts} prompts of rank {job.method.rank}, "
            f"{job.parameters:,} parameters, the same backbone"
        )
        bpt = self._follow(client, job)
        return _Outcome(dataset, linear_probe, bpt, finished, time.monotonic() - began)

    def _follow(self, client: Client, job: TuningJob) -> TuningJob:
        with JobWatch(self._console, job.prompt_set) as watch:
            watch.show_all(client.tuning_jobs.follow(job.id))
        job = client.tuning_jobs.wait(job.id)
        assert job.result is not None
        restarts = f", in {job.attempt} attempts" if job.attempt > 1 else ""
        test = job.result.test
        accuracy = f"test accuracy {percent(test.score)}" if test else "no test split"
        self._say(f"{job.result.prompt_set}:{job.result.version} is published: {accuracy}{restarts}")
        return job

    # --- figures ------------------------------------------------------------------------------------------------

    def _figures(self, outcome: _Outcome, held_out: list[HeldOut], prediction: Prediction) -> dict[str, Any]:
        jobs = {LINEAR_PROBE_SET: outcome.linear_probe, BPT_SET: outcome.bpt}
        results = {name: job.result for name, job in jobs.items() if job.result is not None}
        tests = {name: result.test for name, result in results.items()}
        right = sum(
            bool(answer.results) and answer.results[0].predictions[0].label == each.truth
            for each, answer in zip(held_out, prediction.data, strict=True)
        )
        return {
            "test_accuracy": _top1(tests[BPT_SET]),
            "linear_probe_test_accuracy": _top1(tests[LINEAR_PROBE_SET]),
            "seconds": round(time.monotonic() - self._began, 1),
            "tuning_seconds": round(outcome.tuning_seconds, 1),
            "images": outcome.dataset.images(),
            "classes": len(outcome.dataset.class_names),
            "epochs": outcome.bpt.hyperparameters.get("epochs"),
            "linear_probe_epochs": outcome.linear_probe.hyperparameters.get("epochs"),
            "versions": {name: result.version for name, result in results.items()},
            "attempts": {name: job.attempt for name, job in jobs.items()},
            "finished_from_before": [
                {"id": job.id, "prompt_set": job.prompt_set, "attempts": job.attempt} for job in outcome.finished_before
            ],
            "parameters": outcome.bpt.parameters,
            "artifact_bytes": results[BPT_SET].artifact_bytes,
            "predicted": len(held_out),
            "predicted_right": right,
        }

    def _say(self, text: str) -> None:
        self._console.print(Text.assemble(("demo ", "bold cyan"), text), soft_wrap=True)

    def _busy(self, text: str) -> AbstractContextManager[object]:
        """A spinner on a terminal, a line elsewhere."""
        if self._console.is_terminal:
            return self._console.status(Text(f"{text} ..."))
        self._say(text)
        return nullcontext()


class _Kept:
    """The demo's keys, in a file that is ours alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.path} is damaged: {error}") from error

    def write(self, keys: dict[str, str]) -> None:
        make_data_dir(self.path.parent)
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps(keys, indent=2))
        new.rename(self.path)


def _top1(evaluation: Any) -> float | None:
    return None if evaluation is None else round(evaluation.score, 4)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fail_at_length(error: Exception) -> None:
    """The first line in red; the lines of a log below it as they are."""
    first, _, rest = str(error).partition("\n")
    fail(first)
    if rest:
        errors().print(Text(rest), soft_wrap=True)
