"""The main job through the running service: upload, ingest, tune, publish, predict."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import tritonclient.http as triton
from PIL import Image

from benchmarks.prompt_sets import random_prompt_set
from bpt_core import artifact, images
from bpt_core.backbones import load_backbone
from bpt_core.predict import Predictor
from bpt_core.transforms import evaluation_view
from tests import archives
from tests.published import publish
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
        return sorted(key.rpartition(".")[2] for key in service.objects() if own in key or key.startswith("uploads/"))

    eventually(lambda: left() == ["bin", "parquet", "parquet"] or None, what="deletion of the original")


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
            data={"prompt_sets": "flowers", "top_k": "2"},
            files=[("images", (f"{index}.jpg", data)) for index, data in enumerate(pictures)],
        ).json()
        download = http.get("/v1/prompt-sets/flowers/versions/1/artifact")
    sha256 = hashlib.sha256(download.content).hexdigest()
    assert download.headers["etag"] == f'"{sha256}"'
    assert reply["prompt_sets"][0]["artifact_sha256"] == sha256
    backbone = load_backbone("vit_tiny_patch8_64.mae")
    assert reply["prompt_sets"][0]["backbone_fingerprint"] == backbone.fingerprint
    prompt_set = artifact.from_bytes(download.content)
    expected = Predictor(backbone).predict([images.canonical(data) for data in pictures], prompt_set)
    for row, found in zip(expected, reply["data"], strict=True):
        (seen,) = found["results"]
        assert [item["label"] for item in seen["predictions"]] == [label for label, _ in row.top(2)]
        scores = [score for _, score in row.top(2)]
        assert [item["score"] for item in seen["predictions"]] == pytest.approx(scores, abs=1e-5)
        assert (seen["prompt_set"], seen["labels"]) == ("flowers:1", list(row.labels()))


def test_a_version_names_its_lineage(customer: Customer, dataset: dict[str, object], job: dict[str, object]) -> None:
    with customer.http() as http:
        version = http.get("/v1/prompt-sets/flowers/versions/1").json()
        report = http.get(f"/v1/tuning-jobs/{job['id']}/report").json()
        prompt_set = http.get("/v1/prompt-sets/flowers").json()
    assert (version["job"], version["dataset"]) == (job["id"], dataset["id"])
    assert version["method"] == {
        **{"type": "bpt-bilinear", "depth": "shallow", "prompts": 4, "rank": 2},
        **{"start": "random", "whitening_input": "tokens", "pooling": "mean-all"},
    }
    assert prompt_set["latest_version"] == 1
    assert (report["error"], report["dataset"], report["left_out"]) == (None, dataset["id"], [])
    assert {each["split"] for each in report["hardest"]} == {"val", "test"}
    assert all(each["item"].startswith("itm_") for each in report["hardest"])


def test_tuning_again_is_a_new_version_and_both_can_be_named(
    customer: Customer, dataset: dict[str, object], job: dict[str, object]
) -> None:
    probe = {"type": "linear-probe"}
    again = customer.finished(customer.tune(dataset, method=probe, hyperparameters={"epochs": 2, "views": 1}))
    assert again["result"]["version"] == 2, again
    with customer.http() as http:
        for reference, version in (("flowers", 2), ("flowers:1", 1), ("flowers:2", 2)):
            reply = http.post(
                "/v1/predictions", data={"prompt_sets": reference}, files={"images": archives.picture()}
            ).json()
            assert reply["prompt_sets"][0]["version"] == version


def test_one_bad_image_spoils_nothing_for_its_neighbours(customer: Customer, job: dict[str, object]) -> None:
    good = [("images", (f"{label}.jpg", archives.picture(label, 9))) for label in range(2)]
    with customer.http() as http:
        alone = http.post("/v1/predictions", data={"prompt_sets": "flowers:1"}, files=good).json()["data"]
        mixed = http.post(
            "/v1/predictions", data={"prompt_sets": "flowers:1"}, files=[good[0], ("images", ("x", b"??")), good[1]]
        )
    assert mixed.status_code == 207
    first, bad, second = mixed.json()["data"]
    assert (bad["status"], bad["error"]["code"], bad["results"]) == (422, "image_unsupported", [])
    for found, expected in zip((first, second), alone, strict=True):
        mine, theirs = (each["results"][0]["predictions"] for each in (found, expected))
        assert [item["label"] for item in mine] == [item["label"] for item in theirs]
        assert [item["score"] for item in mine] == pytest.approx([item["score"] for item in theirs], abs=1e-5)


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
            http.post("/v1/predictions", data={"prompt_sets": "flowers:1"}, files={"images": data}).json()["data"][0]
            for data in (archives.png(small), large)
        )
    scores = [image["results"][0]["predictions"][0]["score"] for image in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


@pytest.fixture
def garden(service: Service, customer: Customer, job: dict[str, object]) -> str:
    """A prompt set whose versions 1, 2 and 3 are all what was tuned as flowers:1."""
    name = f"garden-{uuid4().hex}"
    service.rows(
        "WITH made AS (INSERT INTO prompt_sets (customer_id, name) VALUES (:customer, :name) RETURNING id) "
        "INSERT INTO prompt_set_versions (prompt_set_id, version, customer_id, artifact, artifact_sha256, "
        "artifact_bytes, backbone, backbone_fingerprint, class_names, recipe, parameters, metrics) "
        "SELECT made.id, number, customer_id, artifact, artifact_sha256, artifact_bytes, backbone, "
        "backbone_fingerprint, class_names, recipe, parameters, metrics "
        "FROM made, generate_series(1, 3) number, prompt_set_versions WHERE version = 1 AND job_id = :job "
        "RETURNING version",
        customer=customer.uuid,
        name=name,
        job=UUID(hex=str(job["id"]).removeprefix("job_")),
    )
    return name


def test_a_moved_alias_counts_for_the_very_next_prediction(customer: Customer, garden: str) -> None:
    url = f"/v1/prompt-sets/{garden}/aliases/production"
    with customer.http() as http:

        def served() -> int:
            reply = http.post(
                "/v1/predictions", data={"prompt_sets": f"{garden}@production"}, files={"images": archives.picture()}
            )
            assert reply.status_code in (200, 404), reply.text
            return int(reply.json()["prompt_sets"][0]["version"]) if reply.status_code == 200 else 0

        found = [served()]
        for version in (1, 3, 2):
            assert http.put(url, json={"version": version}).json()["version"] == version
            found.append(served())
        assert http.post(f"{url}/rollback").json()["version"] == 3
        found.append(served())
        assert http.delete(url).status_code == 204
        found.append(served())
    assert found == [0, 1, 3, 2, 3, 0]


def test_the_history_of_an_alias_names_key_and_request_and_the_past(customer: Customer, garden: str) -> None:
    url = f"/v1/prompt-sets/{garden}/aliases/production"
    with customer.http() as http:
        first = http.put(url, json={"version": 1}, headers={"X-Request-Id": "move-1"}).json()
        http.put(url, json={"version": 2}, headers={"X-Request-Id": "move-2"})
        http.put(url, json={"version": 2}, headers={"X-Request-Id": "nothing-to-do"})
        http.post(f"{url}/rollback", headers={"X-Request-Id": "back"})
        http.delete(url, headers={"X-Request-Id": "away"})
        newest = http.get(f"{url}/history", params={"limit": 3}).json()
        oldest = http.get(f"{url}/history", params={"limit": 3, "after": newest["next_cursor"]}).json()
        moves = [*newest["data"], *oldest["data"]]
        then = [http.get(url, params={"as_of": move["moved_at"]}) for move in moves]
    assert (newest["has_more"], oldest["has_more"]) == (True, False)
    assert [(move["number"], move["from_version"], move["to_version"], move["request_id"]) for move in moves] == [
        (4, 1, None, "away"),
        (3, 2, 1, "back"),
        (2, 1, 2, "move-2"),
        (1, None, 1, "move-1"),
    ]
    assert {move["actor"] for move in moves} == {customer.key_id}
    assert [reply.json().get("version") for reply in then] == [None, 1, 2, 1]
    assert then[0].status_code == 404
    assert then[3].json() == first
    assert first["moved_at"] == moves[3]["moved_at"]


def test_a_prompt_set_shows_where_its_aliases_point(customer: Customer, garden: str) -> None:
    with customer.http() as http:
        for alias, version in (("staging", 3), ("production", 1)):
            http.put(f"/v1/prompt-sets/{garden}/aliases/{alias}", json={"version": version})
        one = http.get(f"/v1/prompt-sets/{garden}").json()
        listed = http.get("/v1/prompt-sets").json()["data"]
        aliases = http.get(f"/v1/prompt-sets/{garden}/aliases").json()["data"]
    assert one["aliases"] == {"production": 1, "staging": 3}
    assert [item["aliases"] for item in listed if item["name"] == garden] == [one["aliases"]]
    assert [item["aliases"] for item in listed if item["name"] == "flowers"] == [{}]
    assert [(item["prompt_set"], item["alias"], item["version"]) for item in aliases] == [
        (garden, "production", 1),
        (garden, "staging", 3),
    ]


# --- batch predictions ---


def test_a_batch_prediction_says_what_single_predictions_say(
    customer: Customer, dataset: dict[str, object], job: dict[str, object]
) -> None:
    publish(customer, random_prompt_set(load_backbone("vit_tiny_patch8_64.mae"), seed=5), name="other")
    asked = customer.predict_batch(dataset, "flowers:1", "other", split="test", top_k=2, metadata={"for": "tests"})
    result = job["result"]
    assert isinstance(result, dict)
    assert [(used["name"], used["version"]) for used in asked["prompt_sets"]] == [("flowers", 1), ("other", 1)]
    assert asked["prompt_sets"][0]["artifact_sha256"] == result["artifact_sha256"]
    done = customer.finished(asked)
    assert (done["state"], done["progress"], done["metadata"]) == (
        "succeeded",
        {"done": 6, "total": 6},
        {"for": "tests"},
    ), done
    with zipfile.ZipFile(io.BytesIO(archives.flowers())) as archive:
        pictures = {name: archive.read(name) for name in archive.namelist() if "/test/" in name}
    with customer.http() as http:
        replies = {
            name: http.get(f"/v1/batch-predictions/{asked['id']}/results", params={"format": name})
            for name in ("jsonl", "csv", "parquet")
        }
        single = http.post(
            "/v1/predictions",
            data={"prompt_sets": ["flowers:1", "other:1"], "top_k": "2"},
            files=[("images", (name, data)) for name, data in pictures.items()],
        ).json()["data"]
    rows = [json.loads(line) for line in replies["jsonl"].text.splitlines()]
    by_key = {(row["image"], row["prompt_set"]): row for row in rows}
    assert len(rows) == len(by_key) == 12
    for answer in single:
        for seen in answer["results"]:
            row = by_key.pop((answer["filename"], seen["prompt_set"]))
            assert (row["labels"], row["split"], row["error"]) == ([answer["filename"].split("/")[2]], "test", None)
            assert (row["predicted"], row["unknown"]) == (seen["labels"], seen["unknown"])
            expected = seen["predictions"]
            assert [each["label"] for each in row["scores"]] == [each["label"] for each in expected]
            assert [each["score"] for each in row["scores"]] == pytest.approx(
                [each["score"] for each in expected], abs=1e-5
            )
    assert by_key == {}
    table = list(csv.DictReader(io.StringIO(replies["csv"].text)))
    stored = pq.read_table(io.BytesIO(replies["parquet"].content)).to_pylist()
    keys = [(row["image"], row["prompt_set"]) for row in rows]
    assert [(row["image"], row["prompt_set"]) for row in table] == keys
    assert [(row["image"], row["prompt_set"]) for row in stored] == keys
    for name, reply in replies.items():
        sha256 = hashlib.sha256(reply.content).hexdigest()
        assert reply.headers["etag"] == f'"{sha256}"'
        assert done["result"]["files"][name] == {"bytes": len(reply.content), "sha256": sha256}


def test_images_without_labels_can_be_predicted_but_not_tuned_on(
    service: Service, customer: Customer, job: dict[str, object]
) -> None:
    dataset = customer.upload(archives.pictures("1.jpg", "x/2.jpg", "train/y/3.jpg"), task="unlabelled")
    assert (dataset["state"], dataset["task"], dataset["class_names"]) == ("ready", "unlabelled", [])
    assert (dataset["counts"], dataset["image_count"]) == ({}, 3)
    with customer.http() as http:
        before = http.get("/v1/tuning-jobs").json()
        refused = http.post("/v1/tuning-jobs", json={"dataset": dataset["id"], "prompt_set": "new"})
        assert (refused.status_code, refused.json()["code"]) == (409, "dataset_unlabelled")
        assert http.get("/v1/tuning-jobs").json() == before
        assert http.get("/v1/prompt-sets/new").status_code == 404
        none = http.post(
            "/v1/batch-predictions", json={"dataset": dataset["id"], "prompt_sets": ["flowers:1"], "split": "train"}
        )
        assert (none.status_code, none.json()["code"]) == (422, "dataset_empty")
        done = customer.finished(customer.predict_batch(dataset, "flowers:1"))
        rows = http.get(f"/v1/batch-predictions/{done['id']}/results").text.splitlines()
        assert {(row["image"], *row["labels"]) for row in map(json.loads, rows)} == {
            ("1.jpg",),
            ("x/2.jpg",),
            ("train/y/3.jpg",),
        }
        assert http.delete(f"/v1/batch-predictions/{done['id']}").status_code == 204
        assert http.get(f"/v1/batch-predictions/{done['id']}/results").status_code == 404
    own = str(done["id"]).removeprefix("job_")
    eventually(lambda: not [key for key in service.objects() if own in key] or None, what="deletion of results")


# --- the inference protocol, with Triton's own client ---


class Key(triton.InferenceServerClientPlugin):  # type: ignore[misc]  # the client has no types
    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: triton.Request) -> None:
        request.headers["Authorization"] = f"Bearer {self._key}"


@contextmanager
def triton_client(service: Service, key: str | None) -> Iterator[Any]:
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        if key is not None:
            client.register_plugin(Key(key))
        yield client


def image_input(values: np.ndarray[Any, Any], datatype: str, *, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput("image", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def files_input(*files: bytes) -> triton.InferInput:
    return image_input(np.array(files, np.object_), "BYTES")


@contextmanager
def refused(status: int, text: str = ".") -> Iterator[None]:
    with pytest.raises(triton.InferenceServerException, match=text) as caught:
        yield
    assert caught.value.status() == str(status)
    assert "decoding" not in caught.value.message(), "the error is not as the client expects it"


def test_anyone_may_ask_whether_the_server_lives(service: Service) -> None:
    with triton_client(service, None) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        described = client.get_server_metadata()
        assert (described["name"], described["extensions"][0]) == ("bpt-service", "binary_tensor_data")
        assert not client.is_model_ready("flowers")


def test_a_model_tells_its_tensors(customer: Customer, dataset: dict[str, object], garden: str) -> None:
    classes = len(dataset["class_names"])  # type: ignore[arg-type]
    with customer.http() as http, triton_client(customer.service, customer.key) as client:
        http.put(f"/v1/prompt-sets/{garden}/aliases/production", json={"version": 2})
        for name, version in ((garden, ""), (garden, "1"), (f"{garden}@production", "")):
            assert client.is_model_ready(name, version)
            described = client.get_model_metadata(name, version)
            assert (described["name"], described["versions"]) == (garden, ["1", "2", "3"])
            assert [(each["name"], each["datatype"], each["shape"]) for each in described["inputs"]] == [
                ("image", "BYTES", [-1])
            ]
            assert described["inputs"][0]["parameters"]["FP32"] == "[-1, 3, 64, 64]"
            assert [(each["name"], each["datatype"], each["shape"]) for each in described["outputs"]] == [
                ("scores", "FP32", [-1, classes]),
                ("label", "BYTES", [-1]),
                ("features", "FP32", [-1, 192]),
            ]
            found = client.infer(name, [files_input(archives.picture())], version).get_response()
            used = {"": "3", "1": "1"}[version] if name == garden else "2"
            assert (found["model_name"], found["model_version"]) == (garden, used)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("datatype", "binary"), [("BYTES", True), *product(("UINT8", "FP32"), (True, False))])
def test_the_protocol_says_what_predictions_say(
    customer: Customer,
    dataset: dict[str, object],
    job: dict[str, object],
    datatype: str,
    binary: bool,
    large: bool,
) -> None:
    # Large ones are shrunk before they are cropped, and as pixels they are more than a megabyte.
    side = 700 if large and binary else 96
    drawn = [Image.open(io.BytesIO(archives.picture(label, 40 + label))) for label in (2, 0)]
    pictures = [picture.resize((side + 20, side)) for picture in drawn]
    files = [archives.png(picture) for picture in pictures]
    with customer.http() as http:
        reply = http.post(
            "/v1/predictions",
            data={"prompt_sets": "flowers:1", "top_k": "3", "return_features": "true"},
            files=[("images", ("i.png", data)) for data in files],
        ).json()
    if datatype == "BYTES":
        given = files_input(*files)
    elif datatype == "UINT8":
        given = image_input(np.stack([np.asarray(picture) for picture in pictures]), datatype, binary=binary)
    else:
        views = np.stack([evaluation_view(images.canonical(data), 64) for data in files])
        normal = load_backbone("vit_tiny_patch8_64.mae").normalise(torch.from_numpy(views).permute(0, 3, 1, 2))
        given = image_input(normal.numpy(), datatype, binary=binary)
    outputs = [triton.InferRequestedOutput(name, binary) for name in ("scores", "label", "features")]
    with triton_client(customer.service, customer.key) as client:
        found = client.infer("flowers", [given], "1", outputs, request_id="mine")
    scores, labels, features = (found.as_numpy(output.name()) for output in outputs)
    names = dataset["class_names"]
    assert isinstance(names, list)
    assert (scores.shape, features.shape) == ((2, 3), (2, 192))
    for index, image in enumerate(reply["data"]):
        (seen,) = image["results"]
        expected = {each["label"]: each["score"] for each in seen["predictions"]}
        assert dict(zip(names, scores[index].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(features[index], seen["features"], atol=1e-4)
        label = labels[index].decode() if binary else labels[index]
        assert label == (seen["labels"][0] if seen["labels"] else "")
    head = found.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", "flowers", "1")
    assert head["parameters"] == {
        key: reply["prompt_sets"][0][key] for key in ("artifact_sha256", "backbone_fingerprint")
    }


def test_outputs_are_those_that_are_asked_for(customer: Customer, job: dict[str, object]) -> None:
    given = [files_input(archives.picture())]
    with triton_client(customer.service, customer.key) as client:
        plain = client.infer("flowers", given, "1")
        best = client.infer("flowers", given, "1", outputs=[triton.InferRequestedOutput("scores", class_count=2)])
        later = client.async_infer("flowers", given, "1").get_result()
    assert [(each["name"], "data" in each) for each in plain.get_response()["outputs"]] == [
        ("scores", False),
        ("label", False),
    ]
    np.testing.assert_allclose(later.as_numpy("scores"), plain.as_numpy("scores"), atol=1e-5)
    order = np.argsort(-plain.as_numpy("scores")[0])
    assert [int(each.split(b":")[1]) for each in best.as_numpy("scores")[0]] == order[:2].tolist()


def test_what_the_protocol_cannot_serve_is_an_error_that_its_client_understands(
    customer: Customer, job: dict[str, object]
) -> None:
    service, good = customer.service, archives.picture()
    given = [files_input(good)]
    with triton_client(service, None) as client, refused(401):
        client.infer("flowers", given)
    with triton_client(service, service.new_customer().key) as client:
        assert not client.is_model_ready("flowers")
        for ask in (client.get_model_metadata, partial(client.infer, inputs=given)):
            with refused(404):
                ask("flowers")
    with triton_client(service, service.new_customer(scopes=["prompts:read"]).key) as client, refused(403):
        client.infer("flowers", given)
    with triton_client(service, customer.key) as client:
        for name, version in (("unheard-of", ""), ("flowers", "99"), ("flowers", "x"), ("flowers:1", ""), ("a b", "")):
            assert not client.is_model_ready(name, version)
            with refused(404):
                client.infer(name, given, version)
        with refused(400, "image 1: the content is no JPEG"):
            client.infer("flowers", [files_input(good, b"??", good)])
        with refused(400, "finite"):
            client.infer("flowers", [image_input(np.full((1, 3, 64, 64), 1e38, np.float32), "FP32")])
        with refused(413, "16 images"):
            client.infer("flowers", [files_input(*[good] * 17)])
        with refused(413, "2000000 bytes"):
            client.infer("flowers", [files_input(bytes(2_000_001))])
        with refused(413, "at most"):
            client.infer("flowers", [image_input(np.zeros((12, 1000, 1000, 3), np.uint8), "UINT8")])
        with refused(415, "Content-Encoding"):
            client.infer("flowers", given, request_compression_algorithm="gzip")
        with refused(400, "BYTES in binary"):
            client.infer("flowers", [image_input(np.array([b"x"], np.object_), "BYTES", binary=False)])
        with refused(400, "no output 'logits'"):
            client.infer("flowers", given, outputs=[triton.InferRequestedOutput("logits")])
        assert client.infer("flowers", given).as_numpy("label").shape == (1,)


def test_inference_is_counted_as_predictions_are(customer: Customer, job: dict[str, object]) -> None:
    counter = f'bpt_predict_images_total{{customer="{customer.id}",outcome="predicted",prompt_set="flowers"}} '

    def predicted() -> float:
        with customer.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return next((float(line.removeprefix(counter)) for line in lines if line.startswith(counter)), 0.0)

    before = predicted()
    with triton_client(customer.service, customer.key) as client:
        client.infer("flowers", [files_input(*[archives.picture()] * 3)])
    assert predicted() == before + 3
