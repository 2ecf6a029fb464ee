"""Two prompt sets of one batch prediction held against each other, counted anew from its results each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.comparison_schemas import Comparison, FlippedImage
from api.deps import After, Limit, ServicesDep, customer_of, numbered, require
from api.problems import Problem, responses
from api.schemas import Page
from api.turns import OneTurnRoute
from bpt_core import comparison
from bpt_core.comparison import Flip, Pair
from bpt_core.tally import task_of
from bpt_store import batch_predictions, ids, jobs
from bpt_store.customers import Identity, Scope
from bpt_store.errors import NotFound
from bpt_store.models import JobKind
from bpt_store.objects import Objects

router = APIRouter(
    prefix="/v1/batch-predictions/{job_id}/comparison", tags=["batch-predictions"], route_class=OneTurnRoute
)

Reference = Annotated[str, Query(max_length=150, description="as in the results", examples=["birds:3"])]
CODES = ("not_found", "job_unfinished", "comparison_mismatch")


@dataclass(frozen=True)
class _Compared:
    """What is asked for, checked; no transaction is open any more when rows are read."""

    objects: Objects
    result: dict[str, Any]
    prompt_sets: int
    a: str
    b: str

    def pairs(self, skip: int = 0) -> Iterator[Pair]:
        """NotFound where the results were deleted meanwhile."""
        task = task_of(self.result["metrics"][self.a])
        try:
            with self.objects.reader(self.result["files"]["parquet"]["key"]) as file:
                yield from comparison.pairs(file, self.prompt_sets, self.a, self.b, task, skip)
        except FileNotFoundError:
            raise NotFound("the results have been deleted") from None


def _compared(
    job_id: str,
    a: Reference,
    b: Reference,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.PREDICT))],
) -> _Compared:
    with services.database.customer(customer_of(identity)) as session:
        job = jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.BATCH_PREDICT)
        result = batch_predictions.result_of(job)
        prompt_sets = batch_predictions.references(job)
    if a == b:
        raise Problem("invalid_request", "a and b are the same", param="b")
    for name, reference in (("a", a), ("b", b)):
        if reference not in prompt_sets:
            detail = f"{reference!r} was not asked for; there are {', '.join(prompt_sets)}"
            raise Problem("not_found", detail, param=name)
        if reference not in result.get("metrics", {}):
            detail = f"where {reference} is right cannot be told: no labels, or of classes that it does not know"
            raise Problem("comparison_mismatch", detail, param=name)
    return _Compared(services.objects, result, len(prompt_sets), a, b)


ComparedDep = Annotated[_Compared, Depends(_compared)]


@router.get(
    "",
    summary="Hold two prompt sets of a batch prediction against each other",
    responses=responses(*CODES),
)
def compare_batch_prediction(compared: ComparedDep) -> Comparison:
    found = comparison.Comparison()
    for pair in compared.pairs():
        found.add(pair)
    return Comparison.of(compared.a, compared.b, found)


@router.get(
    "/images",
    summary="List the images that one of them is right about and the other is not",
    responses=responses(*CODES),
)
def list_flipped_images(
    compared: ComparedDep,
    flip: Annotated[Flip | None, Query(description="only those that b has lost, or won; absent: both")] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[FlippedImage]:
    cursor = numbered(after, "image", most_digits=11)
    wanted = [flip] if flip else [*Flip]
    pairs = compared.pairs(0 if cursor is None else cursor + 1)
    found = list(islice((pair for pair in pairs if pair.flip in wanted), limit + 1))
    has_more, found = len(found) > limit, found[:limit]
    data = [FlippedImage.of(pair) for pair in found]
    return Page(data=data, has_more=has_more, next_cursor=str(found[-1].number) if has_more else None)
