"""The thread that owns the model, and the queue before it."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from arimage.autoregressive.generation import TOKEN_BATCH
from arimage.errors import ArimageError, Cancelled
from arimage.inference.calls import Call
from arimage.inference.networks import NetworkName
from arimage.inference.pipeline import ImagePipeline
from arimage.inference.requests import Preview, Progress
from arimage.inference.results import GeneratedImage
from arimage.server.errors import ApiError, fault, from_library, unavailable
from arimage.server.logs import LOG
from arimage.server.metrics import Metrics

USUAL_SECONDS = 5.0
State = Literal["loading", "ready", "closing", "failed"]


@dataclass(frozen=True)
class Partial:
    """A preview of the picture of this number."""

    picture: int
    image: Image.Image


@dataclass(frozen=True)
class Advanced:
    """How far a request is."""

    progress: Progress


@dataclass(frozen=True)
class Finished:
    """A picture is finished; they come in order."""

    image: GeneratedImage


@dataclass(frozen=True)
class Ended:
    """Nothing more comes; with the reason where it is not that all pictures are finished."""

    error: ApiError | None = None


Event = Partial | Advanced | Finished | Ended


@dataclass(eq=False)
class Job:
    """A request under way.

    Attributes:
        call: what to make.
        emit: is given events, in the worker's thread.
        partials: previews wanted of each picture.
        progress: whether events of progress are wanted.
        cancel: ends it within a step.
        refusal: what it is told if it is ended by the server.
        started, submitted: seconds of the monotonic clock.
    """

    id: str
    call: Call
    emit: Callable[[Event], None]
    partials: int = 0
    progress: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)
    refusal: ApiError | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0

    def advance(self, progress: Progress) -> None:
        """Tell how far it is, where that is wanted."""
        if self.progress:
            self.emit(Advanced(progress))

    @property
    def estimates(self) -> int:
        """How many previews are clean estimates: all, but for the preview grid where one is drawn."""
        first = self.call.requests[0]
        has_grid = self.call.settings.preview_grid and not first.references
        return max(0, self.partials - has_grid)


class Worker:
    """Makes pictures of requests, in the order in which they came.

    What waits together is taken together, as far as it fits into a batch of tokens; diffusion goes one by one.

    Args:
        pipeline: used by this thread only, but for preparing calls, which needs no network.
        capacity: requests that may wait beside the one that runs.
    """

    def __init__(self, pipeline: ImagePipeline, capacity: int) -> None:
        self.pipeline, self.capacity = pipeline, capacity
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.metrics = Metrics(self.waiting)
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._taken: list[Job] = []
        self._seconds = USUAL_SECONDS
        self._thread = threading.Thread(target=self._work, name="arimage-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def waiting(self) -> int:
        """Requests that wait, those of a batch whose diffusion has not begun included."""
        return max(0, len(self._queue) + len(self._taken) - 1)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._queue or self._taken)

    def check_open(self) -> None:
        """Raise ApiError where no request is taken: 503 while loading or closing, 429 when the queue is full."""
        if self.state == "loading":
            raise unavailable("loading", "the model is being loaded", 1)
        if self.state != "ready":
            raise unavailable("shutting_down", "the server is shutting down", 10)
        unfinished = len(self._queue) + len(self._taken)
        if unfinished > self.capacity:
            seconds = min(600, max(1, math.ceil(self._seconds * unfinished)))
            message = f"the queue is full with {unfinished} requests: try again in {seconds} s"
            raise ApiError(429, "queue_full", message, retry_after=seconds)

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            ApiError: see :meth:`check_open`.
        """
        with self._changed:
            self.check_open()
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """End a request: at once where it waits, within a step where it runs. Nobody hears of it any more."""
        self.metrics.cancelled.inc()
        job.cancel.set()
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def close(self, grace: float) -> None:
        """Take no further requests, refuse those that wait, and end what runs after ``grace`` seconds."""
        refusal = unavailable("shutting_down", "the server is shutting down", 10)
        with self._changed:
            self.state = "closing"
            running = self._running()
            waiting = [*self._queue, *(job for job in self._taken if job not in running)]
            self._queue.clear()
            self._changed.notify()
        for job in waiting:
            job.refusal = refusal
            job.cancel.set()
            job.emit(Ended(refusal))
        for job in running:
            job.refusal = refusal
            last = threading.Timer(grace, job.cancel.set)
            last.daemon = True
            last.start()

    def _running(self) -> list[Job]:
        """Requests that a closing worker lets end."""
        return self._taken[:1]

    def join(self, seconds: float) -> bool:
        """Wait for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._load()
            with self._changed:
                if self.state == "loading":
                    self.state = "ready"
            self._serve()
        except Exception as error:
            self._fail(error)

    def _serve(self) -> None:
        """Make what comes, until the worker is closed."""
        while batch := self._take():
            self._make(batch)

    def _fail(self, error: Exception) -> None:
        """End everything, since nobody is left to do it."""
        with self._changed:
            self.failure, self.state = error, "failed"
            unfinished = [*self._taken, *self._queue]
            self._taken.clear()
            self._queue.clear()
        for job in unfinished:
            job.emit(Ended(unavailable("failed", "the server has failed and ends", 10)))

    def _load(self) -> None:
        """Read what the first request would otherwise wait for."""
        networks = self.pipeline.networks
        networks.weights_hash()
        if networks.placement == "resident":
            for name in get_args(NetworkName):
                with networks.use(name):
                    pass

    def _take(self) -> list[Job]:
        """The requests that wait, as many as fit into a batch of tokens; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.state == "closing")
            pictures = 0
            while self._queue:
                pictures += len(self._queue[0].call.requests)
                if self._taken and pictures > TOKEN_BATCH:
                    break
                self._taken.append(self._queue.popleft())
            return list(self._taken)

    def _make(self, batch: Sequence[Job]) -> None:
        clock = _StageClock(self.metrics)
        for job in batch:
            job.started = clock.last
            self.metrics.stages.labels("queue").inc(job.started - job.submitted)
        for job, call in zip(batch, self._draw_tokens(batch, clock)):
            started = time.monotonic()
            ended = Ended(self._run(job, call, clock))
            with self._changed:
                self._taken.remove(job)
            job.emit(ended)
            self._seconds += (time.monotonic() - started - self._seconds) / 4

    def _draw_tokens(self, batch: Sequence[Job], clock: "_StageClock") -> list[Call]:
        """The calls with their tokens, where more than one wait. A call that fails here fails again by itself."""
        calls = [job.call for job in batch]
        if len(batch) == 1:
            return calls

        def on_progress(progress: Progress) -> None:
            clock(progress)
            for job in batch:
                job.advance(progress)
            if all(job.cancel.is_set() for job in batch):
                raise Cancelled("nobody waits for these tokens any more")

        self.metrics.batches.inc()
        try:
            return self.pipeline.draw_tokens(calls, on_progress)
        except Cancelled:
            return calls
        except Exception:
            LOG.exception("tokens", extra={"fields": {"request_ids": [job.id for job in batch]}})
            return calls

    def _run(self, job: Job, call: Call, clock: "_StageClock") -> ApiError | None:
        """Make a request's pictures; why they are not all there."""

        def on_image(image: GeneratedImage) -> None:
            clock.finished(image)
            job.emit(Finished(image))

        def on_progress(progress: Progress) -> None:
            clock(progress)
            job.advance(progress)

        def on_preview(preview: Preview) -> None:
            job.emit(Partial(preview.picture, preview.image))

        try:
            self.pipeline.run(
                call,
                estimates=job.estimates,
                on_progress=on_progress,
                on_preview=on_preview if job.partials else None,
                on_image=on_image,
                cancel=job.cancel,
            )
        except Cancelled:
            return job.refusal or ApiError(499, "cancelled", "the request was cancelled")
        except Exception as error:
            LOG.exception("failed", extra={"fields": {"request_id": job.id}})
            return from_library(error, ()) if isinstance(error, ArimageError) else fault(error)
        return None


class _StageClock:
    """Adds the time between two reports to the stage of the later one."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.last = self.began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        self._passed(progress.stage)
        if progress.stage == "tokens":
            if progress.done == progress.total:
                self.metrics.token_rate.set(progress.total / max(self.last - self.began, 1e-6))
        else:
            self.began = self.last

    def finished(self, image: GeneratedImage) -> None:
        self._passed("finish")
        self.metrics.pictures.inc()
        self.metrics.tokens.inc(made_tokens(image))

    def _passed(self, stage: str) -> None:
        now = time.monotonic()
        self.metrics.stages.labels(stage).inc(now - self.last)
        self.last = now


def made_tokens(image: GeneratedImage) -> int:
    """Visual tokens that were generated for a picture, its preview grid included."""
    return image.codes.numel() + (0 if image.preview_codes is None else image.preview_codes.numel())
