"""What goes over the wire. Requests refuse unknown fields; replies are made from rows by `of`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from api import estimates
from api.reproduction_schemas import Reproduced, Reproduction
from bpt_core.catalog import BackboneSpec, Pooling
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import WhiteningInput
from bpt_store import ids, models, scheduling
from bpt_store.audit import Action
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.prompt_sets import NAME_PATTERN
from bpt_store.scheduling import Priority, Reason

Item = TypeVar("Item")


# As the OpenAPI has them, too.
_PLAIN = r"^[^\x00-\x1f\x7f]*$"


def _plain(text: str) -> str:
    if not re.fullmatch(_PLAIN, text):
        raise ValueError("control characters are not allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("lone surrogates are not allowed") from None
    return text


def _is_a_moment(moment: object) -> object:
    if not isinstance(moment, str) or not _RFC_3339.match(moment):
        raise ValueError("as in 2026-01-02T00:00:00Z")
    return moment


def _is_a_day(day: object) -> object:
    if not isinstance(day, str) or not _DAY.fullmatch(day):
        raise ValueError("as in 2026-01-02")
    return day


def _is_whole(number: object) -> object:
    return int(number) if isinstance(number, float) and number.is_integer() else number


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")
PlainText = Annotated[str, AfterValidator(_plain), Field(json_schema_extra={"pattern": _PLAIN})]
Name = Annotated[PlainText, Field(min_length=1, max_length=200)]
Metadata = Annotated[
    dict[Annotated[PlainText, Field(min_length=1, max_length=64)], Annotated[PlainText, Field(max_length=512)]],
    Field(max_length=16, json_schema_extra={"additionalProperties": False}),
]
# An integer as JSON Schema has it: 5 and 5.0, neither "5" nor true.
WHOLE = BeforeValidator(_is_whole)
# Pydantic alone would take seconds since 1970 as well.
Moment = Annotated[AwareDatetime, BeforeValidator(_is_a_moment)]
Day = Annotated[date, BeforeValidator(_is_a_day)]
PromptSetName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", examples=["birds"])]
PositiveFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AUTO = "auto"
Auto = Literal["auto"]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first; give `next_cursor` as `after` to get the next."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


class Trouble(BaseModel):
    """Why something failed."""

    code: str
    detail: str
    log: list[str] = Field([], description="the last lines of what the process that worked on it said, as far as known")

    @classmethod
    def of(cls, error: Mapping[str, Any] | None) -> Self | None:
        return cls(code=error["code"], detail=error["detail"], log=error.get("log", [])) if error else None


# --- customers and keys ---


_NO_LIMIT = "0: no limit"


class CustomerCreate(Request):
    name: Name


class CustomerChange(Request):
    """What is absent stays. A weight, limit or quota that is null becomes the service's own."""

    name: Name = Field("", examples=["acme"])
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="of his share of the workers; 1 where nothing is said"
    )
    running_jobs_limit: Annotated[int, Field(strict=True, ge=1, lt=2**31), WHOLE] | None = None
    queued_jobs_limit: Annotated[int, Field(strict=True, ge=0, lt=2**31), WHOLE] | None = None
    quota_datasets: Annotated[int, Field(strict=True, ge=0, lt=2**31), WHOLE] | None = None
    # What is exact as a number of JSON.
    quota_images: Annotated[int, Field(strict=True, ge=0, lt=2**53), WHOLE] | None = None
    quota_bytes: Annotated[int, Field(strict=True, ge=0, lt=2**53), WHOLE] | None = None
    requests_per_minute: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )
    images_per_minute: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )
    upload_bytes_per_day: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )

    def changes(self) -> dict[str, Any]:
        """As customers.change takes them."""
        given = self.model_dump(exclude_unset=True)
        return given | ({"weight": 1.0} if given.get("weight", 1.0) is None else {})


class Customer(BaseModel):
    """A limit or quota that is null is the service's own."""

    id: str
    name: str
    suspended_at: datetime | None
    weight: float
    running_jobs_limit: int | None = Field(description="of one kind at a time")
    queued_jobs_limit: int | None = Field(description="unfinished jobs of one kind")
    quota_datasets: int | None
    quota_images: int | None
    quota_bytes: int | None
    requests_per_minute: int | None = Field(description=_NO_LIMIT)
    images_per_minute: int | None = Field(description=_NO_LIMIT)
    upload_bytes_per_day: int | None = Field(description=_NO_LIMIT)
    created_at: datetime

    @classmethod
    def of(cls, row: models.Customer) -> Self:
        return cls(
            id=ids.public(ids.CUSTOMER, row.id),
            name=row.name,
            suspended_at=row.suspended_at,
            weight=row.weight,
            running_jobs_limit=row.running_jobs_limit,
            queued_jobs_limit=row.queued_jobs_limit,
            quota_datasets=row.quota_datasets,
            quota_images=row.quota_images,
            quota_bytes=row.quota_bytes,
            requests_per_minute=row.requests_per_minute,
            images_per_minute=row.images_per_minute,
            upload_bytes_per_day=row.upload_bytes_per_day,
            created_at=row.created_at,
        )


class ApiKeyCreate(Request):
    customer: str = Field(examples=["cus_0199c0de000070008000000000000000"])
    name: Name
    scopes: list[Scope] = Field(default=list(CUSTOMER_SCOPES), min_length=1)
    expires_at: Moment | None = None


class AdminApiKeyCreate(Request):
    name: Name
    expires_at: Moment | None = None


class ApiKeyRotate(Request):
    overlap_seconds: int = Field(
        86400,
        ge=0,
        le=30 * 86400,
        description="so long the old key holds too, if it does not end before",
    )


class ApiKey(BaseModel):
    """`token` is there in the reply that makes the key and never again."""

    id: str
    customer: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    token: str | None = None

    @classmethod
    def of(cls, row: models.ApiKey, token: str | None = None) -> Self:
        return cls(
            id=ids.public(ids.KEY, row.id),
            customer=ids.public(ids.CUSTOMER, row.customer_id) if row.customer_id else None,
            name=row.name,
            scopes=row.scopes,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            token=token,
        )


class UsageDay(BaseModel):
    """What a customer has used on a day (UTC), as far as it is over."""

    customer: str
    day: date
    online_images: int = Field(description="predicted in requests, each as often as prompt sets were applied to it")
    batch_images: int = Field(description="predicted by batch predictions that succeeded on that day, counted likewise")
    tuning_seconds: float = Field(description="of workers on tuning jobs; an attempt counts when it ends")
    batch_seconds: float = Field(description="of workers on batch predictions; an attempt counts when it ends")
    stored_bytes: int | None = Field(description="kept when the day's sample was taken; null where there was none")

    @classmethod
    def of(cls, row: models.UsageDay) -> Self:
        return cls(
            customer=ids.public(ids.CUSTOMER, row.customer_id),
            day=row.day,
            online_images=row.online_images,
            batch_images=row.batch_images,
            tuning_seconds=round(row.tuning_seconds, 3),
            batch_seconds=round(row.batch_seconds, 3),
            stored_bytes=row.stored_bytes,
        )


class AuditEntry(BaseModel):
    """What was done to whom by which key. It holds ids, numbers and words of the service's, no text of a customer's."""

    id: str
    customer: str | None
    actor: str = Field(
        description="the key that was used, also an administrator's; all zeros: the service itself",
        examples=[f"key_{'0' * 32}"],
    )
    action: Action
    resource_type: str = Field(examples=["prompt_set"])
    resource: str = Field(examples=[f"ps_{'0' * 32}"])
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None = Field(
        description="X-Request-Id; one that the caller chose as sha256: and 32 digits of its SHA-256"
    )
    at: datetime

    @classmethod
    def of(cls, row: models.AuditEntry) -> Self:
        return cls(
            id=ids.public(ids.AUDIT, row.id),
            customer=ids.public(ids.CUSTOMER, row.customer_id) if row.customer_id else None,
            actor=ids.public(ids.KEY, row.actor),
            action=Action(row.action),
            resource_type=row.action.partition(".")[0],
            resource=row.resource,
            before=row.before,
            after=row.after,
            request_id=row.request_id,
            at=row.at,
        )


# --- what there is to choose from ---


class Backbone(BaseModel):
    name: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    pooling: str
    licence: str
    non_commercial: bool
    available: bool = Field(description="false: its licence forbids commercial use and this service has not allowed it")

    @classmethod
    def of(cls, spec: BackboneSpec, *, available: bool) -> Self:
        return cls(
            name=spec.name,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            pooling=spec.pooling,
            licence=spec.licence,
            non_commercial=spec.non_commercial,
            available=available,
        )


class MethodInfo(BaseModel):
    type: Method
    depths: list[Depth]
    starts: list[Start] = Field(description="where trained numbers may start; the first is the default of shallow")
    defaults: dict[str, Any]


# --- datasets ---


class Source(BaseModel):
    """What was sent. `sha256` is absent where it came in parts and nobody said."""

    sha256: str | None
    bytes: int


Counts = dict[str, dict[str, int]]


class DatasetContents(BaseModel):
    """What a dataset and a version of it have in common."""

    state: models.DatasetState
    task: str | None = Field(description="single-label, multi-label or unlabelled, once ready")
    class_names: list[str]
    counts: Counts | None = Field(description="images per class and split, once ready")
    splits: dict[str, int] | None = Field(description="images per split, once ready")
    image_count: int | None = Field(description="images in all, once ready")
    verdict: str | None = Field(description="good to tune, tune with care, or fix first: see the report")
    source: Source | None
    error: Trouble | None
    created_at: datetime


class DatasetVersion(DatasetContents):
    """Complete by itself; never changes once it is ready."""

    dataset: str
    number: int
    base: int | None = Field(description="the version it was made from; null for the first")

    @classmethod
    def of(cls, row: models.DatasetVersion) -> Self:
        return cls(dataset=ids.public(ids.DATASET, row.dataset_id), number=row.number, base=row.base, **_shown(row))


class Dataset(DatasetContents):
    """As its newest ready version is, or the first one before that."""

    id: str
    name: str
    version: int | None = Field(description="the newest ready version; `<id>:<number>` names one for good")
    options: dict[str, Any] = Field(description="how it is read")
    metadata: dict[str, str]

    @classmethod
    def of(cls, row: models.Dataset, shown: models.DatasetVersion) -> Self:
        return cls(
            id=ids.public(ids.DATASET, row.id),
            name=row.name,
            version=row.latest,
            options=row.options,
            metadata=row.custom,
            **{**_shown(shown), "created_at": row.created_at},
        )


class DatasetChange(Request):
    """What is absent stays as it is; metadata are replaced as a whole."""

    name: Name | None = Field(None, examples=["birds"])
    metadata: Metadata | None = None


def _shown(row: models.DatasetVersion) -> dict[str, Any]:
    """The fields of DatasetContents."""
    known = row.source_sha256 is not None or bool(row.source_bytes)
    return {
        "state": row.state,
        "task": row.task,
        "class_names": row.class_names,
        "counts": row.counts,
        "splits": row.splits,
        "image_count": row.images,
        "verdict": row.verdict,
        "source": Source(sha256=row.source_sha256, bytes=row.source_bytes or 0) if known else None,
        "error": Trouble.of(row.error),
        "created_at": row.created_at,
    }


# --- tuning jobs ---


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
    metadata: Metadata = {}


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


# --- prompt sets ---


class PromptSet(BaseModel):
    id: str
    name: str
    latest_version: int | None
    aliases: dict[str, int] = Field(description="the version each alias points at", examples=[{"production": 3}])
    description: str | None
    metadata: dict[str, str]
    created_at: datetime

    @classmethod
    def of(cls, row: models.PromptSet, latest_version: int | None, aliases: Mapping[str, int]) -> Self:
        return cls(
            id=ids.public(ids.PROMPT_SET, row.id),
            name=row.name,
            latest_version=latest_version,
            aliases=dict(aliases),
            description=row.description,
            metadata=row.custom,
            created_at=row.created_at,
        )


class PromptSetVersion(BaseModel):
    """Immutable but for description, metadata, the archive and quarantine."""

    prompt_set: str
    version: int
    artifact_sha256: str
    artifact_bytes: int
    backbone: str
    backbone_fingerprint: str
    class_names: list[str]
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int | None = Field(description="null: imported")
    parameters: int
    metrics: dict[str, Any]
    imported: bool = Field(description="the artifact came from outside: what it does not tell is not known")
    job: str | None
    job_epoch: int | None = Field(description="the epoch whose checkpoint was published; null: the end of the job")
    dataset: str | None
    dataset_version: int | None
    continued_from: ContinuedFrom | None
    code_version: str | None = Field(description="the release of this service that learned it")
    description: str | None
    metadata: dict[str, str]
    archived_at: datetime | None = Field(description="archived: no name means it, and no alias moves to it")
    quarantined_at: datetime | None = Field(description="since then the stored artifact is known to be damaged")
    quarantine_reason: str | None
    created_at: datetime

    @classmethod
    def of(cls, name: str, row: models.PromptSetVersion) -> Self:
        method, hyperparameters = split_recipe(row.recipe)
        return cls(
            prompt_set=name,
            version=row.version,
            artifact_sha256=row.artifact_sha256,
            artifact_bytes=row.artifact_bytes,
            backbone=row.backbone,
            backbone_fingerprint=row.backbone_fingerprint,
            class_names=row.class_names,
            method=method,
            hyperparameters=hyperparameters,
            seed=row.recipe.get("seed"),
            parameters=row.parameters,
            metrics=row.metrics,
            imported=row.job_id is None,
            job=ids.public(ids.JOB, row.job_id) if row.job_id else None,
            job_epoch=row.job_epoch,
            dataset=ids.public(ids.DATASET, row.dataset_id) if row.dataset_id else None,
            dataset_version=row.dataset_version,
            continued_from=row.continued_from,
            code_version=row.code_version,
            description=row.description,
            metadata=row.custom,
            archived_at=row.archived_at,
            quarantined_at=row.quarantined_at,
            quarantine_reason=row.quarantine_reason,
            created_at=row.created_at,
        )


class GateOverride(Request):
    reason: Annotated[PlainText, Field(min_length=1, max_length=500)] = Field(
        description="kept in the history of the alias", examples=["the golden images are from before the new camera"]
    )


class AliasTarget(Request):
    """Where an alias is to point."""

    version: int = Field(ge=1, lt=2**31, examples=[3])
    expected_version: int | None = Field(
        None,
        description="where it points now, else 409; null: it must not exist yet; absent: wherever it is",
        examples=[2],
    )
    override: GateOverride | None = Field(None, description="move it even where the gate is against it")


class AliasRollback(Request):
    """How far back; without a body to the version before the last move."""

    to_version: int | None = Field(
        None, ge=1, lt=2**31, description="where the alias has been before; absent: before its last move"
    )
    expected_version: int | None = Field(None, ge=1, lt=2**31, description="where it points now, else 409")


class Alias(BaseModel):
    prompt_set: str
    alias: str
    version: int
    moved_at: datetime = Field(description="since when it points at this version")

    @classmethod
    def of(cls, prompt_set: str, row: models.PromptSetAlias) -> Self:
        return cls(prompt_set=prompt_set, alias=row.name, version=row.version, moved_at=row.moved_at)


class AliasMove(BaseModel):
    number: int = Field(description="1, 2, 3, ... without a gap")
    from_version: int | None = Field(description="null: the alias was not there")
    to_version: int | None = Field(description="null: the alias was removed")
    actor: str = Field(description="the API key that asked for it", examples=["key_0199c0de000070008000000000000000"])
    moved_at: datetime
    request_id: str | None
    override_reason: str | None = Field(description="why it was moved although the gate was against it")

    @classmethod
    def of(cls, row: models.AliasMove) -> Self:
        return cls(
            number=row.number,
            from_version=row.from_version,
            to_version=row.to_version,
            actor=row.actor,
            moved_at=row.moved_at,
            request_id=row.request_id,
            override_reason=row.override_reason,
        )


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
