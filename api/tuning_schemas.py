"""Tuning jobs, their plans, events and checkpoints, over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api import estimates
from api.reproduction_schemas import Reproduced, Reproduction
from api.schemas import Metadata, PositiveFloat, PromptSetName, Request, Trouble
from bpt_core.catalog import Pooling
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import WhiteningInput
from bpt_store import ids, models, scheduling
from bpt_store.scheduling import Priority, Reason

AUTO = "auto"

Auto = Literal["auto"]


class MethodChoice(Request):
    """`"auto"` is found among several trials on the validation split, as for some hyperparameters."""

    type: Method | Auto = Method.BPT_BILINEAR
    depth: Depth | Auto | None = Field(
        None, description="where prompts enter: before the first block (default), at every block, at the top four"
    )
    prompts: int | None = Field(None, description="number of prompts m; absent: a default for the backbone")
    rank: int | Auto | None = Field(None, description="p of P~ = A B^T; absent: a default for the number of prompts")
    start: Start | None = Field(
        None, description="spt: random or kmeans tokens; bpt-bilinear: random or whitened; absent: the method's default"
    )
    whitening_input: WhiteningInput | None = Field(None, description="what is whitened: tokens before or after norm1")
    pooling: Pooling | None = Field(None, description="absent: the backbone's own")


class Hyperparameters(Request):
    """What is absent gets the recipe's default for the method and backbone; what is `"auto"` is found by trials."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: PositiveFloat | Auto | None = None
    weight_decay: PositiveFloat | Auto | None = None
    head_weight_decay: PositiveFloat | Auto | None = None
    warmup_epochs: int | None = None
    patience: int | None = Field(None, description="epochs without a better validation score that end the run; 0: none")
    crop_scale_min: PositiveFloat | None = None
    views: int | None = Field(
        None, description="crops of each image that are drawn once and come again; 0: a fresh crop in every epoch"
    )
    head_fit_epochs: int | None = Field(
        None, description="epochs in which the head alone is fitted, before and after; 0: none"
    )
    head_fit_learning_rate: PositiveFloat | None = None
    label_smoothing: PositiveFloat | None = None
    balance_classes: bool | None = Field(None, description="rare classes weigh as much as frequent ones")
    mixup: PositiveFloat | None = Field(None, description="alpha of Beta(alpha, alpha); 0: none")
    ema: bool | None = Field(None, description="evaluate and publish a moving average of what is trained")


class Budget(Request):
    """What a tuning job may take."""

    max_minutes: float = Field(
        gt=0,
        le=43_200,
        allow_inf_nan=False,
        description="minutes of running, summed over attempts; waiting and pauses do not count",
        examples=[60],
    )


class TuningJobCreate(Request):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset": "ds_0199c0de000070008000000000000000",
                    "prompt_set": "birds",
                    "method": {"type": "bpt-bilinear", "prompts": 32, "rank": 24},
                    "hyperparameters": {"epochs": 30, "learning_rate": "auto"},
                }
            ]
        },
    )

    dataset: str = Field(description="`ds_...`, the newest version, or `ds_...:3`")
    prompt_set: PromptSetName
    backbone: str | None = None
    method: MethodChoice = MethodChoice()
    hyperparameters: Hyperparameters = Hyperparameters()
    seed: int = Field(0, ge=0, lt=2**53, description="what is exact as a number of JSON")
    trials: int | None = Field(None, description='trials for what is "auto"; absent: 8')
    continue_from: str | None = Field(
        None,
        max_length=200,
        description="a version to begin with, as it is now: `name:3`, `name@alias` or `name`; method and backbone are "
        "its own, the head is where the classes are the same",
        examples=["birds@production"],
    )
    budget: Budget | None = Field(
        None, description="training stops after the epoch that goes over it, and the best so far is published"
    )
    priority: Priority = Field(Priority.NORMAL, description="among your own jobs that wait")
    dry_run: bool = Field(False, description="only say what the job would be, and what it would cost")
    metadata: Metadata = Field(default_factory=dict)


class ContinuedFrom(BaseModel):
    """The version that tuning begins with, resolved when the job was created."""

    prompt_set: str
    version: int
    artifact_sha256: str
    head: Literal["carried", "new"] = Field(description="carried where class names and task are the same")


class TuningPlan(BaseModel):
    """What a tuning job would be: the reply to a dry run."""

    backbone: str
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    trials: int = Field(description='1 where nothing is "auto"')
    parameters: int = Field(description="trained parameters without the head, as the paper counts")
    estimated_seconds: float = Field(
        description="of all epochs, from the speed of earlier jobs, or of the machine as configured"
    )
    budget: Budget | None
    continue_from: ContinuedFrom | None

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Self:
        method, hyperparameters = split_recipe(payload["recipe"], payload.get("search"))
        return cls(
            backbone=payload["backbone"],
            method=method,
            hyperparameters=hyperparameters,
            seed=payload["recipe"]["seed"],
            trials=(payload.get("search") or {}).get("trials", 1),
            parameters=payload["parameters"],
            estimated_seconds=payload["estimated_seconds"],
            budget=payload["budget"],
            continue_from=payload["continue_from"],
        )


class Waiting(BaseModel):
    """Where a job stands that waits, as of now; who comes later may yet come before it."""

    reason: Reason = Field(
        description="backoff: it crashed and is tried again after a pause; running_limit: as many of yours run as may; "
        "behind_others; workers_busy: it is the next one; no_worker: it is the next one, and nobody works on its kind"
    )
    ahead: int = Field(description="jobs that are likely to be taken up before it, of all customers")
    start_in_seconds: float | None = Field(description="null where nothing has been measured yet")


class TuningJob(BaseModel):
    id: str
    state: models.JobState
    priority: Priority
    waiting: Waiting | None = Field(description="of a job that waits, where one job is asked for")
    dataset: str
    dataset_version: int | None
    prompt_set: str
    backbone: str
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int
    trials: int = Field(description='1 where nothing is "auto"')
    parameters: int = Field(description="trained parameters without the head, as the paper counts")
    estimated_seconds: float | None
    budget: Budget | None
    continue_from: ContinuedFrom | None
    reproduces: Reproduced | None = Field(description="the version that is learned once more; nothing is published")
    attempt: int
    failures: int
    worked_seconds: float = Field(description="of running, in all attempts that have ended")
    progress: dict[str, Any] | None
    stopped_by: Literal["budget"] | None = Field(description="what ended training before the last epoch")
    result: dict[str, Any] | None = Field(description="what was published")
    reproduction: Reproduction | None = Field(description="how what was learned differs from `reproduces`")
    error: Trouble | None
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    estimated_finish_at: datetime | None = Field(description="from the epochs so far; before them from the plan")

    @classmethod
    def of(cls, row: models.Job, waiting: scheduling.Waiting | None = None) -> Self:
        search = row.payload.get("search")
        method, hyperparameters = split_recipe(row.payload["recipe"], search)
        reproduction = (row.result or {}).get("reproduction")
        assert row.dataset_id is not None
        return cls(
            id=ids.public(ids.JOB, row.id),
            state=row.state,
            priority=Priority.of(row.priority),
            waiting=Waiting(**asdict(waiting)) if waiting else None,
            dataset=ids.public(ids.DATASET, row.dataset_id),
            dataset_version=row.dataset_version,
            prompt_set=row.payload["prompt_set"],
            backbone=row.payload["backbone"],
            method=method,
            hyperparameters=hyperparameters,
            seed=row.payload["recipe"]["seed"],
            trials=search["trials"] if search else 1,
            parameters=row.payload["parameters"],
            estimated_seconds=row.payload.get("estimated_seconds"),
            budget=row.payload.get("budget"),
            continue_from=row.payload.get("continue_from"),
            reproduces=row.payload.get("reproduces"),
            attempt=row.attempt,
            failures=row.failures,
            worked_seconds=row.worked_seconds,
            progress=row.progress,
            stopped_by=(row.result or {}).get("stopped_by"),
            result=row.result if reproduction is None else None,
            reproduction=reproduction,
            error=Trouble.of(row.error),
            metadata=row.custom,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            estimated_finish_at=estimates.finish_at(row, waiting),
        )


class JobEvent(BaseModel):
    number: int
    attempt: int
    type: str
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, row: models.JobEvent) -> Self:
        return cls(number=row.number, attempt=row.attempt, type=row.type, data=row.data, created_at=row.created_at)


class Checkpoint(BaseModel):
    """The prompt set that an epoch left; it can be published. It was not tested, and it is not calibrated."""

    job: str
    epoch: int
    attempt: int
    score: float = Field(description="on the validation split: what the best epoch is chosen by")
    val: dict[str, Any]
    artifact_sha256: str
    artifact_bytes: int
    created_at: datetime

    @classmethod
    def of(cls, row: models.JobCheckpoint) -> Self:
        return cls(
            job=ids.public(ids.JOB, row.job_id),
            epoch=row.epoch,
            attempt=row.attempt,
            score=row.score,
            val=row.val,
            artifact_sha256=row.sha256,
            artifact_bytes=row.bytes,
            created_at=row.created_at,
        )


class CheckpointPublish(Request):
    prompt_set: PromptSetName | None = Field(None, description="gets the new version; absent: the job's own")


_METHOD_FIELDS = ("depth", "prompts", "rank", "start", "whitening_input", "pooling")


def split_recipe(
    recipe: Mapping[str, Any], search: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stored recipe -> method and hyperparameters, as the interface names them; what is searched is "auto".

    That of an imported version has a method only.
    """
    shown = {**recipe, **dict.fromkeys((search or {}).get("settings", ()), AUTO)}
    # Recipes of before the whole family of methods have no start.
    method = {"type": shown["method"], **{name: shown.get(name) for name in _METHOD_FIELDS}}
    rest = {name: value for name, value in shown.items() if name not in (*_METHOD_FIELDS, "method", "seed")}
    return method, rest
