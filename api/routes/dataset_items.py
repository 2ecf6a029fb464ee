"""The items of a dataset: look through them, see them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from api.conditions import NOT_MODIFIED, IfNoneMatch, is_known
from api.deps import DatasetsReadSession, Limit, Services, ServicesDep
from api.item_schemas import DatasetItem, SplitName
from api.problems import Problem, responses
from api.schemas import Page
from api.turns import OneTurnRoute
from bpt_core.dataset import read_image
from bpt_core.errors import DatasetError
from bpt_core.items import IndexedItem, Items
from bpt_core.pictures import Split
from bpt_store import datasets
from bpt_store.errors import NotFound
from bpt_store.models import DatasetVersion

router = APIRouter(prefix="/v1/datasets/{dataset_id}/items", tags=["datasets"], route_class=OneTurnRoute)

# A picture is named by what it shows, so a copy of it never grows old.
FOREVER = "private, max-age=31536000, immutable"

_ERRORS = ("not_found", "dataset_not_ready", "dataset_not_indexed")

Version = Annotated[int | None, Query(ge=1, lt=2**31, description="absent: the newest that is ready")]


@router.get(
    "",
    summary="List the items of a dataset",
    responses=responses(*_ERRORS),
)
def list_dataset_items(
    dataset_id: str,
    services: ServicesDep,
    session: DatasetsReadSession,
    version: Version = None,
    split: Annotated[SplitName | None, Query(description="only items of this split")] = None,
    label: Annotated[str | None, Query(max_length=300, description="only items with this label")] = None,
    finding: Annotated[
        str | None, Query(max_length=100, description="only items that this finding of the report concerns")
    ] = None,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=100, description="the `next_cursor` of the page before")] = None,
) -> Page[DatasetItem]:
    index = _index(services, _ready(session, dataset_id, version))
    wanted = Split(split) if split is not None else None
    try:
        found, has_more = index.page(limit, after=after, split=wanted, label=label, finding=finding)
    except DatasetError as error:
        raise NotFound(str(error)) from error
    data = [DatasetItem.of(item) for item in found]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{item_id}", summary="Show an item", responses=responses(*_ERRORS))
def get_dataset_item(
    dataset_id: str, item_id: str, services: ServicesDep, session: DatasetsReadSession, version: Version = None
) -> DatasetItem:
    return DatasetItem.of(_item(services, _ready(session, dataset_id, version), item_id))


class _Asked:
    """The item whose picture a request wants; a dependency."""

    def __init__(
        self,
        dataset_id: str,
        item_id: str,
        services: ServicesDep,
        session: DatasetsReadSession,
        version: Version = None,
        if_none_match: IfNoneMatch = None,
    ) -> None:
        ready = _ready(session, dataset_id, version)
        self.item = _item(services, ready, item_id)
        self.is_known = is_known(if_none_match, self.item.digest)
        assert ready.objects is not None
        self._objects, self._keys = services.objects, ready.objects

    def thumbnail(self) -> Response:
        item = self.item
        data = self._objects.read_range(self._keys["thumbnails"]["key"], item.thumbnail_offset, item.thumbnail_length)
        return Response(data, media_type="image/jpeg", headers=self._headers())

    def stored(self) -> Response:
        """The picture as it lies in its shard, or nothing where the caller has it."""
        if self.is_known:
            return Response(status_code=304, headers=self._headers())
        data = read_image(self._objects.reader(self._keys["shards"][self.item.shard]["key"]), self.item.row)
        media_type = "image/webp" if data.startswith(b"RIFF") else "image/png"
        return Response(data, media_type=media_type, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"ETag": f'"{self.item.digest}"', "Cache-Control": FOREVER}


_AskedDep = Annotated[_Asked, Depends()]


def _picture_of(*media_types: str) -> dict[int | str, dict[str, object]]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    return {**responses(*_ERRORS), **NOT_MODIFIED, 200: {"description": "the picture", "content": content}}


@router.get(
    "/{item_id}/thumbnail",
    summary="A small picture of an item, at most 96 pixels wide and high",
    response_class=Response,
    responses=_picture_of("image/jpeg", "image/webp", "image/png"),
)
def get_dataset_item_thumbnail(asked: _AskedDep) -> Response:
    if asked.is_known or not asked.item.thumbnail_length:
        return asked.stored()
    return asked.thumbnail()


@router.get(
    "/{item_id}/image",
    summary="The picture of an item as it is stored: upright, without metadata, of bounded size",
    response_class=Response,
    responses=_picture_of("image/webp", "image/png"),
)
def get_dataset_item_image(asked: _AskedDep) -> Response:
    return asked.stored()


def _ready(session: DatasetsReadSession, dataset_id: str, number: int | None) -> DatasetVersion:
    wanted = datasets.Reference.parse(dataset_id)
    return datasets.get_ready(session, datasets.Reference(wanted.dataset_id, number or wanted.version))


def _index(services: Services, ready: DatasetVersion) -> Items:
    assert ready.objects is not None
    if "items" not in ready.objects:
        detail = f"version {ready.number} was made before items were kept; upload the dataset again"
        raise Problem("dataset_not_indexed", detail)
    return services.indexes.get(ready.objects["items"]["key"])


def _item(services: Services, ready: DatasetVersion, item_id: str) -> IndexedItem:
    found = _index(services, ready).get(item_id)
    if found is None:
        raise NotFound(f"there is no item {item_id!r} in version {ready.number}")
    return found
