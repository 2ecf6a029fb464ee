"""Requests of the Open Inference Protocol, read and answered without a service."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr
from starlette.requests import Request
from starlette.types import Message

from api import inference_body
from api.inference_body import HEADER_LENGTH, Asked, Body
from api.inference_schemas import InferOutput, OutputParameters
from api.problems import Problem
from bpt_core import images
from bpt_core.catalog import Pooling
from bpt_core.dataset import SINGLE_LABEL
from bpt_core.errors import ImageError
from bpt_core.evaluate import Calibration
from bpt_core.predict import Prediction
from bpt_core.residency import Facts
from bpt_store.settings import Settings
from tests import archives

SIZE = 8
SETTINGS = Settings(
    database_url=SecretStr("x"),
    system_database_url=SecretStr("x"),
    redis_url=SecretStr("x"),
    objects_url="file:///x",
    images_per_prediction=4,
    image_limit_bytes=10_000,
    predict_json_limit_bytes=100_000,
)
REFUSALS = (Problem, ImageError, RequestValidationError)


def body(request: object, binary: bytes = b"") -> Body:
    return Body(json.dumps(request).encode(), memoryview(binary))


def read(request: object, binary: bytes = b"") -> Asked:
    return inference_body.read(body(request, binary), SIZE, SETTINGS)


def image(datatype: str, shape: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": shape, **more}


def encoded(*elements: bytes) -> bytes:
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


def binary(size: int) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size}}


# --- what is taken ---


def test_the_client_s_own_request_is_read() -> None:
    pixels = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    given = triton.InferInput("image", [2, 5, 4, 3], "UINT8")
    given.set_data_from_numpy(pixels)
    whole, length = triton.InferenceServerClient.generate_request_body([given], request_id="mine")
    asked = inference_body.read(Body(whole[:length], memoryview(whole)[length:]), SIZE, SETTINGS)
    assert (asked.id, asked.binary_by_default) == ("mine", True)
    assert [output.name for output in asked.outputs] == ["scores", "label"]
    for found, expected in zip(asked.images, pixels, strict=True):
        assert isinstance(found, Image.Image)
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_pixels_become_what_a_lossless_file_of_them_does() -> None:
    large = Image.effect_noise((500, 400), 80).convert("RGB")
    data = np.asarray(large).tobytes()
    (found,) = read({"inputs": [image("UINT8", [1, 400, 500, 3], **binary(len(data)))]}, data).images
    assert isinstance(found, Image.Image)
    expected = images.canonical(archives.png(large))
    assert images.pixel_hash(found) == images.pixel_hash(expected)
    assert min(found.size) == images.SHORT_SIDE


def test_normalised_floats_come_in_both_forms() -> None:
    values = np.linspace(-2, 2, 2 * 3 * SIZE * SIZE, dtype=np.float32).reshape(2, 3, SIZE, SIZE)
    shape = [2, 3, SIZE, SIZE]
    data = values.tobytes()
    for asked in (
        read({"inputs": [image("FP32", shape, **binary(len(data)))]}, data),
        read({"inputs": [image("FP32", shape, data=values.tolist())]}),
        read({"inputs": [image("FP32", shape, data=values.ravel().tolist())]}),
    ):
        for found, expected in zip(asked.images, values, strict=True):
            assert isinstance(found, np.ndarray)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


def test_what_other_servers_know_is_let_pass() -> None:
    data = encoded(b"x")
    hints = {"priority": 1, "timeout": 5, "sequence_id": 3, "mine": "x"}
    asked = read({"inputs": [image("BYTES", [1], **binary(len(data)))], "parameters": hints, "extra": 1}, data)
    assert asked.images == [b"x"]


# --- what is refused ---


def refusal(request: object, data: bytes = b"") -> str:
    with pytest.raises(REFUSALS) as caught:
        read(request, data)
    return str(getattr(caught.value, "code", "invalid_request"))


GOOD = image("BYTES", [1], **binary(5))


@pytest.mark.parametrize(
    "request_",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [GOOD, GOOD]},
        {"inputs": [{**GOOD, "name": "picture"}]},
        {"inputs": [{**GOOD, "name": 3}]},
        {"inputs": [{**GOOD, "name": "x" * 257}]},
        {"inputs": [{**GOOD, "datatype": "bytes"}]},
        {"inputs": [{**GOOD, "datatype": "FP64"}]},
        {"inputs": [{**GOOD, "datatype": None}]},
        {"inputs": [{**GOOD, "shape": []}]},
        {"inputs": [{**GOOD, "shape": [-1]}]},
        {"inputs": [{**GOOD, "shape": [0]}]},
        {"inputs": [{**GOOD, "shape": [1.0]}]},
        {"inputs": [{**GOOD, "shape": ["1"]}]},
        {"inputs": [{**GOOD, "shape": [True]}]},
        {"inputs": [{**GOOD, "shape": [1, 1]}]},
        {"inputs": [{**GOOD, "shape": [10**30]}]},
        {"inputs": [{**GOOD, "shape": [1] * 9}]},
        {"inputs": [{**GOOD, "data": ["x"]}]},
        {"inputs": [image("BYTES", [1])]},
        {"inputs": [image("BYTES", [1], parameters=[])]},
        {"inputs": [image("BYTES", [1], **binary(4))]},
        {"inputs": [image("BYTES", [1], **binary(6))]},
        {"inputs": [image("BYTES", [1], **binary(-1))]},
        {"inputs": [image("BYTES", [1], **binary(10**30))]},
        {"inputs": [image("BYTES", [1], parameters={"binary_data_size": "5"})]},
        {"inputs": [image("BYTES", [1], parameters={"shared_memory_region": "x"})]},
        {"inputs": [GOOD], "outputs": [{"name": "logits"}]},
        {"inputs": [GOOD], "outputs": [{"name": "label"}, {"name": "label"}]},
        {"inputs": [GOOD], "outputs": [{"name": "label"}] * 9},
        {"inputs": [GOOD], "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        {"inputs": [GOOD], "outputs": [{"name": "label", "parameters": {"classification": 1}}]},
        {"inputs": [GOOD], "outputs": [{"name": "scores", "parameters": {"classification": 0}}]},
        {"inputs": [GOOD], "outputs": [{"name": "scores", "parameters": {"shared_memory_region": "x"}}]},
        {"inputs": [GOOD], "parameters": {"binary_data_output": "yes"}},
        {"inputs": [GOOD], "id": 7},
    ],
)
def test_a_malformed_request_is_refused(request_: object) -> None:
    assert read({"inputs": [GOOD]}, encoded(b"x")).images == [b"x"]
    assert refusal(request_, encoded(b"x")) == "invalid_request"


@pytest.mark.parametrize(
    ("given", "data", "code"),
    [
        (image("BYTES", [1], data=["x"]), b"", "invalid_request"),
        (image("BYTES", [5], **binary(25)), encoded(*[b"x"] * 5), "payload_too_large"),
        (image("BYTES", [1], **binary(10_005)), encoded(bytes(10_001)), "payload_too_large"),
        (image("BYTES", [2**31 - 1], **binary(0)), b"", "payload_too_large"),
        (image("BYTES", [2], **binary(5)), encoded(b"x"), "invalid_request"),
        (image("UINT8", [1, 2, 2], **binary(4)), bytes(4), "invalid_request"),
        (image("UINT8", [1, 2, 2, 4], **binary(16)), bytes(16), "invalid_request"),
        (image("UINT8", [1, 2, 2, 3], **binary(11)), bytes(11), "invalid_request"),
        (image("UINT8", [1, 2**31 - 1, 2**31 - 1, 3], **binary(12)), bytes(12), "invalid_request"),
        (image("UINT8", [1, 1, 9000, 3], **binary(27_000)), bytes(27_000), "image_too_large"),
        (image("UINT8", [5, 1, 1, 3], data=[0] * 15), b"", "payload_too_large"),
        (image("UINT8", [1, 1, 1, 3], data=[0, 1, 256]), b"", "invalid_request"),
        (image("FP32", [1, 3, SIZE, SIZE + 1], data=[0.0] * 3 * SIZE * (SIZE + 1)), b"", "invalid_request"),
        (image("FP32", [1, SIZE, SIZE, 3], data=[0.0] * 3 * SIZE**2), b"", "invalid_request"),
        (image("FP32", [3, SIZE, SIZE], data=[0.0] * 3 * SIZE**2), b"", "invalid_request"),
        (image("FP32", [1, 3, SIZE, SIZE], data=[1e300] * 3 * SIZE**2), b"", "invalid_request"),
    ],
    ids=[
        *("strings", "five files", "a large file", "very many files", "one file short"),
        *("grey", "four channels", "one byte short", "huge", "a strip", "five pictures", "256"),
        *("not square", "channels last", "no batch", "beyond float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(given: dict[str, Any], data: bytes, code: str) -> None:
    assert refusal({"inputs": [given]}, data) == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_its_index_in_both_forms(value: float) -> None:
    values = np.zeros((3, 3, SIZE, SIZE), np.float32)
    values[1, 2, 3, 4] = value
    data = values.tobytes()
    for request, behind in (
        ({"inputs": [image("FP32", [3, 3, SIZE, SIZE], **binary(len(data)))]}, data),
        ({"inputs": [image("FP32", [3, 3, SIZE, SIZE], data=values.tolist())]}, b""),
    ):
        with pytest.raises(Problem, match="image 1 "):
            read(request, behind)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"id": "\\ud800", "inputs": []}', b'{"inputs": ' + b"[" * 90_000],
    ids=["nothing", "half", "bad UTF-8", "deep", "lone surrogate", "deep inside"],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(RequestValidationError):
        inference_body.read(Body(data, memoryview(b"")), SIZE, SETTINGS)


def test_data_nested_deeply_is_refused() -> None:
    deep = b"[" * 150 + b"1.0" + b"]" * 150
    start = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": '
    with pytest.raises(Problem):
        inference_body.read(Body(start + deep + b"}]}", memoryview(b"")), SIZE, SETTINGS)


@settings(deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(-1, 6), max_size=5), st.sampled_from(["BYTES", "UINT8", "FP32"]))
def test_any_request_is_read_or_refused(data: bytes, shape: list[int], datatype: str) -> None:
    try:
        asked = read({"inputs": [image(datatype, shape, **binary(len(data)))]}, data)
    except REFUSALS:
        return
    assert len(asked.images) == shape[0]


# --- the body ---


def received(data: bytes, **headers: str) -> Body:
    async def receive() -> Message:
        return {"type": "http.request", "body": data, "more_body": False}

    raw = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "headers": raw}, receive)
    return asyncio.run(inference_body.receive(request, SETTINGS))


LENGTH = HEADER_LENGTH.replace("-", "_")


def test_the_header_tells_json_from_binary() -> None:
    assert received(b"{}").json == b"{}"
    both = received(b"{}binary", **{LENGTH: "2"})
    assert (both.json, bytes(both.binary)) == (b"{}", b"binary")


@pytest.mark.parametrize("length", ["3", "-1", "+2", "2.0", "two", "", "١", "9" * 30])
def test_a_header_length_that_lies_is_refused(length: str) -> None:
    with pytest.raises(Problem) as caught:
        received(b"{}", **{LENGTH: length})
    assert caught.value.code == "invalid_request"


def test_json_has_a_bound_of_its_own() -> None:
    limit = SETTINGS.predict_json_limit_bytes
    assert len(received(bytes(limit)).json) == limit
    assert len(received(bytes(limit + 1), **{LENGTH: "1"}).binary) == limit
    for headers in ({}, {LENGTH: str(limit + 1)}):
        with pytest.raises(Problem) as caught:
            received(bytes(limit + 1), **headers)
        assert caught.value.code == "payload_too_large"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "br", "gzip, gzip"])
def test_a_compressed_body_is_refused(encoding: str) -> None:
    with pytest.raises(Problem, match="Content-Encoding") as caught:
        received(b"{}", Content_Encoding=encoding)
    assert caught.value.code == "unsupported_media_type"
    assert received(b"{}", Content_Encoding="identity").json == b"{}"


# --- the reply ---


def prediction(*logits: float, rejection: float | None = None) -> Prediction:
    facts = Facts(
        class_names=("rose", "tulip:red", "ünknown"),
        task=SINGLE_LABEL,
        calibration=Calibration(rejection_threshold=rejection),
        pooling=Pooling.CLS,
        depth=None,
        length=0,
        bias=torch.zeros(3),
    )
    return Prediction(facts, torch.tensor(logits), torch.tensor([1.5, -2.5]))


PREDICTIONS = [prediction(0.0, 3.0, 1.0), prediction(2.0, 1.0, 0.0, rejection=0.99)]


def answer(*outputs: InferOutput, by_default: bool = False) -> triton.InferResult:
    asked = Asked("mine", [], list(outputs), by_default)
    reply = inference_body.reply("flowers", "3", {"artifact_sha256": "abc"}, asked, PREDICTIONS)
    return triton.InferenceServerClient.parse_response_body(
        bytes(reply.body), header_length=reply.headers.get(HEADER_LENGTH)
    )


def output(name: str, **parameters: Any) -> InferOutput:
    return InferOutput(name=name, parameters=OutputParameters(**parameters))


@pytest.mark.parametrize("binary_data", [True, False])
@pytest.mark.parametrize("by_default", [True, False])
def test_the_client_reads_every_output_in_both_forms(binary_data: bool, by_default: bool) -> None:
    chosen: dict[str, Any] = {} if binary_data is by_default else {"binary_data": binary_data}
    found = answer(*(output(name, **chosen) for name in ("features", "scores", "label")), by_default=by_default)
    head = found.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("flowers", "3", "mine")
    assert head["parameters"] == {"artifact_sha256": "abc"}
    assert [each["name"] for each in head["outputs"]] == ["features", "scores", "label"]
    assert {"binary_data_size" in each.get("parameters", {}) for each in head["outputs"]} == {binary_data}
    assert {"data" in each for each in head["outputs"]} == {not binary_data}
    scores = torch.stack([each.probabilities for each in PREDICTIONS]).numpy()
    np.testing.assert_array_equal(found.as_numpy("scores"), scores)
    np.testing.assert_array_equal(found.as_numpy("features"), [[1.5, -2.5]] * 2)
    labels = [each.decode() if binary_data else each for each in found.as_numpy("label")]
    assert labels == ["tulip:red", ""]


def test_each_output_has_the_form_it_was_asked_in() -> None:
    found = answer(output("label"), output("scores", binary_data=True))
    label, scores = found.get_response()["outputs"]
    assert label["data"] == ["tulip:red", ""]
    assert scores["parameters"] == {"binary_data_size": 2 * 3 * 4}
    assert found.as_numpy("scores").shape == (2, 3)
    assert found.as_numpy("features") is None


@pytest.mark.parametrize(("count", "shown"), [(2, 2), (100, 3)])
def test_classification_names_score_index_and_label_best_first(count: int, shown: int) -> None:
    found = answer(output("scores", binary_data=True, classification=count)).as_numpy("scores")
    assert found.shape == (2, shown)
    first = [each.decode().split(":", 2) for each in found[0]]
    assert [(int(index), label) for _, index, label in first] == [(1, "tulip:red"), (2, "ünknown"), (0, "rose")][:shown]
    top = PREDICTIONS[0].probabilities.sort(descending=True).values.tolist()
    assert [float(score) for score, _, _ in first] == pytest.approx(top[:shown], abs=1e-6)
