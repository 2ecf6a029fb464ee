"""The gate of a prompt set, and how versions did on its golden images."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy import select

from api.batch_schemas import BatchPrediction
from api.deps import (
    After,
    Limit,
    PromptsReadSession,
    PromptsWriteSession,
    ServicesDep,
    customer_of,
    require,
    ring_after_commit,
)
from api.gate_schemas import Gate, GateChange, GateCheck
from api.idempotency import OnceRoute
from api.problems import Problem, responses
from api.routes.prompt_set_versions import VersionNumber
from api.schemas import Page
from bpt_core.headers import describe
from bpt_core.tally import METRICS
from bpt_store import audit, batch_predictions, datasets, gates, ids, models, prompt_sets
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind
from bpt_store.paging import page

router = APIRouter(prefix="/v1/prompt-sets/{name}", tags=["prompt-sets"], route_class=OnceRoute)


@router.put(
    "/gate",
    summary="Set what a version must reach before an alias may move to it; aliases stay where they are",
    responses=responses("not_found", "dataset_empty", "dataset_not_ready", "dataset_unlabelled"),
)
def set_prompt_set_gate(name: str, body: GateChange, session: PromptsWriteSession) -> Gate:
    prompt_set = prompt_sets.get(session, name)
    dataset = datasets.get_labelled(session, datasets.Reference.parse(body.dataset))
    assert dataset.task is not None
    if body.metric not in METRICS[dataset.task]:
        known = ", ".join(METRICS[dataset.task])
        raise Problem("invalid_request", f"of a {dataset.task} dataset there are {known}", param="metric")
    if not datasets.images(dataset, body.split):
        raise Problem("dataset_empty", f"the dataset has no images in the split {body.split}", param="split")
    demand = gates.Demand(body.metric, body.floor, body.split, body.aliases)
    golden = ids.public(ids.DATASET, dataset.dataset_id)
    after: dict[str, audit.Fact] = {"dataset": golden, "dataset_version": dataset.number, "floor": body.floor}
    audit.record(session, Action.GATE_SET, ids.public(ids.PROMPT_SET, prompt_set.id), after=after)
    return Gate.of(name, gates.put(session, prompt_set.id, dataset, demand))


@router.get("/gate", summary="Show the gate of a prompt set", responses=responses("not_found"))
def get_prompt_set_gate(name: str, session: PromptsReadSession) -> Gate:
    return Gate.of(name, gates.get(session, prompt_sets.get(session, name).id))


@router.delete("/gate", status_code=204, summary="Remove the gate of a prompt set", responses=responses("not_found"))
def remove_prompt_set_gate(name: str, session: PromptsWriteSession) -> None:
    prompt_set = prompt_sets.get(session, name)
    gates.remove(session, prompt_set.id)
    audit.record(session, Action.GATE_REMOVED, ids.public(ids.PROMPT_SET, prompt_set.id))


@router.post(
    "/versions/{version}/gate-checks",
    status_code=201,
    summary="Have a version predict the golden images: a batch prediction, which the gate then knows of",
    responses=responses(
        *("not_found", "dataset_not_ready", "gate_mismatch", "queue_limit", "artifact_corrupt", "artifact_integrity")
    ),
)
def create_gate_check(
    name: str,
    version: VersionNumber,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))],
    session: PromptsWriteSession,
) -> BatchPrediction:
    prompt_set, row = prompt_sets.resolve(session, f"{name}:{version}")
    gate = gates.get(session, prompt_set.id)
    dataset = datasets.get_ready(session, datasets.Reference(gate.dataset_id, gate.dataset_version))
    gates.check_classes(gate, dataset, row, describe(prompt_sets.artifact(session, row))["task"])
    job = batch_predictions.create(
        session,
        customer_of(identity),
        dataset,
        [f"{name}:{version}"],
        split=gate.split,
        top_k=5,
        images=datasets.images(dataset, gate.split),
        custom={"gate": name},
        unfinished_limit=services.settings.queued_jobs_limit,
    )
    audit.record(session, Action.BATCH_CREATED, ids.public(ids.JOB, job.id))
    ring_after_commit(session, JobKind.BATCH_PREDICT)
    response.headers["Location"] = f"/v1/batch-predictions/{ids.public(ids.JOB, job.id)}"
    session.refresh(job)
    return BatchPrediction.of(job)


@router.get(
    "/versions/{version}/gate-checks",
    summary="List how a version did on labelled datasets, the gate's golden images among them",
    responses=responses("not_found"),
)
def list_gate_checks(
    name: str, version: VersionNumber, session: PromptsReadSession, limit: Limit = 20, after: After = None
) -> Page[GateCheck]:
    prompt_set, row = prompt_sets.resolve(session, f"{name}:{version}")
    query = select(models.Evaluation).where(
        models.Evaluation.prompt_set_id == prompt_set.id, models.Evaluation.version == row.version
    )
    cursor = ids.parse(ids.EVALUATION, after) if after else None
    rows, has_more = page(session, query, models.Evaluation.id, cursor, limit)
    gate = gates.find(session, prompt_set.id)
    data = [GateCheck.of(name, each, gate) for each in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)
