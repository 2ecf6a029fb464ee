"""Datasets and their versions: validating -> ready | failed. A failed ingest leaves a report and nothing else.

A dataset is what a customer calls by name; each of its versions is complete by itself and never changes once it is
ready. The newest ready one is the dataset's `latest`. `ds_...` means that one, `ds_...:3` the third.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete as sql_delete
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, undefer

from bpt_store import ids, jobs, quotas, webhook_events
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import TERMINAL_STATES, Dataset, DatasetState, DatasetVersion, Gate, Job, JobKind, PromptSet
from bpt_store.webhook_events import EventType

UNLABELLED = "unlabelled"  # images to predict, without classes; all in the split test


def prefix(dataset_id: UUID) -> str:
    """All objects of a dataset lie under it, named by their content."""
    return f"datasets/{dataset_id.hex}/"


def create(
    session: Session,
    customer_id: UUID,
    name: str,
    options: Mapping[str, Any],
    source: Mapping[str, Any],
    custom: Mapping[str, Any] | None = None,
    *,
    limits: quotas.Limits | None = None,
) -> tuple[Dataset, Job]:
    """A dataset whose first version is to be made of `source`; ring for the job after the commit.

    An upload has been held against `limits` before. LimitReached `quota_exceeded`.
    """
    if limits is not None:
        quotas.check(session, customer_id, limits, datasets=1)
    dataset = Dataset(
        customer_id=customer_id,
        name=name,
        state=DatasetState.VALIDATING,
        options=dict(options),
        custom=dict(custom or {}),
    )
    session.add(dataset)
    session.flush()
    _, job = _add_version(session, dataset, 1, base=None, source=source, changes=None)
    return dataset, job


def add_version(
    session: Session,
    dataset_id: UUID,
    *,
    source: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    base: int | None = None,
) -> tuple[DatasetVersion, Job]:
    """The next version: the newest ready one with `changes` made to its items, and with what `source` adds.

    A `base` that is given must be the newest ready version. Conflict `dataset_not_ready`, `version_moved`,
    `version_unfinished` (another one is being made).
    """
    dataset = get_at(session, dataset_id, base, lock=True)
    number = next_number(session, dataset_id)
    return _add_version(session, dataset, number, base=dataset.latest, source=source, changes=changes)


def get_at(session: Session, dataset_id: UUID, base: int | None, *, lock: bool = False) -> Dataset:
    """A dataset that is ready, its newest version `base` if that is given.

    NotFound, Conflict `dataset_not_ready`, `version_moved`.
    """
    dataset = get(session, dataset_id, lock=lock)
    if dataset.latest is None:
        raise Conflict(f"the dataset is {dataset.state}, not ready", code="dataset_not_ready")
    if base is not None and base != dataset.latest:
        raise Conflict(f"the newest version is {dataset.latest}, not {base}", code="version_moved")
    return dataset


def next_number(session: Session, dataset_id: UUID) -> int:
    """Of the version after all there are. Conflict `version_unfinished` while the newest is being made."""
    newest = versions(session, dataset_id, limit=1)[0]
    if newest.state is DatasetState.VALIDATING:
        raise Conflict(f"version {newest.number} is not finished yet", code="version_unfinished")
    return newest.number + 1


def get(session: Session, dataset_id: UUID, *, lock: bool = False) -> Dataset:
    query = select(Dataset).where(Dataset.id == dataset_id)
    dataset = session.scalar(query.with_for_update() if lock else query)
    if dataset is None:
        raise NotFound(f"there is no {ids.public(ids.DATASET, dataset_id)!r}")
    return dataset


def change(
    session: Session, dataset_id: UUID, *, name: str | None = None, metadata: Mapping[str, str] | None = None
) -> Dataset:
    """What people call it and write on it; None leaves a part as it is."""
    dataset = get(session, dataset_id)
    if name is not None:
        dataset.name = name
    if metadata is not None:
        dataset.custom = dict(metadata)
    return dataset


def in_the_making(session: Session, dataset_ids: Collection[UUID]) -> set[UUID]:
    """Those to which a version may be added before this transaction ends; the others are locked (system session)."""
    locked = session.scalars(select(Dataset.id).where(Dataset.id.in_(dataset_ids)).with_for_update(skip_locked=True))
    # Only now, as of after the locks were taken.
    made = select(DatasetVersion.dataset_id).where(DatasetVersion.state == DatasetState.VALIDATING)
    open_to_others = or_(Dataset.id.not_in(locked.all()), Dataset.id.in_(made))
    return set(session.scalars(select(Dataset.id).where(Dataset.id.in_(dataset_ids), open_to_others)))


@dataclass(frozen=True)
class Reference:
    """`ds_<id>` or `ds_<id>:<version>`; without a version the newest ready one is meant."""

    dataset_id: UUID
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """NotFound for what names nothing."""
        identifier, colon, number = text.partition(":")
        if not colon:
            return cls(ids.parse(ids.DATASET, identifier))
        if not (number.isascii() and number.isdigit() and len(number) <= 9):
            raise NotFound(f"there is no {text!r}")
        return cls(ids.parse(ids.DATASET, identifier), int(number))

    def __str__(self) -> str:
        number = "" if self.version is None else f":{self.version}"
        return ids.public(ids.DATASET, self.dataset_id) + number


def version(session: Session, dataset_id: UUID, number: int, *, whole: bool = False) -> DatasetVersion:
    """One version in whatever state, `whole` with its report and changes. NotFound."""
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id, DatasetVersion.number == number)
    if whole:
        query = query.options(undefer(DatasetVersion.report), undefer(DatasetVersion.changes))
    found = session.scalar(query)
    if found is None:
        raise NotFound(f"there is no {str(Reference(dataset_id, number))!r}")
    return found


def versions(session: Session, dataset_id: UUID, *, before: int | None = None, limit: int) -> list[DatasetVersion]:
    """Newest first."""
    query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id)
    if before is not None:
        query = query.where(DatasetVersion.number < before)
    return list(session.scalars(query.order_by(DatasetVersion.number.desc()).limit(limit)))


def shown(session: Session, datasets: Sequence[Dataset]) -> dict[UUID, DatasetVersion]:
    """Of each dataset the version that stands for it: the newest ready one, or the first."""
    wanted = {dataset.id: dataset.latest or 1 for dataset in datasets}
    rows = session.scalars(select(DatasetVersion).where(DatasetVersion.dataset_id.in_(wanted)))
    return {row.dataset_id: row for row in rows if row.number == wanted[row.dataset_id]}


def get_ready(session: Session, reference: Reference) -> DatasetVersion:
    """Its dataset is locked, so that it cannot be deleted before the job that is to use it is there.

    NotFound, Conflict `dataset_not_ready`.
    """
    dataset = get(session, reference.dataset_id, lock=True)
    number = dataset.latest if reference.version is None else reference.version
    if number is None:
        raise Conflict(f"the dataset is {dataset.state}, not ready", code="dataset_not_ready")
    found = version(session, dataset.id, number)
    if found.state is not DatasetState.READY:
        raise Conflict(f"version {found.number} of the dataset is {found.state}, not ready", code="dataset_not_ready")
    return found


def get_labelled(session: Session, reference: Reference) -> DatasetVersion:
    """One that can be tuned on, its dataset locked as by `get_ready`. Conflict `dataset_unlabelled`."""
    found = get_ready(session, reference)
    if found.task == UNLABELLED:
        raise Conflict("the dataset has no labels to learn from", code="dataset_unlabelled")
    return found


def images(ready: DatasetVersion, split: str | None = None) -> int:
    """How many images a ready version has, in one split or in all."""
    assert ready.images is not None
    assert ready.splits is not None
    return ready.images if split is None else int(ready.splits[split])


@dataclass(frozen=True)
class Contents:
    """What an ingest has made of a version. `objects` as in models.DatasetVersion."""

    task: str
    class_names: Sequence[str]
    objects: Mapping[str, Any]
    report: Mapping[str, Any]


def become_ready(
    session: Session, dataset_id: UUID, number: int, contents: Contents, limits: quotas.Limits
) -> DatasetVersion:
    """Part of the ingest job's last transaction. What it was made of is given up. LimitReached `quota_exceeded`."""
    dataset = get(session, dataset_id, lock=True)
    made = version(session, dataset_id, number)
    shared = _sizes(session, dataset_id)
    fresh = sum(size for key, size in _object_sizes(contents.objects).items() if key not in shared)
    report = dict(contents.report)
    packed: int = report["images"]["packed"]
    earlier = version(session, dataset_id, dataset.latest).images or 0 if dataset.latest else 0
    _give_up_source(session, made)
    quotas.check(session, dataset.customer_id, limits, images=max(0, packed - earlier), stored_bytes=fresh)
    made.images, made.stored_bytes = packed, fresh
    made.state = dataset.state = DatasetState.READY
    made.task, made.class_names, made.objects = contents.task, list(contents.class_names), dict(contents.objects)
    made.splits, made.counts, made.verdict = report["splits"], report["counts"], report["verdict"]
    made.report = report
    dataset.latest = number
    session.flush()
    told = {"id": ids.public(ids.DATASET, dataset_id), "version": number, "state": made.state}
    webhook_events.emit(session, dataset.customer_id, EventType.DATASET_READY, told)
    return made


def delete(session: Session, dataset_id: UUID) -> None:
    """Rows and objects of all versions. Conflict `dataset_in_use` while an unfinished job or a gate needs it."""
    dataset = get(session, dataset_id, lock=True)
    unfinished = select(Job.id).where(Job.dataset_id == dataset_id, Job.state.not_in(TERMINAL_STATES)).limit(1)
    if session.scalar(unfinished) is not None:
        raise Conflict("an unfinished job uses the dataset", code="dataset_in_use")
    gated = select(PromptSet.name).join(Gate, Gate.prompt_set_id == PromptSet.id).where(Gate.dataset_id == dataset_id)
    if names := list(session.scalars(gated.order_by(PromptSet.name).limit(3))):
        raise Conflict(f"gates use the dataset: {', '.join(names)}", code="dataset_in_use")
    jobs.doom(session, dataset.customer_id, prefix(dataset.id))
    session.execute(sql_delete(Dataset).where(Dataset.id == dataset_id))


def _add_version(
    session: Session,
    dataset: Dataset,
    number: int,
    *,
    base: int | None,
    source: Mapping[str, Any] | None,
    changes: Mapping[str, Any] | None,
) -> tuple[DatasetVersion, Job]:
    made = DatasetVersion(
        dataset_id=dataset.id,
        number=number,
        customer_id=dataset.customer_id,
        state=DatasetState.VALIDATING,
        base=base,
        source=None if source is None else dict(source),
        source_sha256=None if source is None else source.get("sha256"),
        source_bytes=None if source is None else sum(part["bytes"] for part in source.get("parts", ())),
        changes=None if changes is None else dict(changes),
    )
    session.add(made)
    session.flush()
    job = jobs.create(
        session, dataset.customer_id, JobKind.INGEST, dataset_id=dataset.id, dataset_version=number, payload={}
    )
    return made, job


def _give_up_source(session: Session, made: DatasetVersion) -> None:
    for part in (made.source or {}).get("parts", ()):
        jobs.doom(session, made.customer_id, part["key"])
    made.source = None
    session.flush()


def _object_sizes(objects: Mapping[str, Any]) -> dict[str, int]:
    single = (objects[name] for name in ("items", "thumbnails") if name in objects)
    return {each["key"]: each["bytes"] for each in (*objects["shards"], *single)}


def _sizes(session: Session, dataset_id: UUID) -> dict[str, int]:
    """Objects of the dataset's ready versions, and their bytes."""
    rows = session.scalars(
        select(DatasetVersion.objects).where(
            DatasetVersion.dataset_id == dataset_id, DatasetVersion.state == DatasetState.READY
        )
    )
    return {key: size for objects in rows if objects for key, size in _object_sizes(objects).items()}
