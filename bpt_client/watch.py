"""Shows a job while it runs: a live bar on a terminal, elsewhere at most one line per second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from bpt_client.models import BatchProgress, JobEvent
from bpt_client.models import Progress as Epoch
from bpt_client.terminal import duration, plain

_QUIET_SECONDS = 1.0  # without a bar: fast epochs do not get a line each
_RECENT_EPOCHS = 5  # their mean time foretells the rest; the first epochs are often slower


class JobWatch:
    """A context manager; `show` it every event of a job that is `doing` something.

    `attempts` is the highest attempt seen, `interruptions` are the reasons why the others ended.
    """

    def __init__(self, console: Console, label: str, doing: str = "tuning") -> None:
        self.attempts = 0
        self.interruptions: list[str] = []
        self.last_epoch: Epoch | None = None
        self.seconds = 0.0
        self._console = console
        self._label, self._doing = plain(label), doing
        self._recent: deque[float] = deque(maxlen=_RECENT_EPOCHS)
        self._began = time.monotonic()
        self._spoke = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), console=console
            )
            self._task = self._bar.add_task(self._label, total=None, facts="asked for")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        if self._bar:
            self._bar.stop()

    def show_all(self, events: Iterable[JobEvent]) -> JobEvent | None:
        """Shows events until they end -> the last one."""
        event = None
        for event in events:
            self.show(event)
        return event

    def show(self, event: JobEvent) -> None:
        if event.state is not None:
            self._show_state(event, event.state)
        elif event.progress is not None:
            self._show_epoch(event.progress)
        elif event.images is not None:
            self._show_images(event.images)
        elif event.type == "checkpoint_lost":
            self._say(f"the checkpoint of epoch {event.data.get('epoch')} is lost: {event.data.get('reason')}")
        elif event.type == "started":
            self._recent.clear()
            self._facts(self._doing)
            if event.attempt > 1:
                how = "goes on from the last checkpoint" if event.data.get("resumed") else "starts from the beginning"
                self._say(f"attempt {event.attempt} {how}")

    def _show_state(self, event: JobEvent, state: str) -> None:
        self.attempts = max(self.attempts, event.attempt)
        if state == "queued":
            reason, before = event.data.get("reason"), event.data.get("from")
            if before is not None:
                self._say("resumed" if before == "paused" else "is tried again")
                self._facts("waiting for a worker")
            elif reason is None:
                self._facts("waiting for a worker")
            else:
                self.interruptions.append(plain(reason))
                self._say(f"attempt {event.attempt} was interrupted: {reason}; the job waits to be taken up again")
                self._facts("waiting to be taken up again")
        elif state == "running":
            self._facts("loading backbone and data")
        elif state == "cancelling":
            self._say("the job is being cancelled")
        elif state == "pausing":
            self._facts("is being paused")
        elif state == "paused":
            after = f" after epoch {self.last_epoch.epoch}/{self.last_epoch.epochs}" if self.last_epoch else ""
            self._say(f"paused{after}; it goes on when somebody resumes it (bpt jobs resume)")
            self._facts("paused")
        else:
            problem = event.data.get("error")
            why = f": {problem.get('detail')} ({problem.get('code')})" if isinstance(problem, dict) else ""
            self._facts(state)
            if state != "succeeded":  # what came of it is for the caller to tell
                self._say(f"{state}{why}")

    def _show_epoch(self, epoch: Epoch) -> None:
        if self.last_epoch is not None and epoch.trials != self.last_epoch.trials:
            self._recent.clear()  # fewer trials make faster epochs
        self.last_epoch = epoch
        if epoch.seconds is not None:
            self._recent.append(epoch.seconds)
        parts = [f"epoch {epoch.epoch}/{epoch.epochs}"]
        if epoch.trials > 1:
            parts.append(f"{epoch.trials} trials")
        if epoch.train_loss is not None:
            parts.append(f"loss {epoch.train_loss:.3f}")
        if epoch.val_accuracy is not None:
            parts.append(f"validation accuracy {100 * epoch.val_accuracy:5.1f} %")
        left = self._seconds_left(epoch)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self._bar:
            self._bar.update(self._task, completed=epoch.epoch, total=epoch.epochs)
            self._facts("  ".join(parts))
        elif epoch.epoch in (1, epoch.epochs) or time.monotonic() - self._spoke >= _QUIET_SECONDS:
            self._spoke = time.monotonic()
            self._say("  ".join(parts))

    def _show_images(self, images: BatchProgress) -> None:
        said = f"{images.done:,}/{images.total:,} images"
        if self._bar:
            self._bar.update(self._task, completed=images.done, total=images.total)
            self._facts(said)
        elif images.done == images.total or time.monotonic() - self._spoke >= _QUIET_SECONDS:
            self._spoke = time.monotonic()
            self._say(said)

    def _seconds_left(self, epoch: Epoch) -> float | None:
        if epoch.epoch is None or epoch.epochs is None or not self._recent:
            return None
        return (epoch.epochs - epoch.epoch) * sum(self._recent) / len(self._recent)

    def _facts(self, text: str) -> None:
        """What stands beside the bar; without a bar these passing states are not worth a line."""
        if self._bar:
            self._bar.update(self._task, facts=plain(text))

    def _say(self, text: str) -> None:
        self._console.print(Text(f"  {self._label}: {plain(text)}"), soft_wrap=True)
