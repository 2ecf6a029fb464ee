"""The process that touches torch. One tuning job, then it ends. See worker/starter.py for how it starts."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else the first optimizer of each job would import it, in a second or two

from bpt_core import artifact, reproduction
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.compute import Compute, Precision, is_out_of_memory
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError, BptError, DatasetError
from bpt_core.evaluate import Evaluation
from bpt_core.items import Items
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch
from bpt_core.tuning import Standing, Tuned, tune
from worker.child import Child

CONFUSION_CLASSES = 100
UNUSABLE = ("checkpoint_corrupt", "checkpoint_mismatch")  # what tune says of a checkpoint


def main() -> None:
    child = Child.begin()
    job = child.job
    device = child.torch_device()

    until = time.monotonic() + job["seconds_left"] if job["seconds_left"] is not None else None
    latest: list[bytes] = []  # checkpoint of this attempt, if there is one

    def is_time_up() -> bool:
        return until is not None and time.monotonic() >= until

    def on_epoch(epoch: Epoch, standing: Standing) -> None:
        name, left = f"checkpoint-{epoch.epoch}.safetensors", f"prompt-set-{epoch.epoch}.safetensors"
        leader = standing.leader()
        latest[:] = [standing.checkpoint()]
        _write_whole(child.directory / name, latest[0])
        _write_whole(child.directory / left, leader.artifact)
        facts = {
            "backbone_fingerprint": backbone.fingerprint,
            "class_names": list(dataset.class_names),
            "recipe": leader.recipe.to_dict(),
            "val": _trimmed(leader.val),
        }
        child.event("epoch", asdict(epoch), checkpoint=name, attached={"file": left, **facts})

    try:
        weights = Path(job["weights"]) if job["weights"] else None
        backbone = load_backbone(job["backbone"], weights=weights, device=device)
        dataset = PackedDataset([child.directory / name for name in job["shards"]])
        start, reproduced = (_prompt_set(child, job[role]) for role in ("start", "reproduces"))
        if reproduced is not None:
            _check_weights(reproduced, backbone)
        child.event("started", {"device": device, "resumed": bool(job["checkpoints"])})
        run = partial(
            tune,
            backbone,
            dataset,
            Recipe.from_dict(job["recipe"]),
            search=Search.from_dict(job["search"]) if job["search"] else None,
            start=start,
            on_epoch=on_epoch,
            is_time_up=is_time_up,
        )

        def attempt(compute: Compute) -> Tuned:
            if latest:
                return run(compute=compute, checkpoint=latest[0])
            return _resumed(child, partial(run, compute=compute), job["checkpoints"])

        compute = Compute(**{**job["compute"], "precision": Precision(job["compute"]["precision"])})
        tuned = _within_memory(child, attempt, compute)
        difference = None
        if reproduced is not None:
            difference = reproduction.compare(reproduced, tuned.prompt_set, backbone, dataset).to_dict()
    except OutOfMemory as error:
        child.failed("out_of_memory", f"{error}; a smaller batch_size or fewer prompts need less memory")
        return
    except BptError as error:
        child.failed(error.code, str(error))
        return
    _write_whole(child.directory / "artifact.safetensors", artifact.to_bytes(tuned.prompt_set))
    report, report_failure = _report(tuned, dataset, child.directory / job["items"] if job.get("items") else None)
    child.done(
        {
            "artifact": "artifact.safetensors",
            "backbone_fingerprint": tuned.prompt_set.backbone_fingerprint,
            "class_names": list(tuned.prompt_set.class_names),
            "recipe": tuned.recipe.to_dict(),
            "metrics": {
                "best_epoch": tuned.best_epoch,
                "val": _trimmed(tuned.val),
                "test": _trimmed(tuned.test) if tuned.test else None,
                "calibration": tuned.prompt_set.calibration.to_dict(),
                "trials": tuned.trials,
                "whitening": tuned.whitening,
                "burstiness": tuned.burstiness,
            },
            "reproduction": difference,
            "report": report,
            "report_failure": report_failure,
            "stopped_by": tuned.stopped_by,
        }
    )


def _prompt_set(child: Child, file: str | None) -> PromptSet | None:
    return None if file is None else artifact.from_bytes((child.directory / file).read_bytes())


def _check_weights(reproduced: PromptSet, backbone: Backbone) -> None:
    """Before any work: what comes out could not be compared."""
    if reproduced.backbone_fingerprint != backbone.fingerprint:
        raise ArtifactError(
            f"the version was learned on other weights of {backbone.name} than are here: fingerprint "
            f"{reproduced.backbone_fingerprint} there and {backbone.fingerprint} here",
            code="not_reproducible",
        )


class OutOfMemory(Exception):
    """Half of the batch at a time was still too much."""


def _within_memory(child: Child, attempt: Callable[[Compute], Tuned], compute: Compute) -> Tuned:
    """Once more, with half of each batch at a time, where memory does not do; the numbers stay the same but for
    rounding. Raises OutOfMemory."""
    for parts in (1, 2):
        try:
            return attempt(replace(compute, micro_batches=parts))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Only here, outside of the clause: the error's frames hold what fills the memory.
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        if parts == 1:
            child.event("out_of_memory", {"reason": reason, "micro_batches": 2})
    raise OutOfMemory(reason)


def _resumed(child: Child, run: Callable[..., Tuned], checkpoints: Sequence[Mapping[str, Any]]) -> Tuned:
    """Go on from the first of these checkpoints that can be gone on from, or else begin at the beginning.

    One that cannot costs its epochs and an event `checkpoint_lost`, not the job.
    """
    for each in checkpoints:
        try:
            return run(checkpoint=(child.directory / each["file"]).read_bytes())
        except ArtifactError as error:
            if error.code not in UNUSABLE:
                raise
            child.event("checkpoint_lost", {"epoch": each["epoch"], "reason": f"{error.code}: {error}"})
    return run()


def _report(tuned: Tuned, dataset: PackedDataset, index: Path | None) -> tuple[dict[str, Any], str | None]:
    """The report with the ids of items, which only the index of the dataset knows, and what went wrong with it.

    An index that cannot be used costs the ids, not the job.
    """
    failure = tuned.report_failure
    ids: dict[str, list[str]] = {}
    if index is not None:
        try:
            items = Items.read(index)
            if len(items) != len(dataset):
                raise DatasetError(f"an index of {len(items)} items, but {len(dataset)} are in the dataset")
            ids = {split.value: items.ids(split) for split in Split}
        except DatasetError:
            failure = failure or traceback.format_exc()
    return _with_items(tuned.report, ids), failure


def _with_items(report: Mapping[str, Any], ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Each image's place in its split becomes its `item`, None where `ids` has nothing for the split."""

    def named(image: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in image.items() if name != "position"}
        return {"item": ids[image["split"]][image["position"]] if image["split"] in ids else None, **rest}

    errors = report["label_errors"]
    return {
        **report,
        "label_errors": {**errors, "items": [named(each) for each in errors["items"]]},
        "hardest": [named(each) for each in report["hardest"]],
    }


def _trimmed(evaluation: Evaluation) -> dict[str, Any]:
    """JSON of bounded size: a confusion matrix of a thousand classes is a million numbers."""
    document = evaluation.to_dict()
    if len(document.get("confusion", ())) > CONFUSION_CLASSES:
        document["confusion"] = None
    return document


def _write_whole(path: Path, data: bytes) -> None:
    """The file is there with all its bytes or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
