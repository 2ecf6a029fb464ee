"""Decodes pictures of customers in processes of their own, several at a time.

A decoder written in C reads bytes that anybody may have made. Whatever a picture does to its process (see
bpt_core/decoder.py), it does not do to this one: answers are checked here, and are no pickle. A process that dies,
hangs or talks nonsense is an ImageError of one picture, and a new process goes on with the next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from bpt_core import facts, images
from bpt_core.decoder import Options
from bpt_core.decoder_process import COMMAND, DecoderProcess, Died
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical

_ATTEMPTS = 2  # the kernel may kill a process because another one took the memory
# Small pictures travel together: a turn of this process costs as much as decoding one of 64 pixels.
_TOGETHER = 16
_TOGETHER_BYTES = 1 << 16
_SENT_AHEAD = 2  # what is at work, and what lies in the pipe, so that a process does not wait for its next turn
_PATIENCE = 10.0  # seconds on the clock for one of CPU time: machines are shared
_TRUSTED_THREADS = 4


class Decoders:
    """`count` processes at most; one starts when there is something for it to do.

    with Decoders(4) as decoders:
        futures = [decoders.submit(data) for data in files]

    A picture may take `cpu_seconds` of CPU time, and ten times that on the clock; a process `memory_bytes` of address
    space. With a count of 0 threads of this process decode, without these limits: for pictures that are trusted.
    Leaving the context cancels what is not done. `command` starts another decoder; for tests.
    """

    def __init__(
        self,
        count: int,
        *,
        cpu_seconds: float = 20.0,
        memory_bytes: int = 1 << 30,
        short_side: int = images.SHORT_SIDE,
        pixel_limit: int = images.PIXEL_LIMIT,
        first_frame: bool = False,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.protections: frozenset[str] = frozenset()
        """What of bpt_core.confine holds in the processes; known when the first has started."""
        self._count = count
        self._options = Options(cpu_seconds, memory_bytes, short_side, pixel_limit, first_frame)
        self._command = command
        self._trusted = None if count else ThreadPoolExecutor(_TRUSTED_THREADS)
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._taken: list[_Taken] = []  # by each thread; an empty one is idle
        self._threads: list[threading.Thread] = []
        self._processes: set[DecoderProcess] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, data: bytes) -> Future[Canonical | ImageError]:
        """Bytes of an image file -> a future of what ingest keeps of it, or of the error it has.

        The future raises RuntimeError or OSError where no process can be started.
        """
        if self._trusted is not None:
            return self._trusted.submit(_examined, data, self._options)
        job = _Job(data, Future())
        if 2 * len(data) > self._options.memory_bytes:
            job.finish(ImageError("the file is too large to be decoded", code="image_decode_limit"))
            return job.future
        with self._changed:
            if self._closed:
                raise RuntimeError("these decoders are closed")
            self._jobs.append(job)
            if len(self._jobs) > self._idle() and len(self._threads) < self._count:
                self._start_thread()
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Cancel what waits, kill what runs."""
        if self._trusted is not None:
            self._trusted.shutdown(cancel_futures=True)
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _idle(self) -> int:
        return sum(not taken for taken in self._taken)

    def _start_thread(self) -> None:
        self._taken.append(deque())
        thread = threading.Thread(target=self._work, args=(self._taken[-1],), name="decoders", daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- in a thread for each process: the kernel ends a process with the thread that started it ------------------

    def _work(self, taken: _Taken) -> None:
        while self._take(taken):
            try:
                with self._process() as process:
                    self._converse(process, taken)
            except Died as death:
                _blame(taken, death)
            except Exception as error:  # no process can be started
                if not self._closed:
                    for job in taken.popleft():
                        job.fail(error)
        for together in taken:
            for job in together:
                job.future.cancel()

    def _take(self, taken: _Taken) -> bool:
        """Fill up `taken`, waiting only where there is nothing in it -> False: it is the end."""
        with self._changed:
            if not taken:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            # What an idle thread is about to take is not kept waiting here.
            while self._jobs and (not taken or (len(taken) < _SENT_AHEAD and len(self._jobs) > self._idle())):
                taken.append(together := [self._jobs.popleft()])
                while len(self._jobs) > self._idle() and _has_room(together, self._jobs[0]):
                    together.append(self._jobs.popleft())
            return not self._closed

    def _converse(self, process: DecoderProcess, taken: _Taken) -> None:
        """Pictures there, answers back, until it is the end. Raises Died: the first of `taken` were at work."""
        sent = 0
        while self._take(taken):
            for together in list(taken)[sent:]:
                process.send([job.data for job in together])
            results = process.results(len(taken[0]), _PATIENCE * self._options.cpu_seconds)
            for job, result in zip(taken.popleft(), results, strict=True):
                job.finish(result)
            sent = len(taken)

    @contextmanager
    def _process(self) -> Iterator[DecoderProcess]:
        for attempt in range(1, _ATTEMPTS + 1):
            process = DecoderProcess(self._command, self._options)
            with self._changed:
                self._processes.add(process)
                if self._closed:
                    process.kill()
            try:
                try:
                    self.protections = process.greet()
                except Died as death:
                    if attempt == _ATTEMPTS or self._closed:
                        raise RuntimeError("no decoding process can be started") from death
                    continue
                yield process
                return
            finally:
                with self._changed:
                    self._processes.discard(process)
                process.end()


@dataclass(eq=False)
class _Job:
    data: bytes
    future: Future[Canonical | ImageError]
    crashes: int = 0

    def finish(self, result: Canonical | ImageError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


_Taken = deque[list[_Job]]  # those in a list travel together


def _has_room(together: Sequence[_Job], job: _Job) -> bool:
    return len(together) < _TOGETHER and sum(len(each.data) for each in (*together, job)) <= _TOGETHER_BYTES


def _blame(taken: _Taken, death: Died) -> None:
    """Of several at work nobody knows which one it was: each goes alone the next time."""
    together = taken.popleft()
    if len(together) > 1:
        taken.extendleft([job] for job in reversed(together))
        return
    (job,) = together
    job.crashes += 1
    if death.took_too_long:
        job.finish(ImageError("decoding takes more time than allowed", code="image_decode_limit"))
    elif job.crashes == _ATTEMPTS:
        job.finish(ImageError("the decoder crashed on this picture", code="image_corrupt"))
    else:
        taken.appendleft(together)


def _examined(data: bytes, options: Options) -> Canonical | ImageError:
    (found,) = facts.examine(
        [data], short_side=options.short_side, pixel_limit=options.pixel_limit, first_frame=options.first_frame
    )
    return found
