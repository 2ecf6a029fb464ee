"""`python -m worker.trainer`: the process that touches torch. One tuning job, then it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.child import Child

if TYPE_CHECKING:
    from bpt_core.evaluate import Evaluation

CONFUSION_CLASSES = 100


def main() -> None:
    child = Child.begin()
    # Only now: importing torch takes seconds, and the child must be tied to its supervisor before that.
    import torch

    from bpt_core import artifact
    from bpt_core.backbones import load_backbone
    from bpt_core.compute import Compute, Precision
    from bpt_core.dataset import PackedDataset
    from bpt_core.errors import BptError
    from bpt_core.recipe import Recipe
    from bpt_core.sweep import Search
    from bpt_core.train import Epoch
    from bpt_core.tuning import tune

    job = child.job
    device = child.torch_device()

    def on_epoch(epoch: Epoch, make_checkpoint: Callable[[], bytes]) -> None:
        name = f"checkpoint-{epoch.epoch}.safetensors"
        _write_whole(child.directory / name, make_checkpoint())
        child.event("epoch", asdict(epoch), checkpoint=name)

    try:
        weights = Path(job["weights"]) if job["weights"] else None
        backbone = load_backbone(job["backbone"], weights=weights, device=device)
        dataset = PackedDataset([child.directory / name for name in job["shards"]])
        checkpoint = (child.directory / job["checkpoint"]).read_bytes() if job["checkpoint"] else None
        child.event("started", {"device": device, "resumed": checkpoint is not None})
        tuned = tune(
            backbone,
            dataset,
            Recipe.from_dict(job["recipe"]),
            search=Search.from_dict(job["search"]) if job["search"] else None,
            compute=Compute(**{**job["compute"], "precision": Precision(job["compute"]["precision"])}),
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
    except torch.OutOfMemoryError as error:
        child.failed("out_of_memory", f"{error}; a smaller batch_size or fewer prompts need less memory")
        return
    except BptError as error:
        child.failed(error.code, str(error))
        return
    _write_whole(child.directory / "artifact.safetensors", artifact.to_bytes(tuned.prompt_set))
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
        }
    )


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


if __name__ == "__main__":
    main()
