"""The process that touches torch. One batch prediction, then it ends. See worker/starter.py for how it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from bpt_core import artifact
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.batch import Batch
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import BptError
from bpt_core.predict import Predictor
from bpt_core.results import Row, write_results, write_rows
from bpt_core.tally import Tally
from worker.child import Child


def main() -> None:
    child = Child.begin()
    job, directory = child.job, child.directory
    device = child.torch_device()
    split = Split(job["split"]) if job["split"] else None
    parts = [directory / name for name in job["parts"]]
    try:
        dataset = PackedDataset([directory / name for name in job["shards"]])
        prompt_sets = {
            reference: artifact.from_bytes((directory / name).read_bytes())
            for reference, name in job["prompt_sets"].items()
        }
        predictors = {
            name: Predictor(load_backbone(name, weights=Path(weights) if weights else None, device=device))
            for name, weights in job["weights"].items()
        }
        done, total = job["done"], dataset.images(split)
        items = dataset.items(split, skip=done)
        child.event("started", {"device": device, "resumed": bool(parts)})
        with Batch(predictors, prompt_sets, dataset.class_names, job["top_k"]) as batch:
            while done < total:
                path = directory / f"rows-{done:09d}.parquet"
                write_rows(path, batch.chunks(islice(items, job["part_images"])))
                done = min(done + job["part_images"], total)
                parts.append(path)
                # The supervisor stores what it is given and removes it; the rows are needed once more, at the end.
                os.link(path, directory / f"part-{done:09d}.parquet")
                child.event("progress", {"done": done, "total": total}, checkpoint=f"part-{done:09d}.parquet")
            tallies = _tallies(dataset, prompt_sets, job["top_k"])
            results = write_results(parts, directory, batch.score_columns, partial(_count, tallies))
    except torch.OutOfMemoryError as error:
        child.failed("out_of_memory", f"{error}; not even one image fits")
        return
    except BptError as error:
        child.failed(error.code, str(error))
        return
    child.done(
        {
            "files": {name: path.name for name, path in results.files.items()},
            "images": total,
            "rows": results.rows,
            "errors": results.errors,
            "metrics": {reference: tally.metrics() for reference, tally in tallies.items()},
        }
    )


def _tallies(dataset: PackedDataset, prompt_sets: Mapping[str, PromptSet], top_k: int) -> dict[str, Tally]:
    """For those prompt sets that know all classes of the dataset, and have the same task."""
    return {
        reference: Tally(dataset.task, top_k, len(prompt_set.class_names))
        for reference, prompt_set in prompt_sets.items()
        if prompt_set.task == dataset.task and set(dataset.class_names) <= set(prompt_set.class_names)
    }


def _count(tallies: Mapping[str, Tally], row: Row) -> None:
    if row["prompt_set"] in tallies:
        tallies[row["prompt_set"]].add(row)
