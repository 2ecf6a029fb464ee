"""Gates: what a version must reach on golden images before an alias of its prompt set may move to it.

A gate names a version of a dataset, or one split of it, a metric and a floor. Whether a version passes follows from
its evaluation on these images: a floor that is changed needs no new one, and nothing that was measured grows old.
Where an alias has stood before it may go back to, whatever the gate says: an emergency must not wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store import evaluations
from bpt_store.datasets import Reference
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import DatasetVersion, Evaluation, Gate, PromptSetVersion
from bpt_store.prompt_sets import lock


@dataclass(frozen=True)
class Demand:
    """`metric` is one of bpt_core.tally's for the dataset's task; `split` None: all images; `aliases` None: all."""

    metric: str
    floor: float
    split: str | None = None
    aliases: Sequence[str] | None = None


def put(session: Session, prompt_set_id: UUID, dataset: DatasetVersion, demand: Demand) -> Gate:
    """The gate from now on, in place of what there was; aliases stay where they are. `dataset` is locked."""
    prompt_set = lock(session, prompt_set_id)
    values = {
        "dataset_id": dataset.dataset_id,
        "dataset_version": dataset.number,
        "split": demand.split,
        "metric": demand.metric,
        "floor": demand.floor,
        "aliases": None if demand.aliases is None else list(demand.aliases),
        "set_at": func.now(),
    }
    session.execute(
        insert(Gate)
        .values(prompt_set_id=prompt_set_id, customer_id=prompt_set.customer_id, **values)
        .on_conflict_do_update(index_elements=["prompt_set_id"], set_=values)
    )
    return get(session, prompt_set_id)


def find(session: Session, prompt_set_id: UUID) -> Gate | None:
    return session.get(Gate, prompt_set_id, populate_existing=True)


def get(session: Session, prompt_set_id: UUID) -> Gate:
    gate = find(session, prompt_set_id)
    if gate is None:
        raise NotFound("the prompt set has no gate")
    return gate


def remove(session: Session, prompt_set_id: UUID) -> None:
    lock(session, prompt_set_id)
    get(session, prompt_set_id)
    session.execute(delete(Gate).where(Gate.prompt_set_id == prompt_set_id))


def check_classes(gate: Gate, dataset: DatasetVersion, version: PromptSetVersion, task: str) -> None:
    """Conflict `gate_mismatch` where the version has another task than the golden images, or not all their classes."""
    where = f"the gate's dataset {Reference(gate.dataset_id, gate.dataset_version)}"
    if task != dataset.task:
        raise Conflict(f"version {version.version} is {task}, and {where} {dataset.task}", code="gate_mismatch")
    if lacking := [name for name in dataset.class_names if name not in set(version.class_names)]:
        names = ", ".join(repr(name) for name in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise Conflict(f"version {version.version} lacks classes of {where}: {names}", code="gate_mismatch")


def refusal(session: Session, prompt_set_id: UUID, alias: str, version: int) -> str | None:
    """Why the gate is against moving an alias to a version; None where it is not. The caller holds the lock."""
    gate = find(session, prompt_set_id)
    if gate is None or (gate.aliases is not None and alias not in gate.aliases):
        return None
    found = evaluations.newest(session, gate, version)
    if found is not None and passes(gate, found):
        return None
    where = f"on {Reference(gate.dataset_id, gate.dataset_version)}" + (f", split {gate.split}" if gate.split else "")
    value = found and found.metrics.get(gate.metric)
    has = "was not checked" if found is None else f"has {'no' if value is None else f'{value:.6g}'} {gate.metric}"
    return f"version {version} {has} {where}; the gate asks for {gate.metric} {gate.floor:g} or more"


def asks_for(gate: Gate, evaluation: Evaluation) -> bool:
    """Whether an evaluation is on the gate's images."""
    wanted = gate.dataset_id, gate.dataset_version, gate.split
    return wanted == (evaluation.dataset_id, evaluation.dataset_version, evaluation.split)


def passes(gate: Gate, evaluation: Evaluation) -> bool:
    """For an evaluation on the gate's images."""
    value = evaluation.metrics.get(gate.metric)
    return value is not None and value >= gate.floor
