"""The engine: right answers to the right caller, no crowd delays a neighbour, nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.prompt_sets import random_prompt_set
from bpt_core import artifact, images, samples
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.engine import Answer, Engine, Input, Wanted
from bpt_core.errors import ArtifactError, BptError, Overloaded
from bpt_core.methods import Depth
from bpt_core.predict import Launched, Picture, Prediction, Predictor
from bpt_core.residency import Resident
from tests.service import eventually

DEPTHS = [Depth.SHALLOW, Depth.DEEP, Depth.DEEP_TOP4, None]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(DEFAULT_BACKBONE)


@pytest.fixture(scope="module")
def sets(backbone: Backbone) -> list[PromptSet]:
    return [
        random_prompt_set(backbone, depth=DEPTHS[seed % 4], length=3 + seed, classes=2 + seed, seed=seed)
        for seed in range(8)
    ]


@pytest.fixture(scope="module")
def encoded() -> list[bytes]:
    return [images.encode(samples.draw(label, label)) for label in range(6)]


class Gate(Predictor):
    """Computes as ever, but one batch only for each time it is opened; keeps what was in the batches."""

    def __init__(self, backbone: Backbone, **arguments: Any) -> None:
        super().__init__(backbone, **arguments)
        self.permits = threading.Semaphore(0)
        self.batches: list[list[str]] = []

    def launch(self, pictures: Sequence[Picture], rows: Sequence[tuple[int, Resident]]) -> Launched:
        self.batches.append([resident.key for _, resident in rows])
        self.permits.acquire()
        return super().launch(pictures, rows)

    def open(self, batches: int = 1_000_000) -> None:
        self.permits.release(batches)


@pytest.fixture
def gate(backbone: Backbone) -> Iterator[Gate]:
    gate = Gate(backbone, device_bytes=1 << 22)
    yield gate
    gate.open()


@pytest.fixture
def start(gate: Gate) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        engines.append(Engine(lambda _: gate, **settings))
        return engines[-1]

    yield start
    gate.open()
    for engine in engines:
        engine.close()
        assert engine.waiting_rows == 0
        for predictor in engine.predictors.values():
            assert predictor.residency._pins == {}


def wants(prompt_set: PromptSet, key: str | None = None) -> Wanted:
    return Wanted(key or prompt_set.sha256, DEFAULT_BACKBONE, lambda: prompt_set)


def of(answer: Answer) -> list[list[Prediction]]:
    found = []
    for image in answer.images:
        assert isinstance(image, list), image
        found.append(image)
    return found


def error_of(answer: Answer, index: int) -> BptError:
    found = answer.images[index]
    assert isinstance(found, BptError)
    return found


def test_many_callers_at_once_each_get_what_the_predictor_alone_says(
    start: Callable[..., Engine], gate: Gate, backbone: Backbone, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(batch_rows=5)
    gate.open()
    alone = Predictor(backbone)
    pictures = [images.canonical(data) for data in encoded]
    generator = np.random.default_rng(0)
    waiting = []
    for caller in range(20):
        chosen = [int(each) for each in generator.integers(0, 6, generator.integers(1, 4))]
        wanted = [[int(each) for each in generator.integers(0, 8, generator.integers(1, 4))] for _ in chosen]
        request = engine.submit(
            caller % 3, [encoded[index] for index in chosen], [[wants(sets[one]) for one in each] for each in wanted]
        )
        waiting.append((chosen, wanted, request))
    for chosen, wanted, request in waiting:
        answer = request.result(30)
        assert min(answer.queue_seconds, answer.decode_seconds, answer.compute_seconds) >= 0
        for image, each, found in zip(chosen, wanted, of(answer), strict=True):
            expected = alone.predict([pictures[image]] * len(each), [sets[one] for one in each])
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-5)
                torch.testing.assert_close(one.features, other.features, rtol=0, atol=1e-4)
                assert one.facts.class_names == other.facts.class_names


def test_the_device_takes_what_is_there_and_waits_for_nothing(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(batch_rows=4)
    first = engine.submit("a", encoded[:1], [[wants(sets[0])]])
    eventually(lambda: len(gate.batches) == 1)  # alone, at once
    rest = [engine.submit("a", encoded[:1], [[wants(sets[0])]]) for _ in range(6)]
    eventually(lambda: sum(map(len, gate.batches)) == 1 and engine.waiting_rows == 7)
    gate.open()
    for request in [first, *rest]:
        request.result(30)
    assert [len(batch) for batch in gate.batches][-1] <= 4
    assert len(gate.batches) <= 4  # while the first one ran the others gathered


def test_one_image_does_not_wait_for_anothers_thousand(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(batch_rows=8, queue_rows=4096, decode_threads=1)
    crowd, single = wants(sets[0], "crowd"), wants(sets[1], "single")
    flood = [engine.submit("flooder", encoded * 5, [[crowd]] * 30) for _ in range(4)]
    eventually(lambda: len(gate.batches) == 1)
    mine = engine.submit("customer", encoded[:1], [[single]])
    # Decoded and loaded, though a hundred images of the other came before.
    eventually(lambda: single.key in [row.use.wanted.key for q in engine._ready.values() for row in _peek(q)])
    gate.open(2)
    mine.result(30)
    assert [index for index, batch in enumerate(gate.batches) if "single" in batch] == [1]
    assert not any(request.done() for request in flood[1:])


def test_one_image_is_decoded_next_though_anothers_came_before(
    start: Callable[..., Engine],
    gate: Gate,
    sets: list[PromptSet],
    encoded: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode, order, permits = images.canonical, list[bytes](), threading.Semaphore(0)

    def one_by_one(data: bytes) -> Image.Image:
        order.append(data)
        permits.acquire()
        return decode(data)

    monkeypatch.setattr(images, "canonical", one_by_one)
    engine = start(decode_threads=1)
    flood = engine.submit("flooder", encoded[:5], [[wants(sets[0])]] * 5)
    eventually(lambda: len(order) == 1)
    mine = engine.submit("customer", encoded[5:], [[wants(sets[0])]])
    gate.open()
    permits.release(6)
    mine.result(30)
    flood.result(30)
    # The flooder's second is next in turn, then the customer's, though three more of the flooder's came before.
    assert order.index(encoded[5]) == 2


def _peek(queue: Any) -> list[Any]:
    return [item for items in list(queue._of.values()) for item in list(items)]


def test_a_full_queue_refuses_the_crowd_and_leaves_room_for_others(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(queue_rows=40)
    # Half of the queue, and no more.
    accepted = [engine.submit("flooder", encoded[:2], [[wants(sets[0])]] * 2) for _ in range(10)]
    with pytest.raises(Overloaded):
        engine.submit("flooder", encoded[:1], [[wants(sets[0])]])
    accepted.append(engine.submit("customer", encoded[:1], [[wants(sets[1])]]))
    gate.open()
    for request in accepted:
        request.result(30)
    engine.submit("flooder", encoded[:2], [[wants(sets[0])]] * 2).result(30)


def test_a_damaged_image_fails_alone(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start()
    gate.open()
    inputs = [encoded[0], b"no image", encoded[1], b""]
    answer = engine.submit("a", inputs, [[wants(sets[0]), wants(sets[1])]] * 4).result(30)
    assert [isinstance(found, list) for found in answer.images] == [True, False, True, False]
    assert (error_of(answer, 1).code, error_of(answer, 3).code) == ("image_unsupported", "image_corrupt")


def test_numbers_that_are_not_finite_fail_alone(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start()
    gate.open()
    poison = np.full((3, 64, 64), np.nan, np.float32)
    inputs: list[Input] = [images.canonical(encoded[0]), poison, np.zeros((3, 64, 64), np.float32)]
    answer = engine.submit("a", inputs, [[wants(sets[0])]] * 3).result(30)
    assert error_of(answer, 1).code == "image_not_finite"
    assert isinstance(answer.images[0], list)
    assert isinstance(answer.images[2], list)


def test_what_breaks_a_batch_fails_alone(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start()
    before = engine.submit("before", encoded[:1], [[wants(sets[0])]])
    eventually(lambda: len(gate.batches) == 1)  # while this one runs, the others gather for a batch of all of them
    misshapen = np.zeros((3, 48, 64), np.float32)  # cannot be stacked with the others
    given: list[list[Input]] = [[*encoded[:2]], [misshapen], [np.zeros((3, 64, 64), np.float32)]]
    waiting = [
        engine.submit(customer, inputs, [[wants(sets[0])]] * len(inputs)) for customer, inputs in enumerate(given)
    ]
    eventually(lambda: sum(len(_peek(queue)) for queue in engine._ready.values()) == 4)
    gate.open()
    before.result(30)
    answers = [request.result(30) for request in waiting]
    assert error_of(answers[1], 0).code == "prediction_failed"
    assert all(isinstance(found, list) for answer in (answers[0], answers[2]) for found in answer.images)


def test_a_prompt_set_that_cannot_be_loaded_fails_its_request_alone(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes], backbone: Backbone
) -> None:
    engine = start()
    gate.open()

    def damaged() -> PromptSet:
        return artifact.from_bytes(b"damaged")

    bad = Wanted("bad", DEFAULT_BACKBONE, damaged)
    refused = engine.submit("a", encoded[:2], [[wants(sets[0]), bad], [wants(sets[1])]])
    fine = engine.submit("a", encoded[:2], [[wants(sets[0])]] * 2)
    with pytest.raises(ArtifactError):
        refused.result(30)
    assert all(of(fine.result(30)))
    foreign = random_prompt_set(backbone)
    other = Wanted("other", DEFAULT_BACKBONE, lambda: PromptSet(**{**vars(foreign), "backbone_fingerprint": "0" * 64}))
    with pytest.raises(ArtifactError, match="other weights"):
        engine.submit("a", encoded[:1], [[other]]).result(30)


def test_a_request_that_is_given_up_is_not_computed(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(batch_rows=1)
    first = engine.submit("a", encoded[:1], [[wants(sets[0])]])
    eventually(lambda: len(gate.batches) == 1)
    given_up = engine.submit("a", encoded[:3], [[wants(sets[1])]] * 3)
    later = engine.submit("b", encoded[:1], [[wants(sets[2])]])
    assert given_up.cancel()
    gate.open()
    first.result(30)
    later.result(30)
    assert all(sets[1].sha256 not in batch for batch in gate.batches)
    with pytest.raises(CancelledError):
        given_up.result(0)


def test_more_prompt_sets_than_the_device_holds_are_all_answered(
    backbone: Backbone, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    # Room for about two of the sets at a time; requests want three each.
    predictor = Predictor(backbone, device_bytes=250 * 192 * 4)
    engine = Engine(lambda _: predictor, batch_rows=4)
    alone = Predictor(backbone)
    requests: list[tuple[list[int], Future[Answer]]] = []
    for turn in range(24):
        chosen = [turn % 8, (turn * 3 + 1) % 8, (turn * 5 + 2) % 8]
        requests.append((chosen, engine.submit(turn % 4, encoded[:1], [[wants(sets[one]) for one in chosen]])))
    picture = images.canonical(encoded[0])
    for chosen, request in requests:
        for one, prediction in zip(chosen, of(request.result(60))[0], strict=True):
            expected = alone.predict([picture], sets[one])[0]
            torch.testing.assert_close(prediction.probabilities, expected.probabilities, rtol=0, atol=1e-5)
    assert predictor.residency.occupancy().evictions > 0
    engine.close()
    assert predictor.residency._pins == {}


def test_closing_finishes_what_is_there_and_refuses_what_is_new(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start()
    request = engine.submit("a", encoded[:2], [[wants(sets[0])]] * 2)
    closing = threading.Thread(target=engine.close)
    closing.start()
    eventually(lambda: engine._closing)
    with pytest.raises(Overloaded):
        engine.submit("a", encoded[:1], [[wants(sets[0])]])
    gate.open()
    closing.join(30)
    assert all(of(request.result(0)))


def test_closing_without_patience_fails_what_is_not_done(
    start: Callable[..., Engine], gate: Gate, sets: list[PromptSet], encoded: list[bytes]
) -> None:
    engine = start(batch_rows=1)
    requests = [engine.submit("a", encoded[:1], [[wants(sets[0])]]) for _ in range(3)]
    eventually(lambda: len(gate.batches) == 1)
    closing = threading.Thread(target=engine.close, args=(0.05,))
    closing.start()
    eventually(lambda: engine._closed)
    gate.open()
    closing.join(30)
    failed = [request.exception(0) for request in requests]
    assert sorted(type(error).__name__ for error in failed) == ["NoneType", "Overloaded", "Overloaded"]
