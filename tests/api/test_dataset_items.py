"""Looking through a dataset, and changing it by new versions, over HTTP against the whole service."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
from PIL import Image

from bpt_core import images
from tests import archives
from tests.service import Customer, Service, eventually

UNKNOWN = "itm_" + 24 * "0"
DARK = archives.png(Image.effect_noise((64, 64), 8).point(lambda value: value // 24).convert("RGB"))

LARGE = archives.png(Image.effect_noise((200, 150), 60).convert("RGB"))


@pytest.fixture(scope="module")
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture(scope="module")
def sent() -> dict[str, bytes]:
    files = {f"{'ab'[n % 2]}/{n}.jpg": archives.picture(n % 2, n) for n in range(30)}
    return files | {"a/copy.jpg": files["a/0.jpg"], "b/dark.png": DARK, "b/large.png": LARGE}


@pytest.fixture(scope="module")
def dataset(customer: Customer, sent: dict[str, bytes]) -> dict[str, Any]:
    found = customer.upload(archives.zipped(sent))
    assert found["state"] == "ready", found
    return found


def of(http: httpx.Client, dataset: dict[str, Any], path: str = "", **query: Any) -> Any:
    reply = http.get(f"/v1/datasets/{dataset['id']}{path}", params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def all_items(http: httpx.Client, dataset: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page = of(http, dataset, "/items", limit=7, **query)
    found += page["data"]
    while page["has_more"]:
        page = of(http, dataset, "/items", limit=7, after=page["next_cursor"], **query)
        found += page["data"]
    return found


def test_every_item_is_listed_once_with_what_is_known_about_it(
    customer: Customer, dataset: dict[str, Any], sent: dict[str, bytes]
) -> None:
    with customer.http() as http:
        items = all_items(http, dataset)
        assert sorted(item["path"] for item in items) == sorted(sent)
        assert of(http, dataset, f"/items/{items[0]['id']}") == items[0]
    assert dataset["image_count"] == len(items) == sum(dataset["splits"].values())
    for item in items:
        assert item["labels"] == [item["path"].split("/")[0]]
        assert (item["width"], item["height"]) == Image.open(io.BytesIO(sent[item["path"]])).size


def test_items_are_filtered_by_split_label_and_finding(customer: Customer, dataset: dict[str, Any]) -> None:
    with customer.http() as http:
        items = all_items(http, dataset)
        for split in ("train", "val", "test"):
            assert all_items(http, dataset, split=split) == [item for item in items if item["split"] == split]
        assert all_items(http, dataset, label="a") == [item for item in items if item["labels"] == ["a"]]
        assert {item["path"] for item in all_items(http, dataset, finding="exact_duplicates")} == {
            "a/0.jpg",
            "a/copy.jpg",
        }
        assert "b/dark.png" in {item["path"] for item in all_items(http, dataset, finding="dark")}
        assert all_items(http, dataset, label="b", finding="exact_duplicates") == []


def test_pictures_are_seen_small_and_as_they_are_stored(
    customer: Customer, dataset: dict[str, Any], sent: dict[str, bytes]
) -> None:
    with customer.http() as http:
        [item] = [item for item in all_items(http, dataset) if item["path"] == "b/large.png"]
        path = f"/v1/datasets/{dataset['id']}/items/{item['id']}"
        small, whole = http.get(f"{path}/thumbnail"), http.get(f"{path}/image")
        assert (small.headers["content-type"], whole.headers["content-type"]) == ("image/jpeg", "image/webp")
        assert max(Image.open(io.BytesIO(small.content)).size) == 96
        stored = images.decode(whole.content)
        assert stored.tobytes() == images.canonical(sent[item["path"]]).tobytes()
        assert whole.headers["etag"] == f'"{item["sha256"]}"' == f'"{images.pixel_hash(stored)}"'
        again = http.get(f"{path}/image", headers={"If-None-Match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        [little] = [item for item in all_items(http, dataset) if item["path"] == "a/2.jpg"]
        path = f"/v1/datasets/{dataset['id']}/items/{little['id']}"
        assert http.get(f"{path}/thumbnail").content == http.get(f"{path}/image").content


def test_what_is_not_there_is_404(service: Service, customer: Customer, dataset: dict[str, Any]) -> None:
    stranger = service.new_customer()
    with customer.http() as http:
        own = all_items(http, dataset)[0]["id"]
        for path in ("/items/itm_0", "/items/itm_0/thumbnail", "/items/itm_0/image", "/versions/9", "/versions/0"):
            assert http.get(f"/v1/datasets/{dataset['id']}{path}").status_code == 404, path
        assert http.get(f"/v1/datasets/{dataset['id']}/items", params={"version": 9}).status_code == 404
        assert http.get(f"/v1/datasets/{dataset['id']}/items", params={"after": "itm_0"}).status_code == 404
        assert http.get(f"/v1/datasets/{dataset['id']}/versions/99999999999").status_code == 404
    with stranger.http() as http:
        for path in (
            "/items",
            f"/items/{own}",
            f"/items/{own}/thumbnail",
            f"/items/{own}/image",
            "/versions",
            "/report",
        ):
            assert http.get(f"/v1/datasets/{dataset['id']}{path}").status_code == 404, path
        for path in ("/versions/1", "/versions/1/report", "/versions/1/events"):
            assert http.get(f"/v1/datasets/{dataset['id']}{path}").status_code == 404, path


def wait_for(http: httpx.Client, dataset: dict[str, Any], number: int) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = of(http, dataset, f"/versions/{number}")
        return found if found["state"] != "validating" else None

    return eventually(look, what=f"the end of version {number}")


def test_versions_change_labels_and_members_and_leave_the_others_alone(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    with customer.http() as http:
        before = all_items(http, dataset)
        train = [item for item in before if item["split"] == "train" and item["labels"] == ["a"]]
        body = {
            "base": 1,
            "relabel": [{"item": item["id"], "labels": ["c"]} for item in train[:3]],
            "remove": [train[3]["id"]],
        }
        reply = http.post(f"/v1/datasets/{dataset['id']}/versions", json=body)
        assert reply.status_code == 201, reply.text
        assert (reply.json()["number"], reply.json()["base"]) == (2, 1)
        version = wait_for(http, dataset, 2)
        assert (version["state"], version["class_names"]) == ("ready", ["a", "b", "c"])
        assert of(http, dataset, "/report")["changes"] == {"added": 0, "relabelled": 3, "removed": 1}
        after = {item["id"]: item for item in all_items(http, dataset)}
        assert {item["id"] for item in before} - set(after) == {train[3]["id"]}
        assert [after[item["id"]]["labels"] for item in train[:3]] == [["c"]] * 3
        assert all(after[item["id"]]["split"] == item["split"] for item in before if item["id"] in after)
        assert all_items(http, dataset, version=1) == before
        assert [each["number"] for each in of(http, dataset, "/versions")["data"]] == [2, 1]
        assert of(http, dataset)["version"] == 2
        events = of(http, dataset, "/versions/2/events")["data"]
        assert [events[0]["data"]["state"], events[-1]["data"]["state"]] == ["queued", "succeeded"]

        stale = http.post(f"/v1/datasets/{dataset['id']}/versions", json={"base": 1, "remove": [train[4]["id"]]})
        assert (stale.status_code, stale.json()["code"]) == (409, "version_moved")

        more = archives.zipped({f"d/{n}.jpg": archives.picture(2, 100 + n) for n in range(6)})
        reply = http.post(
            f"/v1/datasets/{dataset['id']}/versions", content=more, headers={"Content-Type": "application/zip"}
        )
        assert reply.status_code == 201, reply.text
        assert wait_for(http, dataset, 3)["class_names"] == ["a", "b", "c", "d"]
        assert of(http, dataset)["image_count"] == len(before) - 1 + 6


def test_a_version_that_fails_leaves_the_newest_one_and_its_objects(
    service: Service, customer: Customer, sent: dict[str, bytes]
) -> None:
    dataset = customer.upload(archives.zipped(sent))
    own = dataset["id"].removeprefix("ds_")
    kept = [key for key in service.objects() if own in key]
    with customer.http() as http:
        reply = http.post(f"/v1/datasets/{dataset['id']}/versions", json={"remove": [UNKNOWN]})
        assert reply.status_code == 201, reply.text
        version = wait_for(http, dataset, 2)
        assert (version["state"], version["error"]["code"]) == ("failed", "item_unknown")
        report = of(http, dataset, "/versions/2/report")
        assert [item["entry"] for item in report["rejected"]["items"]] == [UNKNOWN]
        now = of(http, dataset)
        assert (now["state"], now["version"], now["image_count"]) == ("ready", 1, len(sent))
        assert [key for key in service.objects() if own in key] == kept
        assert http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    eventually(lambda: not [key for key in service.objects() if own in key] or None, what="deletion of objects")
    assert service.rows("SELECT 1 FROM dataset_versions WHERE dataset_id = :id", id=own) == []
