"""The tables. Every one with customer data carries customer_id, and row-level security (see migrations) guards it."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NOW = text("now()")
EMPTY_OBJECT = text("'{}'::jsonb")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "ck": "%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it from the class
        datetime: DateTime(timezone=True),
        str: Text,
        # None is SQL's NULL, as queries and sums expect it, and not JSON's.
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
        bytes: LargeBinary,
    }


class DatasetState(StrEnum):
    """Of a version; a dataset is `ready` from its first ready version on."""

    VALIDATING = "validating"
    READY = "ready"
    FAILED = "failed"


class JobKind(StrEnum):
    """Kinds of long work; each is also the name of a Celery queue."""

    INGEST = "ingest"
    TUNE = "tune"
    BATCH_PREDICT = "batch_predict"


class JobState(StrEnum):
    """queued -> running -> succeeded | failed | cancelled; `paused` in between.

    `pausing` and `cancelling` while a worker winds down.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)

    @property
    def is_held(self) -> bool:
        """A worker holds, or should hold, a lease on the job."""
        return self in (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)


class DeliveryState(StrEnum):
    """Of what a webhook endpoint is told: `dead` when it was tried as often as it ever is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


HELD_STATES = tuple(state for state in JobState if state.is_held)
TERMINAL_STATES = tuple(state for state in JobState if state.is_terminal)


def _enum(kind: type[StrEnum]) -> Enum:
    """Stored as text under a check constraint, so that a new state is a one-line migration."""
    return Enum(
        kind,
        native_enum=False,
        length=32,
        name=f"{kind.__name__.lower()}",
        create_constraint=True,
        values_callable=lambda members: [str(member.value) for member in members],
    )


def _id() -> Mapped[UUID]:
    return mapped_column(primary_key=True, server_default=text("uuidv7()"))


def _customer_id() -> Mapped[UUID]:
    return mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))


class Customer(Base):
    """A limit or quota that is None is the service's own."""

    __tablename__ = "customers"
    __table_args__ = (CheckConstraint("weight > 0", name="weight"),)

    id: Mapped[UUID] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float] = mapped_column(server_default=text("1"))  # with weight 3, three times the share of another
    running_jobs_limit: Mapped[int | None]  # of one kind at a time
    queued_jobs_limit: Mapped[int | None]  # unfinished ones, of one kind
    quota_datasets: Mapped[int | None]
    quota_images: Mapped[int | None] = mapped_column(BigInteger)
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # 0: no limit; see rate_limits.py
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    images_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    upload_bytes_per_day: Mapped[int | None] = mapped_column(BigInteger)
    suspended_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ApiKey(Base):
    """Only the SHA-256 of the secret is kept. Without a customer it is an administrator's key."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID | None] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    name: Mapped[str]
    secret_sha256: Mapped[bytes]
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute


class Dataset(Base):
    """What all versions have in common. `latest` is the newest version that is ready; None until there is one."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("customer_id", "id"),)

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    name: Mapped[str]
    state: Mapped[DatasetState] = mapped_column(_enum(DatasetState))
    options: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    latest: Mapped[int | None]
    custom: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class DatasetVersion(Base):
    """Complete by itself, immutable once it is ready. Versions share objects of equal content.

    `source` is what is to be read ({"parts": [{"key", "sha256", "bytes"}], "media_type"} or {"url"}) until that is
    done; `changes` is what is to become of items of the version `base`. `objects` are {"shards": [...], "items",
    "thumbnails"}, each {"key", "sha256", "bytes"}.
    """

    __tablename__ = "dataset_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "dataset_id"], ["datasets.customer_id", "datasets.id"], ondelete="CASCADE"
        ),
    )

    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    state: Mapped[DatasetState] = mapped_column(_enum(DatasetState))
    base: Mapped[int | None]
    source: Mapped[dict[str, Any] | None]
    source_sha256: Mapped[str | None]
    source_bytes: Mapped[int | None] = mapped_column(BigInteger)
    changes: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    task: Mapped[str | None]
    class_names: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    objects: Mapped[dict[str, Any] | None]
    images: Mapped[int | None]
    splits: Mapped[dict[str, Any] | None]  # images per split
    counts: Mapped[dict[str, Any] | None]  # {class: {split: images}}
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    report: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    verdict: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Upload(Base):
    """Bytes on their way in. Complete, it has become a version of a dataset, and says which.

    `intent` is what is to be made of it. `size_bytes` is what was announced, room that is set aside. `part_bytes` is
    None for what comes in one request. `fingerprint` is the client's own name for what it sends, by which it finds an
    upload again that it did not finish.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        UniqueConstraint("customer_id", "id"),
        Index("uploads_expiry", "expires_at"),
        Index("uploads_of_customer", "customer_id", "id"),
    )

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    intent: Mapped[dict[str, Any]]
    media_type: Mapped[str]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    part_bytes: Mapped[int | None] = mapped_column(BigInteger)
    fingerprint: Mapped[str | None]
    dataset_id: Mapped[UUID | None]  # what it has become; no foreign key, for it may be deleted again
    version: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """One part that is stored whole, under a key that no other attempt to store it has had."""

    __tablename__ = "upload_parts"
    __table_args__ = (
        ForeignKeyConstraint(["customer_id", "upload_id"], ["uploads.customer_id", "uploads.id"], ondelete="CASCADE"),
    )

    upload_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    key: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Job(Base):
    """All long work. A committed row in state `queued` IS the job; see jobs.py for its life.

    `attempt` counts claims and fences writes; `failures` counts the attempts that crashed. `worked_seconds` is what
    attempts took that have ended, `claimed_at` is when the one that has not began. `log_tail` is what the last attempt
    that went wrong said at its end.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("customer_id", "id"),
        Index("jobs_queued", "kind", "created_at", postgresql_where=text("state = 'queued'")),
        Index(
            "jobs_next",
            *("customer_id", "kind", text("priority DESC"), "created_at"),
            postgresql_where=text("state = 'queued'"),
        ),
        Index("jobs_held", "lease_expires_at", postgresql_where=text("state in ('running', 'pausing', 'cancelling')")),
        Index(
            "jobs_kept_checkpoints",
            "finished_at",
            postgresql_where=text("state in ('failed', 'cancelled') and checkpoint is not null"),
        ),
        Index("jobs_of_dataset", "dataset_id"),
        Index("jobs_of_customer", "customer_id", "kind", "id"),
    )

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind))
    state: Mapped[JobState] = mapped_column(_enum(JobState))
    # No foreign keys: a finished job keeps its lineage when dataset or prompt set are deleted.
    dataset_id: Mapped[UUID | None]
    dataset_version: Mapped[int | None]
    prompt_set_id: Mapped[UUID | None]
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=EMPTY_OBJECT)
    custom: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))  # among the customer's own
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    worker: Mapped[str | None]
    claimed_at: Mapped[datetime | None]
    worked_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    lease_expires_at: Mapped[datetime | None]
    available_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_event: Mapped[int] = mapped_column(server_default=text("0"))
    progress: Mapped[dict[str, Any] | None]
    checkpoint: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    error: Mapped[dict[str, Any] | None]
    log_tail: Mapped[list[str] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class QueueShare(Base):
    """What a customer has in a queue, and has had of its workers; see scheduling.py.

    Triggers on `jobs` keep `queued` and `running`, whatever changes a job. The other two are in seconds of a worker
    divided by the customer's weight: `served` is what was given so far, `began` what it was when the last claim began.
    """

    __tablename__ = "queue_shares"
    __table_args__ = (
        Index("queue_shares_waiting", "kind", "served", "customer_id", postgresql_where=text("queued > 0")),
        Index("queue_shares_began", "kind", "began"),
        {"info": {"derived": True}},  # not in a backup: it follows from jobs
    )

    customer_id: Mapped[UUID] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind), primary_key=True)
    queued: Mapped[int] = mapped_column(server_default=text("0"))
    running: Mapped[int] = mapped_column(server_default=text("0"))
    began: Mapped[float] = mapped_column(server_default=text("0"))
    served: Mapped[float] = mapped_column(server_default=text("0"))


class JobEvent(Base):
    """`number` runs 1, 2, 3, ... without a gap over all attempts of a job."""

    __tablename__ = "job_events"
    __table_args__ = (
        ForeignKeyConstraint(["customer_id", "job_id"], ["jobs.customer_id", "jobs.id"], ondelete="CASCADE"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    attempt: Mapped[int]
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))


class JobCheckpoint(Base):
    """The prompt set that an epoch of a tuning job left; see checkpoints.py.

    `score` and `val` are how it did on the validation split, `facts` what is published with the artifact.
    """

    __tablename__ = "job_checkpoints"
    __table_args__ = (
        ForeignKeyConstraint(["customer_id", "job_id"], ["jobs.customer_id", "jobs.id"], ondelete="CASCADE"),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    attempt: Mapped[int]
    artifact: Mapped[bytes] = mapped_column(deferred=True)
    sha256: Mapped[str]
    bytes: Mapped[int]
    score: Mapped[float]
    val: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class PromptSet(Base):
    """`last_deleted` is the greatest number of a version that was deleted: no number is ever given again."""

    __tablename__ = "prompt_sets"
    __table_args__ = (UniqueConstraint("customer_id", "id"), UniqueConstraint("customer_id", "name"))

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    name: Mapped[str]
    description: Mapped[str | None]
    custom: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    last_deleted: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class PromptSetVersion(Base):
    """Immutable but for its label: description, metadata, and whether it is archived. The artifact lives here, a few
    hundred kilobytes; lineage has no foreign keys. In quarantine (see quarantine.py) the artifact is not what it was.

    `job_epoch` is the epoch of a checkpoint that was published; None for what came out at the end of the job.
    `continued_from` is the version that tuning began with: {"prompt_set", "version", "artifact_sha256"}.
    `code_version` is the release of this software that learned it; None where that was not noted.
    """

    __tablename__ = "prompt_set_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"], ["prompt_sets.customer_id", "prompt_sets.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("customer_id", "prompt_set_id", "version"),
        Index(
            "prompt_set_versions_quarantined",
            *("prompt_set_id", "version"),
            postgresql_where=text("quarantined_at is not null"),
        ),
    )

    prompt_set_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    artifact: Mapped[bytes] = mapped_column(deferred=True)
    artifact_sha256: Mapped[str]
    artifact_bytes: Mapped[int]
    backbone: Mapped[str]
    backbone_fingerprint: Mapped[str]
    class_names: Mapped[list[Any]]
    recipe: Mapped[dict[str, Any]]
    parameters: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    job_id: Mapped[UUID | None]
    job_epoch: Mapped[int | None]
    dataset_id: Mapped[UUID | None]
    dataset_version: Mapped[int | None]
    continued_from: Mapped[dict[str, Any] | None]
    code_version: Mapped[str | None]
    description: Mapped[str | None]
    custom: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=EMPTY_OBJECT)
    archived_at: Mapped[datetime | None]
    quarantined_at: Mapped[datetime | None]
    quarantine_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class PromptSetAlias(Base):
    """Where an alias points now; a version that an alias points at cannot be deleted."""

    __tablename__ = "prompt_set_aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"], ["prompt_sets.customer_id", "prompt_sets.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id", "version"],
            ["prompt_set_versions.customer_id", "prompt_set_versions.prompt_set_id", "prompt_set_versions.version"],
        ),
    )

    prompt_set_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID] = _customer_id()
    version: Mapped[int]
    moved_at: Mapped[datetime]


class AliasMove(Base):
    """Append-only. `number` runs 1, 2, 3, ... without a gap over the life of an alias, also where it was removed."""

    __tablename__ = "alias_moves"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"], ["prompt_sets.customer_id", "prompt_sets.id"], ondelete="CASCADE"
        ),
    )

    prompt_set_id: Mapped[UUID] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[UUID] = _customer_id()
    from_version: Mapped[int | None]  # null: the alias was not there
    to_version: Mapped[int | None]  # null: the alias was removed
    actor: Mapped[str]  # the public id of the key; no foreign key, for history outlives keys
    # Not now(), the start of the transaction: moves wait for each other, and times follow the numbers.
    moved_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    request_id: Mapped[str | None]
    override_reason: Mapped[str | None]  # why it was moved although the gate was against it


class Gate(Base):
    """What a version must reach before an alias of a prompt set may move to it; see gates.py.

    `split` is None for all images, `aliases` None for all of them.
    """

    __tablename__ = "gates"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id"], ["prompt_sets.customer_id", "prompt_sets.id"], ondelete="CASCADE"
        ),
        # A dataset that a gate uses cannot be deleted.
        ForeignKeyConstraint(["customer_id", "dataset_id"], ["datasets.customer_id", "datasets.id"]),
        Index("gates_of_dataset", "dataset_id"),
    )

    prompt_set_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID] = _customer_id()
    dataset_id: Mapped[UUID]
    dataset_version: Mapped[int]
    split: Mapped[str | None]
    metric: Mapped[str]
    floor: Mapped[float]
    aliases: Mapped[list[Any] | None]
    set_at: Mapped[datetime] = mapped_column(server_default=NOW)


class Evaluation(Base):
    """How a version did on a version of a dataset, or on one split of it. Neither can change, so it holds for good.

    `metrics` are those of bpt_core.tally. Lineage has no foreign keys.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        ForeignKeyConstraint(
            ["customer_id", "prompt_set_id", "version"],
            ["prompt_set_versions.customer_id", "prompt_set_versions.prompt_set_id", "prompt_set_versions.version"],
            ondelete="CASCADE",
        ),
        Index("evaluations_of_version", "prompt_set_id", "version", "id"),
    )

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    prompt_set_id: Mapped[UUID]
    version: Mapped[int]
    dataset_id: Mapped[UUID]
    dataset_version: Mapped[int]
    split: Mapped[str | None]
    metrics: Mapped[dict[str, Any]]
    job_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class IdempotencyRecord(Base):
    """What was answered to a request with an Idempotency-Key; see idempotency.py.

    `owner_id` is the customer's id, or that of an administrator's key, which has no customer. `request_sha256` is of
    path, query and body. With a `salt` the `body` is sealed.
    """

    __tablename__ = "idempotency_records"
    __table_args__ = (
        CheckConstraint("owner_id = customer_id OR customer_id IS NULL", name="owner"),
        Index("idempotency_records_expiry", "expires_at"),
        Index("idempotency_records_of_customer", "customer_id"),
    )

    owner_id: Mapped[UUID] = mapped_column(primary_key=True)
    key_sha256: Mapped[bytes] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID | None] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    request_sha256: Mapped[bytes]
    status: Mapped[int]
    location: Mapped[str | None]
    body: Mapped[bytes]
    salt: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]


class WebhookEndpoint(Base):
    """Where a customer wishes to be told of `events` (none: of all); see webhooks.py.

    What is sent is signed with `secret`, and with `old_secret` too until its time is over. `failing_since` is when the
    first of the attempts failed of which none has succeeded.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (UniqueConstraint("customer_id", "id"),)

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    url: Mapped[str]
    description: Mapped[str] = mapped_column(server_default=text("''"))
    events: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class WebhookEvent(Base):
    """Something that happened, written in the transaction in which it did. Of each `once` there is one at most."""

    __tablename__ = "webhook_events"
    __table_args__ = (
        UniqueConstraint("customer_id", "id"),
        UniqueConstraint("customer_id", "once"),
        Index("webhook_events_age", "created_at"),
    )

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    once: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class WebhookDelivery(Base):
    """An event on its way to an endpoint; see webhook_deliveries.py.

    `attempts` counts claims. While `pending`, `next_at` is when it is tried next: an attempt that is under way, and may
    have died, counts as failed by then.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("customer_id", "id"),
        UniqueConstraint("event_id", "endpoint_id"),
        ForeignKeyConstraint(
            ["customer_id", "endpoint_id"],
            ["webhook_endpoints.customer_id", "webhook_endpoints.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["customer_id", "event_id"], ["webhook_events.customer_id", "webhook_events.id"], ondelete="CASCADE"
        ),
        Index("webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=text("state = 'pending'")),
        Index("webhook_deliveries_of_endpoint", "endpoint_id", "id"),
    )

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = _customer_id()
    endpoint_id: Mapped[UUID]
    event_id: Mapped[UUID]
    state: Mapped[DeliveryState] = mapped_column(_enum(DeliveryState), server_default=text("'pending'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    next_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)

    event: Mapped[WebhookEvent] = relationship(lazy="joined", innerjoin=True, viewonly=True)


class UsageDay(Base):
    """What a customer has used on a day (UTC); see usage.py. `stored_bytes` is None where no sample was taken."""

    __tablename__ = "usage_days"
    __table_args__ = (Index("usage_days_of_all", "day", "customer_id"),)

    customer_id: Mapped[UUID] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    online_images: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    batch_images: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    tuning_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    batch_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)


class DoomedObject(Base):
    """Objects to delete, written in the transaction that gave them up; the sweep deletes them and then the row."""

    __tablename__ = "doomed_objects"
    __table_args__ = (Index("doomed_objects_next", "not_before", "id"),)

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID] = mapped_column()  # no foreign key: the objects outlive a deleted customer
    key: Mapped[str]  # one object, or everything below a prefix that ends in "/"
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    not_before: Mapped[datetime] = mapped_column(server_default=NOW)


class AuditEntry(Base):
    """Append-only; see audit.py. No foreign keys: entries outlive customers, keys and what they are about."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("audit_log_of_customer", "customer_id", "id"),)

    id: Mapped[UUID] = _id()
    customer_id: Mapped[UUID | None]  # whom it is about
    actor: Mapped[UUID]  # the key
    action: Mapped[str]
    resource: Mapped[str]  # its public id
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
