"""The service's resources as frozen dataclasses.

A field the service sends and a class does not know is ignored, so that a newer service does not break an
older client. For the same reason a `state` is a plain string with predicates beside it.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bpt_client.errors import UnexpectedAnswer

T = TypeVar("T")
Json = dict[str, Any]

TERMINAL_JOB_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Problem:
    """Why a dataset, a job or one image of a prediction failed; `code` is stable.

    `log` is what the process that worked on a job said last, line by line, as far as known.
    """

    code: str
    detail: str
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Customer:
    """A limit, quota or rate that is None is the service's own; a rate of 0 is no limit."""

    id: str
    name: str
    created_at: datetime
    suspended_at: datetime | None = None
    weight: float = 1.0
    running_jobs_limit: int | None = None
    queued_jobs_limit: int | None = None
    quota_datasets: int | None = None
    quota_images: int | None = None
    quota_bytes: int | None = None
    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    upload_bytes_per_day: int | None = None


@dataclass(frozen=True)
class ApiKey:
    """`token` is the secret itself; the service shows it once, in the answer that creates the key."""

    id: str
    customer: str | None
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    token: str | None = field(default=None, repr=False)  # must not end up in a log by way of repr


@dataclass(frozen=True)
class UsageDay:
    """What a customer has used on a day (UTC). `stored_bytes` is None where no sample was taken."""

    customer: str
    day: str
    online_images: int
    batch_images: int
    tuning_seconds: float
    batch_seconds: float
    stored_bytes: int | None = None


@dataclass(frozen=True)
class AuditEntry:
    """What was done by which key, told by ids and numbers; `before` and `after` are what it changed."""

    id: str
    customer: str | None
    actor: str
    action: str
    resource_type: str
    resource: str
    at: datetime
    before: Json | None = None
    after: Json | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Backbone:
    """A frozen Vision Transformer; sizes in pixels, `depth` in blocks.

    Not `available`: its licence forbids commercial use, and this service has not allowed that.
    """

    name: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    pooling: str = ""
    licence: str = ""
    non_commercial: bool = False
    available: bool = True


@dataclass(frozen=True)
class Method:
    """A way to tune; `defaults` are where it differs from the recipe all methods share."""

    type: str
    depths: tuple[str, ...] = ()
    defaults: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What was sent, as it came. `sha256` is unknown where the service fetched it by itself."""

    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetContents:
    """What a dataset and a version of it have in common; most of it is empty until it was validated.

    `counts` is {class name: {split: images}}, without labels there are none; an image with several labels counts once
    for each of them. `splits` is {split: images}. `verdict` is "good to tune", "tune with care" or "fix first".
    """

    state: str
    created_at: datetime
    task: str | None = None
    class_names: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    image_count: int | None = None
    verdict: str | None = None
    source: Source | None = None
    error: Problem | None = None

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def is_failed(self) -> bool:
        return self.state == "failed"

    def images(self, split: str | None = None) -> int:
        """Images in one split, or in all of them; 0 while nothing is known."""
        return (self.image_count or 0) if split is None else self.splits.get(split, 0)


@dataclass(frozen=True, kw_only=True)
class Dataset(DatasetContents):
    """As its newest ready version is, which is number `version`; before there is one, as the first is."""

    id: str
    name: str
    version: int | None = None
    options: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetVersion(DatasetContents):
    """`dataset` is an id, `base` the number of the version it was made from, None for the first."""

    dataset: str
    number: int
    base: int | None = None


@dataclass(frozen=True)
class MethodSettings:
    """`prompts` = m and `rank` = p; None or 0 where the method has none, "auto" where trials are to find it."""

    type: str
    depth: str | None = None
    prompts: int | None = None
    rank: int | str | None = None
    start: str | None = None
    whitening_input: str | None = None
    pooling: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split: shares between 0 and 1, `loss` is mean cross-entropy in nats.

    With one label per image there are top1, top5 and recall `per_class`; with several mean_average_precision and
    average precision `per_class`.
    """

    images: int
    loss: float
    top1: float | None = None
    top5: float | None = None
    mean_average_precision: float | None = None
    per_class: dict[str, float | None] = field(default_factory=dict)
    calibration_error: float | None = None
    coverage: float | None = None
    accepted_accuracy: float | None = None

    @property
    def score(self) -> float | None:
        """What the best epoch was chosen by."""
        return self.mean_average_precision if self.top1 is None else self.top1


@dataclass(frozen=True)
class Progress:
    """The last epoch that ended, counted from 1; losses in nats, `seconds` it took."""

    epoch: int | None = None
    epochs: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    trials: int = 1
    type: str = "epoch"


@dataclass(frozen=True)
class TuningResult:
    """What a job that succeeded brought about; `test` is None where the dataset has no test split."""

    prompt_set: str
    version: int
    best_epoch: int
    val: Evaluation
    artifact_sha256: str
    artifact_bytes: int
    test: Evaluation | None = None


@dataclass(frozen=True)
class Budget:
    """Minutes of running, summed over attempts."""

    max_minutes: float


@dataclass(frozen=True)
class ContinuedFrom:
    """The version that tuning began with; `head` is "carried" where the classes are the same, else "new"."""

    prompt_set: str
    version: int
    artifact_sha256: str = ""
    head: str = "new"

    def __str__(self) -> str:
        return f"{self.prompt_set}:{self.version}"


@dataclass(frozen=True)
class Checkpoint:
    """The prompt set that an epoch of a tuning job left; `score` is what the best epoch is chosen by."""

    job: str
    epoch: int
    score: float
    val: Evaluation
    artifact_sha256: str
    artifact_bytes: int
    created_at: datetime
    attempt: int = 1


@dataclass(frozen=True)
class TuningPlan:
    """What a tuning job would be, and what all its epochs would cost."""

    backbone: str
    method: MethodSettings
    hyperparameters: Json
    seed: int
    trials: int
    parameters: int
    estimated_seconds: float
    budget: Budget | None = None
    continue_from: ContinuedFrom | None = None


@dataclass(frozen=True)
class Waiting:
    """Why a job waits, how many are likely to be taken up before it, and for how long, if that can be told."""

    reason: str
    ahead: int = 0
    start_in_seconds: float | None = None


@dataclass(frozen=True)
class VersionMetrics:
    best_epoch: int | None = None
    val: Evaluation | None = None
    test: Evaluation | None = None


@dataclass(frozen=True)
class Reproduced:
    """The version that a job learns once more."""

    prompt_set: str
    version: int
    artifact_sha256: str

    def __str__(self) -> str:
        return f"{self.prompt_set}:{self.version}"


@dataclass(frozen=True)
class TensorDifference:
    """`relative` is the norm of the difference as a share of the norm of what was."""

    is_equal: bool
    largest: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Learned:
    """`code_version` is the release of the service that learned it."""

    artifact_sha256: str
    metrics: VersionMetrics
    code_version: str | None = None


@dataclass(frozen=True)
class Reproduction:
    """How what was learned once more differs from the first time.

    `verdict` is "identical" (bit for bit), "equivalent" (within the service's tolerance) or "different"; `agreement` is
    the share of the `images` of `split` that both answer the same.
    """

    verdict: str
    tensors: dict[str, TensorDifference]
    split: str
    images: int
    agreement: float
    then: Learned
    now: Learned


@dataclass(frozen=True)
class TuningJob:
    """`attempt` counts how often a worker took the job, `failures` how many of those attempts crashed.

    `parameters` are the trained ones without the head. `dataset` is an id, `prompt_set` a name. `worked_seconds` is
    what attempts took that have ended. `stopped_by` is "budget" where that ended training before the last epoch. One
    that `reproduces` a version publishes nothing: it has a `reproduction` in place of a `result`.
    """

    id: str
    state: str
    dataset: str
    prompt_set: str
    backbone: str
    method: MethodSettings
    hyperparameters: Json
    created_at: datetime
    seed: int = 0
    trials: int = 1
    parameters: int = 0
    estimated_seconds: float | None = None
    budget: Budget | None = None
    continue_from: ContinuedFrom | None = None
    reproduces: Reproduced | None = None
    attempt: int = 0
    failures: int = 0
    worked_seconds: float = 0.0
    progress: Progress | None = None
    stopped_by: str | None = None
    result: TuningResult | None = None
    reproduction: Reproduction | None = None
    error: Problem | None = None
    metadata: Json = field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    priority: str = "normal"
    waiting: Waiting | None = None
    estimated_finish_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_JOB_STATES


@dataclass(frozen=True)
class BatchProgress:
    """Images that were predicted, with every prompt set, and images in all."""

    done: int
    total: int


@dataclass(frozen=True)
class JobEvent:
    """`number` runs 1, 2, 3, ... over all attempts. `type` says what `data` holds:

    state     {"state", "reason"?, "from"?, "error"?}; `from` is the state from which a customer let it wait again
    started   {"device", "resumed"}: this attempt has loaded all it needs, and goes on from a checkpoint or not
    epoch     the fields of Progress
    checkpoint_lost  {"epoch", "reason"}: a checkpoint to go on from was missing or damaged; the job goes on without it
    progress  the fields of BatchProgress
    """

    number: int
    attempt: int
    type: str
    data: Json
    created_at: datetime | None = None

    @property
    def state(self) -> str | None:
        """The state the job is in from this event on; None for events of other types."""
        return str(self.data.get("state")) if self.type == "state" else None

    @property
    def progress(self) -> Progress | None:
        return parse(Progress, self.data) if self.type == "epoch" else None

    @property
    def images(self) -> BatchProgress | None:
        """How far a batch prediction is."""
        return parse(BatchProgress, self.data) if self.type == "progress" else None

    @property
    def is_last(self) -> bool:
        return self.state in TERMINAL_JOB_STATES


@dataclass(frozen=True)
class PromptSet:
    """`latest_version` is None until the first job for it has succeeded; `aliases` is {alias: version}."""

    id: str
    name: str
    created_at: datetime
    latest_version: int | None = None
    aliases: dict[str, int] = field(default_factory=dict)
    description: str | None = None
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSetVersion:
    """Immutable. `job` and `dataset` are ids; what they name may be deleted since.

    `job_epoch` is set where a checkpoint of the job was published, and not what came out at its end. Of an `imported`
    one neither job nor dataset, hyperparameters, seed nor metrics are known.
    """

    prompt_set: str
    version: int
    artifact_sha256: str
    artifact_bytes: int
    backbone: str
    backbone_fingerprint: str
    class_names: tuple[str, ...]
    created_at: datetime
    method: MethodSettings | None = None
    hyperparameters: Json = field(default_factory=dict)
    seed: int | None = None
    parameters: int = 0
    imported: bool = False
    metrics: VersionMetrics = field(default_factory=VersionMetrics)
    job: str | None = None
    job_epoch: int | None = None
    dataset: str | None = None
    dataset_version: int | None = None
    continued_from: ContinuedFrom | None = None
    code_version: str | None = None
    description: str | None = None
    metadata: Json = field(default_factory=dict)
    archived_at: datetime | None = None
    quarantined_at: datetime | None = None
    quarantine_reason: str | None = None


@dataclass(frozen=True)
class Alias:
    """Where an alias of a prompt set points, and since when."""

    prompt_set: str
    alias: str
    version: int
    moved_at: datetime


@dataclass(frozen=True)
class AliasMove:
    """`number` runs 1, 2, 3, ...; without `from_version` the alias was made, without `to_version` it was removed.

    `actor` is the id of the key that asked for it; `override_reason` says why it was moved although the gate was
    against it.
    """

    number: int
    actor: str
    moved_at: datetime
    from_version: int | None = None
    to_version: int | None = None
    request_id: str | None = None
    override_reason: str | None = None


@dataclass(frozen=True)
class Gate:
    """What a version must reach before an alias moves to it. Without `split` on all images, without `aliases` any."""

    prompt_set: str
    dataset: str
    dataset_version: int
    metric: str
    floor: float
    set_at: datetime
    split: str | None = None
    aliases: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GateCheck:
    """How a version did on a dataset; `passed` is None where the gate asks for other images, or there is none."""

    id: str
    prompt_set: str
    version: int
    dataset: str
    dataset_version: int
    metrics: dict[str, float | None]
    job: str
    created_at: datetime
    split: str | None = None
    passed: bool | None = None


@dataclass(frozen=True)
class ServedVersion:
    """Exactly what made a prediction, or is to make it; `reference` is how it was asked for."""

    name: str
    version: int
    artifact_sha256: str
    backbone: str
    backbone_fingerprint: str
    reference: str | None = None


@dataclass(frozen=True)
class ResultsFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BatchResult:
    """`rows` has one for each image and prompt set, `errors` are those of images that could not be read.

    `files` has one of each format: jsonl, csv, parquet. `metrics` are those of a labelled dataset, as
    {"birds:3": {"top1": 0.9}}.
    """

    images: int
    rows: int
    errors: int
    files: dict[str, ResultsFile] = field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchPrediction:
    """`prompt_sets` are the exact versions that were meant when the job was created. `dataset` is an id."""

    id: str
    state: str
    dataset: str
    prompt_sets: tuple[ServedVersion, ...]
    top_k: int
    images: int
    created_at: datetime
    split: str | None = None
    attempt: int = 0
    failures: int = 0
    priority: str = "normal"
    progress: BatchProgress | None = None
    result: BatchResult | None = None
    error: Problem | None = None
    metadata: Json = field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_JOB_STATES


@dataclass(frozen=True)
class ComparedPromptSet:
    prompt_set: str
    accuracy: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True)
class ComparedClass:
    """`a` and `b`: the share of the images of the class that they find."""

    name: str
    images: int
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """Of the images `b` has `lost` some that `a` is right about, and `won` others.

    `agreement` is the share that both answer the same, `p_value` McNemar's: small where it is no chance that one is
    better.
    """

    images: int
    a: ComparedPromptSet
    b: ComparedPromptSet
    lost: int
    won: int
    p_value: float
    errors: int = 0
    agreement: float | None = None
    classes: tuple[ComparedClass, ...] = ()


@dataclass(frozen=True)
class FlippedImage:
    """`flip` is "lost" or "won"; `a` and `b` are the labels they gave."""

    image: str
    flip: str
    labels: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """`score` is a probability between 0 and 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Seen:
    """What one prompt set says of an image: `labels` apply (none: `unknown`), `predictions` are the best classes."""

    prompt_set: str
    labels: tuple[str, ...] = ()
    unknown: bool = False
    predictions: tuple[Score, ...] = ()
    features: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImagePrediction:
    """The answer for one image, a result for each prompt set; an image that failed has `error` and no results."""

    index: int
    filename: str | None = None
    status: int = 200
    results: tuple[Seen, ...] = ()
    error: Problem | None = None


@dataclass(frozen=True)
class Timings:
    """Milliseconds, of the image that was done last: they add up to the whole."""

    queue_ms: float | None = None
    decode_ms: float | None = None
    compute_ms: float | None = None


@dataclass(frozen=True)
class Prediction:
    """`data` has one entry for each image sent, in that order."""

    prompt_sets: tuple[ServedVersion, ...]
    data: tuple[ImagePrediction, ...]
    timings: Timings = field(default_factory=Timings)


def parse(kind: type[T], value: object) -> T:
    """A dataclass of this module from decoded JSON; UnexpectedAnswer names the field that does not fit."""
    parsed: T = _parse(kind, value, kind.__name__)
    return parsed


def _parse(kind: Any, value: object, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        *others, last = (each for each in arguments if each is not types.NoneType)
        for each in others:
            with suppress(UnexpectedAnswer):
                return _parse(each, value, where)
        return _parse(last, value, where)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_parse(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in _expect(dict, value, where).items()}
    if is_dataclass(kind):
        return _parse_fields(kind, _expect(dict, value, where), where)
    if kind is datetime:
        try:
            return datetime.fromisoformat(_expect(str, value, where))
        except ValueError as error:
            raise UnexpectedAnswer(f"{where}: not a time: {value!r}") from error
    if kind is float and isinstance(value, int):
        return float(value)
    return _expect(kind, value, where)


def _parse_fields(kind: Any, values: Mapping[str, object], where: str) -> Any:
    given: dict[str, Any] = {}
    for name, (hint, is_required) in _fields(kind).items():
        if values.get(name) is not None:
            given[name] = _parse(hint, values[name], f"{where}.{name}")
        elif is_required:
            # Without a default null is fine only where the type says so.
            given[name] = _parse(hint, values.get(name), f"{where}.{name}")
    return kind(**given)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Per field its type and whether it has no default."""
    hints = get_type_hints(kind)
    return {
        each.name: (hints[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(kind)
    }


def _expect(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UnexpectedAnswer(f"{where}: expected {kind.__name__}, got {value!r:.100}")
    return value
