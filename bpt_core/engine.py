"""Continuous batching: requests of many customers, one device that never waits while there is work.

    submit ──▶ decode (threads) ──┐
       │                          ├─▶ ready ──▶ batch ──▶ device (one thread) ──▶ answer
       └────▶ load (threads) ─────┘
              prompt sets that are not on the device

A request is so many rows: an image under a prompt set is one. A row is ready once its image is decoded and its prompt
set is on the device; as soon as the device is free it takes what is ready, up to a full batch. Nothing waits for a
batch to fill. All queues give customers their turns, so one who sends thousands of images delays nobody's single one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bpt_core import catalog, images
from bpt_core.artifact import PromptSet
from bpt_core.errors import BptError, Overloaded, PredictionFailed
from bpt_core.fair import FairQueue
from bpt_core.predict import Launched, Picture, Prediction, Predictor
from bpt_core.residency import Resident
from bpt_core.transforms import evaluation_view

# An encoded image, one that is upright RGB already, or float32 [3, S, S] that is normalised.
Input = bytes | Image.Image | NDArray[np.float32]


@dataclass(frozen=True)
class Wanted:
    """A prompt set that a request wants applied: equal keys are equal content. `fetch` gets it where it is not here."""

    key: str
    backbone: str
    fetch: Callable[[], PromptSet] = field(compare=False)


@dataclass(frozen=True)
class Answer:
    """For each image a prediction per prompt set wanted for it, or why it failed.

    The times, in seconds, are those of the image that was done last: they add up to the whole.
    """

    images: list[list[Prediction] | BptError]
    queue_seconds: float
    decode_seconds: float
    compute_seconds: float


class _Request:
    def __init__(self, customer: Hashable) -> None:
        self.customer = customer
        self.future: Future[Answer] = Future()
        self.images: list[_Image] = []
        self.begun = time.monotonic()
        self.open_rows = 0


class _Image:
    def __init__(self, request: _Request, given: Input) -> None:
        self.request, self.given = request, given
        self.rows: list[_Row] = []
        self.pictures: dict[str, Picture] = {}  # by backbone
        self.error: BptError | None = None
        self.decoding = self.decoded = self.launched = self.done = request.begun


class _Row:
    def __init__(self, image: _Image, use: _Use) -> None:
        self.image, self.use = image, use
        self.prediction: Prediction | None = None
        self.is_open = True
        self.is_running = False

    @property
    def resident(self) -> Resident:
        assert self.use.resident is not None
        return self.use.resident


class _Use:
    """One request's use of one prompt set: pinned from when it is there until the last of these rows is done."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.resident: Resident | None = None
        self.rows: list[_Row] = []
        self.open_rows = 0


class Engine:
    """Answers predictions on one device. Thread-safe.

    `make_predictor` gives the Predictor of a backbone, once. `batch_rows` is the largest batch, `queue_rows` what may
    wait or run altogether; `on_batch(rows, seconds)` hears of every batch.
    """

    def __init__(
        self,
        make_predictor: Callable[[str], Predictor],
        *,
        batch_rows: int = 32,
        queue_rows: int = 4096,
        decode_threads: int = 4,
        load_threads: int = 2,
        on_batch: Callable[[int, float], None] = lambda _rows, _seconds: None,
    ) -> None:
        self._make_predictor, self._on_batch = make_predictor, on_batch
        self._batch_rows, self._queue_rows = batch_rows, queue_rows
        self._predictors: dict[str, Predictor] = {}
        self._making = threading.Lock()
        self._changed = threading.Condition()
        self._open: set[_Request] = set()
        self._held: Counter[Hashable] = Counter()  # rows of each customer that are not done
        self._to_decode: FairQueue[_Image] = FairQueue()
        self._ready: OrderedDict[str, FairQueue[_Row]] = OrderedDict()  # by backbone; whose turn is next comes first
        self._closing = self._closed = False
        self._to_load: FairQueue[tuple[_Request, _Use]] = FairQueue()
        self._load_threads, self._loading = load_threads, 0
        self._threads = [threading.Thread(target=self._decode, name=f"decode-{n}") for n in range(decode_threads)]
        self._threads.append(threading.Thread(target=self._compute, name="device"))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def predictor(self, backbone: str) -> Predictor:
        """Loads it at the first call, which takes seconds. Raises BackboneError."""
        with self._making:
            if backbone not in self._predictors:
                self._predictors[backbone] = self._make_predictor(backbone)
            return self._predictors[backbone]

    @property
    def predictors(self) -> dict[str, Predictor]:
        """Those that are loaded."""
        return dict(self._predictors)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait or run."""
        return self._held.total()

    def submit(self, customer: Hashable, inputs: Sequence[Input], wanted: Sequence[Sequence[Wanted]]) -> Future[Answer]:
        """Images, and for each of them the prompt sets it is to be seen by, at least one.

        Cancelling the future gives up what has not begun. It raises what loading a prompt set or backbone raised:
        ArtifactError, BackboneError. Raises Overloaded at once where the queue is full for this customer, or closed.
        """
        request = _Request(customer)
        uses: dict[Wanted, _Use] = {}
        for given, sets in zip(inputs, wanted, strict=True):
            image = _Image(request, given)
            request.images.append(image)
            for one in sets:
                use = uses.setdefault(one, _Use(one))
                row = _Row(image, use)
                image.rows.append(row)
                use.rows.append(row)
        for use in uses.values():
            use.open_rows = len(use.rows)
            request.open_rows += len(use.rows)
        if not request.images or not all(image.rows for image in request.images):
            raise ValueError("at least one image, and a prompt set for each, are needed")
        self._admit(request)
        for use in uses.values():
            predictor = self._predictors.get(use.wanted.backbone)
            resident = predictor.residency.acquire(use.wanted.key) if predictor else None
            if resident is None:
                self._begin_load(request, use)
            else:
                use.resident = resident
        with self._changed:
            for image in request.images:
                self._to_decode.put(customer, image)
            self._changed.notify_all()
        return request.future

    def close(self, patience_seconds: float = 30) -> None:
        """Refuse what is new, finish what is there; what is not done in time fails as Overloaded."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._held.total(), patience_seconds)
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for request in list(self._open):
            self._fail(request, Overloaded("the service is shutting down"))
        with self._changed:
            self._to_load = FairQueue()
            self._changed.wait_for(lambda: not self._loading)

    # --- admission ---------------------------------------------------------------------------------------------

    def _admit(self, request: _Request) -> None:
        with self._changed:
            if self._closing:
                raise Overloaded("the service is shutting down")
            # Dynamic thresholds (Choudhury and Hahne 1998): a customer may hold as much as is still free. A crowd of
            # one customer therefore never takes more than half, and there is always room for the next.
            free = self._queue_rows - self._held.total()
            if self._held[request.customer] + request.open_rows > free:
                raise Overloaded(f"{self._held.total()} predictions are waiting")
            self._held[request.customer] += request.open_rows
            self._open.add(request)

    def _finish(self, row: _Row) -> None:
        """A row has its prediction, or will never have one."""
        request, use = row.image.request, row.use
        with self._changed:
            if not row.is_open:
                return
            row.is_open = False
            request.open_rows -= 1
            use.open_rows -= 1
            self._held[request.customer] -= 1
            if not self._held[request.customer]:
                del self._held[request.customer]
            self._release(use)
            is_last = not request.open_rows
            if is_last:
                self._open.discard(request)
            if not self._held:
                self._changed.notify_all()
        if is_last:
            with suppress(InvalidStateError):  # given up, or failed
                request.future.set_result(_answer(request))

    def _release(self, use: _Use) -> None:
        if use.resident is not None and not use.open_rows:
            self._predictors[use.wanted.backbone].residency.release(use.resident)
            use.resident = None

    def _fail(self, request: _Request, error: BaseException) -> None:
        with suppress(InvalidStateError):
            request.future.set_exception(error)
        with self._changed:
            for image in request.images:
                for row in image.rows:
                    if not row.is_running:  # else its prompt set is still being read
                        self._finish(row)

    # --- prompt sets ---------------------------------------------------------------------------------------------

    def _begin_load(self, request: _Request, use: _Use) -> None:
        # Threads that end when nothing is to be loaded. One that stays would keep OpenMP workers of its own, and where
        # these outnumber the cores all others stop spinning: on two cores everything computed was a quarter slower.
        with self._changed:
            self._to_load.put(request.customer, (request, use))
            if self._loading == self._load_threads:
                return
            self._loading += 1
        threading.Thread(target=self._load_all, name="load", daemon=True).start()

    def _load_all(self) -> None:
        while True:
            with self._changed:
                if not self._to_load:
                    self._loading -= 1
                    self._changed.notify_all()
                    return
                request, use = next(self._to_load.take())
            self._load(request, use)

    def _load(self, request: _Request, use: _Use) -> None:
        try:
            if not request.future.done():
                predictor = self.predictor(use.wanted.backbone)

                def fetch() -> PromptSet:
                    prompt_set = use.wanted.fetch()
                    predictor.check(prompt_set)
                    return prompt_set

                resident = predictor.residency.load(use.wanted.key, fetch)
                with self._changed:
                    use.resident = resident
                    self._release(use)  # all of its images may have failed meanwhile
                    for row in use.rows:
                        self._enqueue(row)
        except Exception as error:
            self._fail(request, error)

    def _enqueue(self, row: _Row) -> None:
        """Under the lock: queue the row for the device if nothing is missing."""
        if row.is_open and row.use.resident is not None and row.use.wanted.backbone in row.image.pictures:
            self._ready.setdefault(row.use.wanted.backbone, FairQueue()).put(row.image.request.customer, row)
            self._changed.notify_all()

    # --- images --------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        while (image := self._next_image()) is not None:
            image.decoding = time.monotonic()
            pictures: dict[str, Picture] = {}
            try:
                if not image.request.future.done():
                    pictures = _pictures(image)
            except BptError as error:
                image.error = error
            except Exception as error:
                image.error = PredictionFailed(f"{type(error).__name__}: {error}")
            image.given = b""
            image.decoded = image.done = time.monotonic()
            if not pictures:
                for row in image.rows:
                    self._finish(row)
            with self._changed:
                image.pictures = pictures
                for row in image.rows:
                    self._enqueue(row)

    def _next_image(self) -> _Image | None:
        with self._changed:
            self._changed.wait_for(lambda: self._to_decode or self._closed)
            return None if self._closed else next(self._to_decode.take())

    # --- the device ----------------------------------------------------------------------------------------------

    def _compute(self) -> None:
        running: deque[tuple[Predictor, list[_Row], Launched]] = deque()
        while True:
            backbone, rows = self._next_batch(wait=not running)
            if not rows and not running:
                return
            if rows:
                predictor = self._predictors[backbone]
                launched = self._launch(predictor, rows)
                if launched is not None:
                    running.append((predictor, rows, launched))
            # A GPU computes one batch while the next is prepared; a CPU has nothing to overlap.
            in_flight = 2 if running and running[0][0].backbone.device.type == "cuda" else 1
            if running and (not rows or len(running) >= in_flight):
                self._deliver(*running.popleft())

    def _next_batch(self, *, wait: bool) -> tuple[str, list[_Row]]:
        """Ready rows of one backbone; none where nothing is ready (not to be waited for), or it is the end."""
        with self._changed:
            while True:
                if wait:
                    self._changed.wait_for(lambda: self._ready or self._closed)
                if not self._ready or self._closed:
                    return "", []
                backbone, queue = next(iter(self._ready.items()))
                rows: list[_Row] = []
                for row in queue.take():
                    if row.image.request.future.done():  # given up
                        self._finish(row)
                        continue
                    row.is_running = True
                    rows.append(row)
                    if len(rows) == self._batch_rows:
                        break
                self._ready.move_to_end(backbone)
                if not queue:
                    del self._ready[backbone]
                if rows:
                    return backbone, rows

    def _launch(self, predictor: Predictor, rows: list[_Row]) -> Launched | None:
        begun = time.monotonic()
        for row in rows:
            row.image.launched = begun
        try:
            return _launch(predictor, rows)
        except Exception as error:
            self._isolate(predictor, rows, error)
            return None

    def _deliver(self, predictor: Predictor, rows: list[_Row], launched: Launched) -> None:
        try:
            predictions = launched.predictions()
        except Exception as error:
            self._isolate(predictor, rows, error)
            return
        done = time.monotonic()
        self._on_batch(len(rows), done - rows[0].image.launched)
        for row, prediction in zip(rows, predictions, strict=True):
            row.image.done = done
            row.prediction = prediction
            row.image.error = prediction.error or row.image.error
            self._finish(row)

    def _isolate(self, predictor: Predictor, rows: list[_Row], error: Exception) -> None:
        """A batch broke: what breaks alone as well fails alone."""
        for row in rows:
            try:
                if len(rows) == 1:
                    raise error
                (row.prediction,) = _launch(predictor, [row]).predictions()
            except Exception as reason:
                row.image.error = PredictionFailed(f"{type(reason).__name__}: {reason}")
            row.image.done = time.monotonic()
            self._finish(row)


def _pictures(image: _Image) -> dict[str, Picture]:
    """The image as each backbone takes it that is to see it. Raises ImageError."""
    backbones = {row.use.wanted.backbone for row in image.rows}
    if isinstance(image.given, np.ndarray):
        return dict.fromkeys(backbones, image.given)
    upright = images.canonical(image.given) if isinstance(image.given, bytes) else image.given
    return {name: evaluation_view(upright, catalog.find(name).image_size) for name in backbones}


def _launch(predictor: Predictor, rows: Sequence[_Row]) -> Launched:
    at = {image: index for index, image in enumerate(dict.fromkeys(row.image for row in rows))}
    name = rows[0].use.wanted.backbone
    return predictor.launch([image.pictures[name] for image in at], [(at[row.image], row.resident) for row in rows])


def _answer(request: _Request) -> Answer:
    found: list[list[Prediction] | BptError] = []
    for image in request.images:
        predictions = [row.prediction for row in image.rows if row.prediction is not None]
        found.append(image.error or predictions)
    last = max(request.images, key=lambda image: image.done)
    computed = last.done - last.launched if last.error is None else 0.0
    return Answer(
        images=found,
        queue_seconds=last.done - request.begun - (last.decoded - last.decoding) - computed,
        decode_seconds=last.decoded - last.decoding,
        compute_seconds=computed,
    )
