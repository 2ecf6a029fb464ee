"""The main job through the running service: upload, ingest, tune, publish, predict."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image

from bpt_core import artifact, images
from bpt_core.backbones import load_backbone
from bpt_core.predict import Predictor
from tests import archives
from tests.service import Customer, Service, eventually


@pytest.fixture(scope="module")
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture(scope="module")
def dataset(customer: Customer) -> dict[str, object]:
    dataset = customer.upload(archives.flowers(), "flowers")
    assert dataset["state"] == "ready", dataset
    return dataset


@pytest.fixture(scope="module")
def job(customer: Customer, dataset: dict[str, object]) -> dict[str, object]:
    job = customer.finished(customer.tune(dataset, metadata={"for": "tests"}))
    assert job["state"] == "succeeded", job
    return job


def test_the_ready_dataset_tells_what_is_in_it(customer: Customer, dataset: dict[str, object]) -> None:
    assert len(dataset["class_names"]) == 3  # type: ignore[arg-type]
    counts = dataset["counts"]
    assert isinstance(counts, dict)
    assert {tuple(sorted(of_class.items())) for of_class in counts.values()} == {
        (("test", 2), ("train", 6), ("val", 2))
    }
    source = archives.flowers()
    assert dataset["source"] == {"sha256": hashlib.sha256(source).hexdigest(), "bytes": len(source)}


def test_the_original_archive_is_deleted_after_ingest_and_the_shards_stay(
    service: Service, dataset: dict[str, object]
) -> None:
    own = str(dataset["id"]).removeprefix("ds_")

    def left() -> list[str]:
        return [key.rpartition("/")[2] for key in service.objects() if own in key]

    eventually(lambda: left() == ["shard-00000.parquet"] or None, what="deletion of the original")


def test_the_job_tells_what_came_of_it(job: dict[str, object]) -> None:
    result = job["result"]
    assert isinstance(result, dict)
    assert result["version"] == 1
    assert result["test"]["images"] == 6
    assert 0 <= result["test"]["top1"] <= 1
    assert job["parameters"] == (4 + 192) * 2
    assert job["metadata"] == {"for": "tests"}
    assert job["attempt"] == 1


def test_events_are_gapless_and_tell_each_epoch(customer: Customer, job: dict[str, object]) -> None:
    events = customer.events(job)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["data"]["epoch"] for event in events if event["type"] == "epoch"] == [1, 2]
    states = [event["data"]["state"] for event in events if event["type"] == "state"]
    assert states == ["queued", "running", "succeeded"]


def test_the_live_stream_resumes_after_the_last_event_seen_and_ends_with_the_job(
    customer: Customer, job: dict[str, object]
) -> None:
    events = customer.events(job)
    with customer.http() as http:
        reply = http.get(
            f"/v1/tuning-jobs/{job['id']}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "2"}
        )
    assert reply.headers["content-type"].startswith("text/event-stream")
    streamed = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line[:5] == "data:"]
    assert streamed == events[2:]
    assert [line for line in reply.text.splitlines() if line[:3] == "id:"] == [f"id: {e['number']}" for e in events[2:]]


def test_checkpoints_of_a_finished_job_are_deleted(service: Service, job: dict[str, object]) -> None:
    own = str(job["id"]).removeprefix("job_")
    eventually(lambda: not [key for key in service.objects() if own in key] or None, what="deletion of checkpoints")


def test_the_service_predicts_what_the_downloaded_artifact_predicts(customer: Customer, job: dict[str, object]) -> None:
    pictures = [archives.picture(label, 500 + label) for label in range(3)]
    with customer.http() as http:
        reply = http.post(
            "/v1/predictions",
            data={"prompt_set": "flowers", "top_k": "2"},
            files=[("images", (f"{index}.jpg", data)) for index, data in enumerate(pictures)],
        ).json()
        download = http.get("/v1/prompt-sets/flowers/versions/1/artifact")
    sha256 = hashlib.sha256(download.content).hexdigest()
    assert download.headers["etag"] == f'"{sha256}"'
    assert reply["prompt_set"]["artifact_sha256"] == sha256
    backbone = load_backbone("vit_tiny_patch8_64.mae")
    assert reply["prompt_set"]["backbone_fingerprint"] == backbone.fingerprint
    prompt_set = artifact.from_bytes(download.content)
    expected = Predictor(backbone).predict([images.canonical(data) for data in pictures], prompt_set)
    for row, found in zip(expected, reply["data"], strict=True):
        scores, labels = row.topk(2)
        assert [item["label"] for item in found["predictions"]] == [prompt_set.class_names[i] for i in labels]
        assert [item["score"] for item in found["predictions"]] == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_version_names_its_lineage(customer: Customer, dataset: dict[str, object], job: dict[str, object]) -> None:
    with customer.http() as http:
        version = http.get("/v1/prompt-sets/flowers/versions/1").json()
        prompt_set = http.get("/v1/prompt-sets/flowers").json()
    assert (version["job"], version["dataset"]) == (job["id"], dataset["id"])
    assert version["method"] == {
        **{"type": "bpt-bilinear", "depth": "shallow", "prompts": 4, "rank": 2},
        **{"start": "random", "whitening_input": "tokens", "pooling": "mean-all"},
    }
    assert prompt_set["latest_version"] == 1


def test_tuning_again_is_a_new_version_and_both_can_be_named(
    customer: Customer, dataset: dict[str, object], job: dict[str, object]
) -> None:
    probe = {"type": "linear-probe"}
    again = customer.finished(customer.tune(dataset, method=probe, hyperparameters={"epochs": 2, "views": 1}))
    assert again["result"]["version"] == 2, again
    with customer.http() as http:
        for reference, version in (("flowers", 2), ("flowers:1", 1), ("flowers:2", 2)):
            reply = http.post(
                "/v1/predictions", data={"prompt_set": reference}, files={"images": archives.picture()}
            ).json()
            assert reply["prompt_set"]["version"] == version


def test_one_bad_image_spoils_nothing_for_its_neighbours(customer: Customer, job: dict[str, object]) -> None:
    good = [("images", (f"{label}.jpg", archives.picture(label, 9))) for label in range(2)]
    with customer.http() as http:
        alone = http.post("/v1/predictions", data={"prompt_set": "flowers:1"}, files=good).json()["data"]
        mixed = http.post(
            "/v1/predictions", data={"prompt_set": "flowers:1"}, files=[good[0], ("images", ("x", b"??")), good[1]]
        )
    assert mixed.status_code == 207
    first, bad, second = mixed.json()["data"]
    assert (bad["status"], bad["error"]["code"], bad["predictions"]) == (422, "image_unsupported", [])
    for found, expected in zip((first, second), alone, strict=True):
        assert [item["label"] for item in found["predictions"]] == [item["label"] for item in expected["predictions"]]
        assert [item["score"] for item in found["predictions"]] == pytest.approx(
            [item["score"] for item in expected["predictions"]], abs=1e-5
        )


def test_class_folders_without_splits_are_split_by_the_service(customer: Customer) -> None:
    entries = {f"{'ab'[i % 2]}/{i}.png": archives.picture(i % 2, i) for i in range(40)}
    dataset = customer.upload(archives.zipped(entries))
    assert dataset["state"] == "ready"
    assert all(of_class.get("val", 0) >= 1 for of_class in dataset["counts"].values())


def test_a_large_picture_is_predicted_like_a_small_one(customer: Customer, job: dict[str, object]) -> None:
    small = Image.open(io.BytesIO(archives.picture(1, 77)))
    large = archives.png(small.resize((1500, 1500), Image.Resampling.BICUBIC))
    with customer.http() as http:
        one, other = (
            http.post("/v1/predictions", data={"prompt_set": "flowers:1"}, files={"images": data}).json()["data"][0]
            for data in (archives.png(small), large)
        )
    assert one["predictions"][0]["score"] == pytest.approx(other["predictions"][0]["score"], abs=0.05)
