"""A GPU that is too small: once more with half of each batch at a time, and then the job fails with advice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bpt_core import vit
from bpt_core.backbones import Backbone
from bpt_core.compute import Compute
from bpt_core.dataset import PackedDataset, Split
from bpt_core.tuning import Tuned, tune
from tests.worker.test_checkpoints import RECIPE, Told, backbone, flowers, make_backbone, told
from worker import trainer
from worker.child import Child

__all__ = ["backbone", "flowers", "make_backbone", "told"]

HALF = RECIPE.batch_size // 2


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Training takes so many rows at a time and no more, from a forward on."""

    def limit(rows: int, *, after: int = 0) -> None:
        above, calls = vit.above, 0

        def limited(model: Backbone, tokens: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += torch.is_grad_enabled()
            if torch.is_grad_enabled() and len(tokens) > rows and calls > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return above(model, tokens, *arguments, **options)

        monkeypatch.setattr(vit, "above", limited)

    return limit


@pytest.fixture
def attempt(backbone: Backbone, flowers: PackedDataset) -> Callable[[Compute], Tuned]:
    return lambda compute: tune(backbone, flowers, RECIPE, compute=compute)


def test_a_batch_that_does_not_fit_goes_in_halves_and_gives_the_same(
    told: Told, attempt: Callable[[Compute], Tuned], gpu_of: Callable[..., None]
) -> None:
    child, events = told
    expected = attempt(Compute())
    gpu_of(HALF)
    tuned = trainer._within_memory(child, attempt, Compute())
    assert tuned.val.loss == pytest.approx(expected.val.loss, abs=1e-5)
    (event,) = events()
    assert (event["event"], event["data"]["micro_batches"]) == ("out_of_memory", 2)
    assert "2.00 GiB" in event["data"]["reason"]


def test_what_does_not_fit_in_halves_is_tried_no_further(
    told: Told, attempt: Callable[[Compute], Tuned], gpu_of: Callable[..., None]
) -> None:
    child, events = told
    gpu_of(HALF - 1)
    with pytest.raises(trainer.OutOfMemory, match="memory"):
        trainer._within_memory(child, attempt, Compute())
    assert len(events()) == 1


def test_another_error_is_not_taken_for_it(told: Told) -> None:
    def broken(_: Compute) -> Tuned:
        raise RuntimeError("shapes cannot be multiplied")

    child, events = told
    with pytest.raises(RuntimeError, match="multiplied"):
        trainer._within_memory(child, broken, Compute())
    assert events() == []


def test_the_second_try_goes_on_from_the_last_epoch_and_the_job_fails_with_advice(
    told: Told,
    backbone: Backbone,
    flowers: PackedDataset,
    gpu_of: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole of the trainer, as a worker starts it."""
    child, events = told
    child.job = {
        **{
            "weights": None,
            "backbone": "tiny",
            "device": "cpu",
            "threads": 1,
            "search": None,
            "start": None,
            "reproduces": None,
        },
        **{"checkpoints": [], "seconds_left": None, "shards": [], "recipe": RECIPE.to_dict(), "items": None},
        "compute": {"precision": "float32", "compile": False, "image_bytes": 1 << 30, "token_bytes": 1 << 30},
    }
    monkeypatch.setattr(Child, "begin", lambda: child)
    monkeypatch.setattr(trainer, "load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(trainer, "PackedDataset", lambda _: flowers)
    gpu_of(HALF, after=math.ceil(flowers.images(Split.TRAIN) / RECIPE.batch_size) + 1)
    trainer.main()
    said = [(each.get("event", "end"), each.get("data", {}).get("epoch")) for each in events()]
    before = said.index(("out_of_memory", None))
    told_epochs = [[epoch for name, epoch in part if name == "epoch"] for part in (said[:before], said[before:])]
    assert told_epochs == [[1], [2, 3]]
    assert sorted(path.name for path in Path(child.directory).glob("artifact*")) == ["artifact.safetensors"]
    gpu_of(0)
    trainer.main()
    failed = events()[-1]["failed"]
    assert failed["code"] == "out_of_memory"
    assert "smaller batch_size" in failed["detail"]
